"""An lz4 block of a byte less than there should be."""

from handmade import DATA, LZ4, MIB, Base, Patch, Segment, Vector, lz4_block, text

base = Base(MIB)
patch = Patch(
    base,
    MIB,
    [Segment(0, [(0, 4096, DATA, 0)], data=text(4096), codec=LZ4, payload=lz4_block(text(4095)))],
)
vector = Vector("corrupt", patch)
