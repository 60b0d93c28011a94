"""DATA coded against ranges of the base, in any order and overlapping."""

from handmade import BASE, DATA, MIB, ZSTD, Base, Patch, Segment, Vector, noise

base = Base(MIB)
patch = Patch(
    base,
    MIB,
    [
        Segment(
            0,
            [(0, 4096, DATA, 0)],
            data=noise(MIB, "base")[1000:5096],
            codec=ZSTD,
            ranges=[(8192, 4096, BASE), (0, 8192, BASE), (100, 50, BASE)],
        )
    ],
)
vector = Vector("valid", patch)
