"""COPY_BASE whose end overflows 64 bits."""

from handmade import COPY_BASE, MIB, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(0, 4096, COPY_BASE, 2**64 - 4096)])])
vector = Vector("format", patch)
