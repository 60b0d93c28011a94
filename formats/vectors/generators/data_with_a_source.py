"""DATA with a source."""

from handmade import DATA, MIB, Base, Patch, Segment, Vector, text

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(0, 4096, DATA, 4096)], data=text(4096))])
vector = Vector("format", patch)
