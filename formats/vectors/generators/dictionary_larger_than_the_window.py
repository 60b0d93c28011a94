"""A frame of 4 KiB in a single segment has a window of 4 KiB, and takes from 512 KiB before it."""

from handmade import BASE, DATA, KIB, MIB, ZSTD, Base, Patch, Segment, Vector, noise

base = Base(MIB)
patch = Patch(
    base,
    MIB,
    [
        Segment(
            0,
            [(0, 4096, DATA, 0)],
            data=noise(MIB, "base")[4000:8096],
            codec=ZSTD,
            ranges=[(0, 512 * KIB, BASE)],
        )
    ],
)
vector = Vector("valid", patch)
