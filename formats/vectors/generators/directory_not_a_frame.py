"""A directory that says zstd and is not."""

from handmade import MIB, ZERO, ZSTD, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(
    base, MIB, [Segment(0, [(0, 4096, ZERO, 0)], directory_codec=ZSTD, directory=bytes(17))]
)
vector = Vector("format", patch)
