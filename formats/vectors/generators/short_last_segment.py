"""The last segment, and its leaf, are shorter; an operation ends with it."""

from handmade import DATA, MIB, Base, Patch, Segment, Vector, text

base = Base(MIB + 1536)
segments = [
    Segment(1, [(512, 1024, DATA, 0)], data=text(1024)),
]
patch = Patch(base, MIB + 1536, segments)
vector = Vector("valid", patch)
