"""Where the base has ended, SAME is zeros: in a stored segment, in its last leaf and behind it."""

from handmade import COPY_BASE, MIB, Base, Patch, Segment, Vector

base = Base(MIB + 512)
segments = [
    Segment(1, [(0, 4096, COPY_BASE, 0)]),
]
patch = Patch(base, 4 * MIB + 512, segments)
vector = Vector("valid", patch)
