"""A base of 2^63 bytes."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(0, 4096, ZERO, 0)])], header={"base_size": 1 << 63})
vector = Vector("format", patch)
