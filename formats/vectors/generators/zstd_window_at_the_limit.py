"""A zstd frame with a window of 32 MiB."""

from handmade import DATA, MIB, ZSTD, Base, Patch, Segment, Vector, odd_frame

base = Base(MIB)
patch = Patch(
    base,
    MIB,
    [
        Segment(
            0,
            [(0, 4096, DATA, 0)],
            data=b"x" * 4096,
            codec=ZSTD,
            payload=odd_frame([(4096, b"x")], 4096, window_log=25),
        )
    ],
)
vector = Vector("valid", patch)
