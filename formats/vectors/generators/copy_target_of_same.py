"""COPY_TARGET of bytes that are SAME, ZERO and DATA in the segment it takes them from."""

from handmade import COPY_TARGET, DATA, MIB, ZERO, Base, Patch, Segment, Vector, text

base = Base(2 * MIB)
segments = [
    Segment(0, [(4096, 100, ZERO, 0), (4196, 100, DATA, 0)], data=text(100)),
    Segment(1, [(0, 16384, COPY_TARGET, 0)], references=[0]),
]
patch = Patch(base, 2 * MIB, segments)
vector = Vector("valid", patch)
