"""A dictionary for a payload that is stored as it is."""

from handmade import BASE, DATA, MIB, Base, Patch, Segment, Vector, text

base = Base(MIB)
patch = Patch(
    base, MIB, [Segment(0, [(0, 512, DATA, 0)], data=text(512), ranges=[(0, 4096, BASE)])]
)
vector = Vector("format", patch)
