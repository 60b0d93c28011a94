"""COPY_TARGET of what an earlier segment's DATA gave."""

from handmade import COPY_TARGET, DATA, MIB, Base, Patch, Segment, Vector, noise

base = Base(2 * MIB)
segments = [
    Segment(0, [(0, 512, DATA, 0)], data=noise(512, "new")),
    Segment(1, [(8192, 4096, COPY_TARGET, 0)], references=[0]),
]
patch = Patch(base, 2 * MIB, segments)
vector = Vector("valid", patch)
