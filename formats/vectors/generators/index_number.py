"""The index has another number than the segment."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(3 * MIB)
segments = [
    Segment(0, [(0, 4096, ZERO, 0)]),
    Segment(1, [(0, 8192, ZERO, 0)]),
]
patch = Patch(base, 3 * MIB, segments, entry=lambda row: [2 * row[0], *row[1:]])
vector = Vector("format", patch)
