"""A directory as an lz4 block."""

from handmade import LZ4, MIB, ZERO, Base, Patch, Segment, Vector, lz4_block

base = Base(MIB)
patch = Patch(
    base,
    MIB,
    [
        Segment(
            0,
            [(i * 64, 32, ZERO, 0) for i in range(100)],
            directory_codec=LZ4,
            directory=lz4_block(bytes(1700)),
        )
    ],
)
vector = Vector("format", patch)
