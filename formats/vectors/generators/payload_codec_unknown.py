"""A payload in a codec that there is not."""

from handmade import DATA, MIB, Base, Patch, Segment, Vector, text

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(0, 4096, DATA, 0)], data=text(4096), codec=3)])
vector = Vector("format", patch)
