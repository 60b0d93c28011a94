"""No frame at all."""

from handmade import DATA, MIB, ZSTD, Base, Patch, Segment, Vector, text

base = Base(MIB)
patch = Patch(
    base, MIB, [Segment(0, [(0, 4096, DATA, 0)], data=text(4096), codec=ZSTD, payload=b"")]
)
vector = Vector("corrupt", patch)
