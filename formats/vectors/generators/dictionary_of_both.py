"""A dictionary of base, then target; base_digest has the bytes of COPY_BASE before its."""

from handmade import BASE, COPY_BASE, DATA, MIB, TARGET, ZSTD, Base, Patch, Segment, Vector, noise

base = Base(2 * MIB)
segments = [
    Segment(0, [(0, 2048, DATA, 0)], data=noise(2048, "new")),
    Segment(
        1,
        [(0, 1024, DATA, 0), (4096, 4096, COPY_BASE, 8192)],
        data=noise(2048, "new")[9:521] + noise(MIB, "base")[3:515],
        codec=ZSTD,
        ranges=[(0, 4096, BASE), (0, 2048, TARGET)],
        references=[0],
    ),
]
patch = Patch(base, 2 * MIB, segments)
vector = Vector("valid", patch)
