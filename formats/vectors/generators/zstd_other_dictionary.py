"""A frame that was coded against another range."""

from handmade import BASE, DATA, MIB, ZSTD, Base, Patch, Segment, Vector, noise, zstd_frame

base = Base(MIB)
patch = Patch(
    base,
    MIB,
    [
        Segment(
            0,
            [(0, 4096, DATA, 0)],
            data=noise(MIB, "base")[:4096],
            codec=ZSTD,
            payload=zstd_frame(noise(MIB, "base")[:4096], noise(MIB, "base")[:8192]),
            ranges=[(8192, 8192, BASE)],
        )
    ],
)
vector = Vector("corrupt", patch)
