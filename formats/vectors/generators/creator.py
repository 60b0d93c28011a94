"""What made the patch, twice, not UTF-8 and with control characters."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(
    base,
    MIB,
    [Segment(0, [(0, 4096, ZERO, 0)])],
    sections=[(1, b"by hand \x1b[31m\xff"), (1, b"again")],
)
vector = Vector("valid", patch)
