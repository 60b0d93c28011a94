"""A target that is not whole sectors."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(0, 4096, ZERO, 0)])], header={"target_size": MIB + 1})
vector = Vector("format", patch)
