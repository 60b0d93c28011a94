"""DATA as an lz4 block."""

from handmade import DATA, LZ4, MIB, Base, Patch, Segment, Vector, text

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(4096, 8192, DATA, 0)], data=text(8192), codec=LZ4)])
vector = Vector("valid", patch)
