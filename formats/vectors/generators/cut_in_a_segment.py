"""Cut off inside of a segment."""

from handmade import DATA, MIB, Base, Patch, Segment, Vector, text

base = Base(MIB)
patch = Patch(
    base,
    MIB,
    [Segment(0, [(0, 512, DATA, 0)], data=text(512))],
    damage=lambda patch: patch[:300],
)
vector = Vector("format", patch)
