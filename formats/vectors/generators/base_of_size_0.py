"""All of the target is DATA and zeros."""

from handmade import DATA, MIB, Base, Patch, Segment, Vector, text

base = Base(0)
segments = [
    Segment(0, [(0, 512, DATA, 0)], data=text(512)),
]
patch = Patch(base, MIB, segments)
vector = Vector("valid", patch)
