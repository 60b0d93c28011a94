"""A stored payload of which a byte is missing."""

from handmade import DATA, MIB, Base, Patch, Segment, Vector, text

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(0, 4096, DATA, 0)], data=text(4096), payload=text(4095))])
vector = Vector("format", patch)
