"""An operation of a kind that there is not."""

from handmade import MIB, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(0, 4096, 4, 0)])])
vector = Vector("format", patch)
