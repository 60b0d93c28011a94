"""A directory in a codec that there is not."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(0, 4096, ZERO, 0)], directory_codec=3)])
vector = Vector("format", patch)
