"""An operation that is not in the directory."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(0, 4096, ZERO, 0)], head={"operations": 2})])
vector = Vector("format", patch)
