"""A stored directory that is too short."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(
    base, MIB, [Segment(0, [(0, 4096, ZERO, 0), (8192, 4096, ZERO, 0)], directory=bytes(33))]
)
vector = Vector("format", patch)
