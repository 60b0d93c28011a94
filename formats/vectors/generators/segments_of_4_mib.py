"""Segments of four leaves and of less than one."""

from handmade import COPY_TARGET, DATA, MIB, Base, Patch, Segment, Vector, text

base = Base(4 * MIB + 4096)
segments = [
    Segment(0, [(4 * MIB - 4096, 4096, DATA, 0)], data=text(4096)),
    Segment(1, [(0, 4096, COPY_TARGET, 4 * MIB - 4096)], references=[0]),
]
patch = Patch(base, 4 * MIB + 4096, segments, segment_bits=22)
vector = Vector("valid", patch)
