"""A frame with a window of 2 TiB."""

from handmade import DATA, MIB, ZSTD, Base, Patch, Segment, Vector, odd_frame

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
            payload=odd_frame([(4096, b"\0")], 4096, window_log=41),
        )
    ],
)
vector = Vector("corrupt", patch)
