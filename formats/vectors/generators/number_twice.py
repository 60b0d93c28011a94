"""The same segment twice."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(2 * MIB)
segments = [
    Segment(0, [(0, 4096, ZERO, 0)]),
    Segment(0, [(0, 4096, ZERO, 0)]),
]
patch = Patch(base, 2 * MIB, segments)
vector = Vector("format", patch)
