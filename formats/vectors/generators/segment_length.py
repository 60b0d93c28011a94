"""A segment that is not as long as it says."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(0, 4096, ZERO, 0)], head={"length": 170})])
vector = Vector("format", patch)
