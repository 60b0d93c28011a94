"""One bit of the header is another."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector, flipped

base = Base(MIB)
patch = Patch(
    base,
    MIB,
    [Segment(0, [(0, 4096, ZERO, 0)])],
    sections=[(1, b"by hand")],
    header_damage=lambda header: flipped(header, 145),
)
vector = Vector("corrupt", patch)
