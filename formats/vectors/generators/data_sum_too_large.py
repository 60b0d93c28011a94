"""DATA operations that want a byte more than there is."""

from handmade import DATA, MIB, Base, Patch, Segment, Vector, text

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(0, 4097, DATA, 0)], data=text(4096))])
vector = Vector("format", patch)
