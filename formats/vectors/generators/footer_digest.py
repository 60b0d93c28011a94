"""Another digest of the index."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(0, 4096, ZERO, 0)])], footer={"digest": bytes(32)})
vector = Vector("corrupt", patch)
