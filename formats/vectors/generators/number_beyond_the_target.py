"""A segment that the target does not have."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(
    base,
    MIB,
    [Segment(0, [(0, 4096, ZERO, 0)], head={"number": 1})],
    entry=lambda row: [1, *row[1:]],
)
vector = Vector("format", patch)
