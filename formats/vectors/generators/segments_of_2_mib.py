"""A segment of two leaves."""

from handmade import DATA, MIB, Base, Patch, Segment, Vector, text

base = Base(3 * MIB)
segments = [
    Segment(0, [(MIB - 10, 20, DATA, 0)], data=text(20)),
]
patch = Patch(base, 3 * MIB, segments, segment_bits=21)
vector = Vector("valid", patch)
