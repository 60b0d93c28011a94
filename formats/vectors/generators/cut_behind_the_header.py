"""Cut off where the first segment should begin."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(0, 4096, ZERO, 0)])], damage=lambda patch: patch[:168])
vector = Vector("format", patch)
