"""Cut off where the footer should begin."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(0, 4096, ZERO, 0)])], damage=lambda patch: patch[:-56])
vector = Vector("format", patch)
