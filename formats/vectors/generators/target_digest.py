"""Segments that do not make up the target of the header."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(0, 4096, ZERO, 0)])], header={"target_digest": bytes(32)})
vector = Vector("corrupt", patch)
