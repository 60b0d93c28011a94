"""A range of the base behind one of the target."""

from handmade import (
    BASE,
    DATA,
    MIB,
    TARGET,
    ZERO,
    ZSTD,
    Base,
    Patch,
    Segment,
    Vector,
    text,
    zstd_frame,
)

base = Base(2 * MIB)
segments = [
    Segment(0, [(0, 4096, ZERO, 0)]),
    Segment(
        1,
        [(0, 4096, DATA, 0)],
        data=text(4096),
        codec=ZSTD,
        payload=zstd_frame(text(4096)),
        ranges=[(0, 4096, TARGET), (0, 4096, BASE)],
        references=[0],
    ),
]
patch = Patch(base, 2 * MIB, segments)
vector = Vector("format", patch)
