"""Cut off inside of the header's digest."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(0, 4096, ZERO, 0)])], damage=lambda patch: patch[:167])
vector = Vector("format", patch)
