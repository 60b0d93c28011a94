"""A target of 257 leaves and a bit, most of them zeros."""

from handmade import DATA, MIB, Base, Patch, Segment, Vector, text

base = Base(MIB)
segments = [
    Segment(257, [(0, 512, DATA, 0)], data=text(512)),
]
patch = Patch(base, 257 * MIB + 512, segments)
vector = Vector("valid", patch)
