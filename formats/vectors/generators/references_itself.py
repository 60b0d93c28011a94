"""A segment that refers to itself."""

from handmade import COPY_TARGET, MIB, Base, Patch, Segment, Vector

base = Base(2 * MIB)
segments = [
    Segment(0, [(0, 4096, COPY_TARGET, 8192)], references=[0]),
]
patch = Patch(base, 2 * MIB, segments)
vector = Vector("format", patch)
