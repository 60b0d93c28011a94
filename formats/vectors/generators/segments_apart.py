"""Segments 1 and 3 are stored, 0, 2 and 4 are the base's."""

from handmade import COPY_TARGET, MIB, ZERO, Base, Patch, Segment, Vector

base = Base(5 * MIB)
segments = [
    Segment(1, [(0, 4096, ZERO, 0)]),
    Segment(3, [(0, 4096, COPY_TARGET, MIB)], references=[1]),
]
patch = Patch(base, 5 * MIB, segments)
vector = Vector("valid", patch)
