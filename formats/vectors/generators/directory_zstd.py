"""A directory as a zstd frame."""

from handmade import MIB, ZERO, ZSTD, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(
    base, MIB, [Segment(0, [(i * 64, 32, ZERO, 0) for i in range(1000)], directory_codec=ZSTD)]
)
vector = Vector("valid", patch)
