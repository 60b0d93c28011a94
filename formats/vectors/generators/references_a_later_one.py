"""A segment that refers to a later one."""

from handmade import COPY_TARGET, MIB, ZERO, Base, Patch, Segment, Vector

base = Base(2 * MIB)
segments = [
    Segment(0, [(0, 4096, COPY_TARGET, MIB)], references=[1]),
    Segment(1, [(0, 8192, ZERO, 0)]),
]
patch = Patch(base, 2 * MIB, segments)
vector = Vector("format", patch)
