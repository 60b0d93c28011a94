"""COPY_BASE of a byte behind the base."""

from handmade import COPY_BASE, MIB, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(0, 4096, COPY_BASE, MIB - 4095)])])
vector = Vector("format", patch)
