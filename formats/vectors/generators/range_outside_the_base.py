"""A dictionary with a byte from behind the base."""

from handmade import BASE, DATA, MIB, ZSTD, Base, Patch, Segment, Vector, text, zstd_frame

base = Base(MIB)
patch = Patch(
    base,
    MIB,
    [
        Segment(
            0,
            [(0, 4096, DATA, 0)],
            data=text(4096),
            codec=ZSTD,
            payload=zstd_frame(text(4096)),
            ranges=[(MIB - 4095, 4096, BASE)],
        )
    ],
)
vector = Vector("format", patch)
