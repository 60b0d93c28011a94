"""A section with bit 31 that is not known."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(
    base, MIB, [Segment(0, [(0, 4096, ZERO, 0)])], sections=[(1, b"by hand"), (0x80000001, b"")]
)
vector = Vector("unsupported", patch)
