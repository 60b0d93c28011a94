"""An lz4 block that is none."""

from handmade import DATA, LZ4, MIB, Base, Patch, Segment, Vector, text

base = Base(MIB)
patch = Patch(
    base, MIB, [Segment(0, [(0, 4096, DATA, 0)], data=text(4096), codec=LZ4, payload=b"\xff" * 100)]
)
vector = Vector("corrupt", patch)
