"""A range of the target in two segments."""

from handmade import DATA, MIB, TARGET, ZERO, ZSTD, Base, Patch, Segment, Vector, text, zstd_frame

base = Base(3 * MIB)
segments = [
    Segment(0, [(0, 4096, ZERO, 0)]),
    Segment(1, [(0, 8192, ZERO, 0)]),
    Segment(
        2,
        [(0, 4096, DATA, 0)],
        data=text(4096),
        codec=ZSTD,
        payload=zstd_frame(text(4096)),
        ranges=[(MIB - 8, 16, TARGET)],
        references=[0, 1],
    ),
]
patch = Patch(base, 3 * MIB, segments)
vector = Vector("format", patch)
