"""A list out of order."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(3 * MIB)
segments = [
    Segment(0, [(0, 4096, ZERO, 0)]),
    Segment(1, [(0, 8192, ZERO, 0)]),
    Segment(2, [(0, 4096, ZERO, 0)], references=[1, 0]),
]
patch = Patch(base, 3 * MIB, segments)
vector = Vector("format", patch)
