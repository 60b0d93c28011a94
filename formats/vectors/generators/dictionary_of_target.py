"""DATA coded against a range of an earlier segment."""

from handmade import DATA, MIB, TARGET, ZSTD, Base, Patch, Segment, Vector, noise

base = Base(2 * MIB)
segments = [
    Segment(0, [(0, 2048, DATA, 0)], data=noise(2048, "new")),
    Segment(
        1,
        [(0, 1024, DATA, 0)],
        data=noise(2048, "new")[1:1025],
        codec=ZSTD,
        ranges=[(0, 2048, TARGET)],
        references=[0],
    ),
]
patch = Patch(base, 2 * MIB, segments)
vector = Vector("valid", patch)
