"""A frame whose checksum is another."""

from handmade import DATA, MIB, ZSTD, Base, Patch, Segment, Vector, flipped, text, zstd_frame

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
            payload=flipped(zstd_frame(text(4096), checksum=True), -1),
        )
    ],
)
vector = Vector("corrupt", patch)
