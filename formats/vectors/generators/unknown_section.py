"""A section without bit 31 that is not known is ignored."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(
    base,
    MIB,
    [Segment(0, [(0, 4096, ZERO, 0)])],
    sections=[(0x1234, b"something"), (0x7FFFFFFF, b"")],
)
vector = Vector("valid", patch)
