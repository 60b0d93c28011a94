"""An applier does not depend on `users`."""

from handmade import COPY_TARGET, DATA, MIB, Base, Patch, Segment, Vector, text

base = Base(2 * MIB)
segments = [
    Segment(0, [(0, 512, DATA, 0)], data=text(512)),
    Segment(1, [(0, 4096, COPY_TARGET, 0)], references=[0]),
]
patch = Patch(base, 2 * MIB, segments, entry=lambda row: [*row[:4], 7 * row[0]])
vector = Vector("valid", patch)
