"""An lz4 block of a MiB where there should be 8 KiB."""

from handmade import DATA, LZ4, MIB, Base, Patch, Segment, Vector, lz4_block

base = Base(MIB)
patch = Patch(
    base,
    MIB,
    [Segment(0, [(0, 8192, DATA, 0)], data=bytes(8192), codec=LZ4, payload=lz4_block(bytes(MIB)))],
)
vector = Vector("corrupt", patch)
