"""The shortest dictionary there may be."""

from handmade import BASE, DATA, MIB, ZSTD, Base, Patch, Segment, Vector, text

base = Base(MIB)
patch = Patch(
    base,
    MIB,
    [Segment(0, [(0, 4096, DATA, 0)], data=text(4096), codec=ZSTD, ranges=[(0, 8, BASE)])],
)
vector = Vector("valid", patch)
