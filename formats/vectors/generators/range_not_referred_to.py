"""A range of the target in a segment that is not in the list."""

from handmade import DATA, MIB, TARGET, ZERO, ZSTD, Base, Patch, Segment, Vector, text, zstd_frame

base = Base(2 * MIB)
segments = [
    Segment(0, [(0, 4096, ZERO, 0)]),
    Segment(
        1,
        [(0, 4096, DATA, 0)],
        data=text(4096),
        codec=ZSTD,
        payload=zstd_frame(text(4096)),
        ranges=[(0, 4096, TARGET)],
    ),
]
patch = Patch(base, 2 * MIB, segments)
vector = Vector("format", patch)
