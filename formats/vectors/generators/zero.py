"""A ZERO operation."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(4096, 8192, ZERO, 0)])])
vector = Vector("valid", patch)
