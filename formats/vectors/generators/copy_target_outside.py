"""COPY_TARGET from behind the target."""

from handmade import COPY_TARGET, MIB, ZERO, Base, Patch, Segment, Vector

base = Base(2 * MIB)
segments = [
    Segment(0, [(0, 4096, ZERO, 0)]),
    Segment(1, [(0, 4096, COPY_TARGET, 2 * MIB)], references=[0]),
]
patch = Patch(base, 2 * MIB, segments)
vector = Vector("format", patch)
