"""The index has a gap between segments."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(2 * MIB)
segments = [
    Segment(0, [(0, 4096, ZERO, 0)]),
    Segment(1, [(0, 8192, ZERO, 0)]),
]
patch = Patch(base, 2 * MIB, segments, entry=lambda row: [row[0], row[1] + 8 * row[0], *row[2:]])
vector = Vector("format", patch)
