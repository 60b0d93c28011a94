"""A payload that is longer than what it stands for."""

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
            payload=zstd_frame(text(4096)).ljust(4097, b"\0"),
        )
    ],
)
vector = Vector("format", patch)
