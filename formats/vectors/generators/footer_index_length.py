"""The footer has another length of the index."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(0, 4096, ZERO, 0)])], footer={"index_length": 56})
vector = Vector("corrupt", patch)
