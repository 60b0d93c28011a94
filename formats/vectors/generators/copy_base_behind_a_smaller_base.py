"""COPY_BASE from where SAME would read zeros."""

from handmade import COPY_BASE, MIB, Base, Patch, Segment, Vector

base = Base(8192)
patch = Patch(base, MIB, [Segment(0, [(0, 4096, COPY_BASE, 8192)])])
vector = Vector("format", patch)
