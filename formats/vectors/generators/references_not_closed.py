"""A list without what a segment it names needs."""

from handmade import COPY_TARGET, MIB, ZERO, Base, Patch, Segment, Vector

base = Base(3 * MIB)
segments = [
    Segment(0, [(0, 4096, ZERO, 0)]),
    Segment(1, [(0, 4096, COPY_TARGET, 0)], references=[0]),
    Segment(2, [(0, 4096, COPY_TARGET, MIB)], references=[1]),
]
patch = Patch(base, 3 * MIB, segments)
vector = Vector("format", patch)
