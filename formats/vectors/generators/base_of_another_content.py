"""Another base."""

from handmade import COPY_BASE, MIB, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(0, 4096, COPY_BASE, 4096)])])
vector = Vector("base", patch, Base(MIB, "another"))
