"""COPY_TARGET from two segments, both in the list."""

from handmade import COPY_TARGET, MIB, ZERO, Base, Patch, Segment, Vector

base = Base(3 * MIB)
segments = [
    Segment(0, [(0, 4096, ZERO, 0)]),
    Segment(1, [(0, 8192, ZERO, 0)]),
    Segment(2, [(0, 4096, COPY_TARGET, MIB - 2048)], references=[0, 1]),
]
patch = Patch(base, 3 * MIB, segments)
vector = Vector("format", patch)
