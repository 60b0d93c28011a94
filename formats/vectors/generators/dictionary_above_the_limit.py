"""A dictionary of 16 MiB and 1 byte, of one MiB again and again."""

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
            ranges=[*[(0, MIB, BASE)] * 16, (0, 1, BASE)],
        )
    ],
)
vector = Vector("format", patch)
