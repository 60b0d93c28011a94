"""DATA that covers its segment, so that nothing of the base is left."""

from handmade import DATA, MIB, ZSTD, Base, Patch, Segment, Vector, noise

base = Base(MIB)
patch = Patch(
    base, MIB, [Segment(0, [(0, MIB, DATA, 0)], data=noise(4096, "new") * 256, codec=ZSTD)]
)
vector = Vector("valid", patch)
