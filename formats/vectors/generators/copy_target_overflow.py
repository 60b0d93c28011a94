"""COPY_TARGET whose end overflows 64 bits."""

from handmade import COPY_TARGET, MIB, ZERO, Base, Patch, Segment, Vector

base = Base(2 * MIB)
segments = [
    Segment(0, [(0, 4096, ZERO, 0)]),
    Segment(1, [(0, 4096, COPY_TARGET, 2**64 - 4096)], references=[0]),
]
patch = Patch(base, 2 * MIB, segments)
vector = Vector("format", patch)
