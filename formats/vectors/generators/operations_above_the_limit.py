"""65,537 operations."""

from handmade import MIB, ZERO, ZSTD, Base, Patch, Segment, Vector, odd_frame

base = Base(MIB)
patch = Patch(
    base,
    MIB,
    [
        Segment(
            0,
            [(i, 1, ZERO, 0) for i in range(65537)],
            directory_codec=ZSTD,
            directory=odd_frame([(MIB, b"\0"), (65553, b"\0")], MIB + 65553),
        )
    ],
)
vector = Vector("format", patch)
