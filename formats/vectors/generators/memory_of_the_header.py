"""The header's memory is not the largest of a segment."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(0, 4096, ZERO, 0)])], header={"memory": 2 * MIB})
vector = Vector("format", patch)
