"""A frame without a content size that gives 64 MiB."""

from handmade import DATA, KIB, MIB, ZSTD, Base, Patch, Segment, Vector, odd_frame

base = Base(MIB)
patch = Patch(
    base,
    MIB,
    [
        Segment(
            0,
            [(0, 4096, DATA, 0)],
            data=bytes(4096),
            codec=ZSTD,
            payload=odd_frame([(128 * KIB, b"\0")] * 512, None),
        )
    ],
)
vector = Vector("corrupt", patch)
