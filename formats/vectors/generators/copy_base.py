"""COPY_BASE from behind and from before its own place."""

from handmade import COPY_BASE, MIB, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(
    base, MIB, [Segment(0, [(0, 4096, COPY_BASE, MIB - 4096), (8192, 4096, COPY_BASE, 0)])]
)
vector = Vector("valid", patch)
