"""The index has another memory than the segment."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(2 * MIB)
segments = [
    Segment(0, [(0, 4096, ZERO, 0)]),
    Segment(1, [(0, 1, ZERO, 0), (8, 1, ZERO, 0)]),
]
patch = Patch(
    base, 2 * MIB, segments, entry=lambda row: [*row[:3], row[3] - 17 * (1 - row[0]), row[4]]
)
vector = Vector("format", patch)
