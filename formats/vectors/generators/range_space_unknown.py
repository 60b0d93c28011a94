"""A range of a space that there is not."""

from handmade import DATA, MIB, ZSTD, Base, Patch, Segment, Vector, text, zstd_frame

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
            ranges=[(0, 4096, 2)],
        )
    ],
)
vector = Vector("format", patch)
