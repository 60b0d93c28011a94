"""A number whose offset overflows."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(
    base,
    MIB,
    [Segment(0, [(0, 4096, ZERO, 0)], head={"number": 2**64 - 1})],
    entry=lambda row: [2**64 - 1, *row[1:]],
)
vector = Vector("format", patch)
