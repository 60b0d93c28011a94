"""Several DATA operations consume the payload in order."""

from handmade import DATA, MIB, Base, Patch, Segment, Vector, text

base = Base(MIB)
patch = Patch(
    base,
    MIB,
    [Segment(0, [(0, 100, DATA, 0), (512, 1000, DATA, 0), (8192, 3, DATA, 0)], data=text(1103))],
)
vector = Vector("valid", patch)
