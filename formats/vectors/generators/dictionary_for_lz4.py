"""A dictionary for an lz4 block."""

from handmade import BASE, DATA, LZ4, MIB, Base, Patch, Segment, Vector, text

base = Base(MIB)
patch = Patch(
    base,
    MIB,
    [Segment(0, [(0, 4096, DATA, 0)], data=text(4096), codec=LZ4, ranges=[(0, 4096, BASE)])],
)
vector = Vector("format", patch)
