"""Lengths of the index that do not make up what the header says."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(2 * MIB)
segments = [
    Segment(0, [(0, 4096, ZERO, 0)]),
    Segment(1, [(0, 8192, ZERO, 0)]),
]
patch = Patch(base, 2 * MIB, segments, entry=lambda row: [*row[:2], row[2] + 8 * row[0], *row[3:]])
vector = Vector("format", patch)
