"""A segment that refers to one that is not stored."""

from handmade import COPY_TARGET, MIB, Base, Patch, Segment, Vector

base = Base(2 * MIB)
segments = [
    Segment(1, [(0, 4096, COPY_TARGET, 0)], references=[0]),
]
patch = Patch(base, 2 * MIB, segments)
vector = Vector("format", patch)
