"""A chain of copies, whose lists hold all that is needed."""

from handmade import COPY_TARGET, DATA, MIB, Base, Patch, Segment, Vector, noise

base = Base(3 * MIB)
segments = [
    Segment(0, [(0, 512, DATA, 0)], data=noise(512, "new")),
    Segment(1, [(0, 4096, COPY_TARGET, 0)], references=[0]),
    Segment(2, [(0, 4096, COPY_TARGET, MIB)], references=[0, 1]),
]
patch = Patch(base, 3 * MIB, segments)
vector = Vector("valid", patch)
