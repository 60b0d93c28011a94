"""DATA as a zstd frame without a dictionary."""

from handmade import DATA, MIB, ZSTD, Base, Patch, Segment, Vector, text

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(4096, 8192, DATA, 0)], data=text(8192), codec=ZSTD)])
vector = Vector("valid", patch)
