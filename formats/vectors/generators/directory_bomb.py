"""A directory whose frame gives 64 MiB."""

from handmade import KIB, MIB, ZERO, ZSTD, Base, Patch, Segment, Vector, odd_frame

base = Base(MIB)
patch = Patch(
    base,
    MIB,
    [
        Segment(
            0,
            [(i * 64, 32, ZERO, 0) for i in range(200)],
            directory_codec=ZSTD,
            directory=odd_frame([(128 * KIB, b"\0")] * 512, 64 * MIB),
        )
    ],
)
vector = Vector("format", patch)
