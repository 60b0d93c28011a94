"""One bit of a payload is another."""

from handmade import DATA, MIB, Base, Patch, Segment, Vector, flipped, text

base = Base(MIB)
patch = Patch(
    base,
    MIB,
    [Segment(0, [(0, 512, DATA, 0)], data=text(512), damage=lambda segment: flipped(segment, 200))],
)
vector = Vector("corrupt", patch)
