"""A segment that takes nothing from the base has the digest of nothing."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(0, 4096, ZERO, 0)], head={"base_digest": bytes(32)})])
vector = Vector("base", patch)
