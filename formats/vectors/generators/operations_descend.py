"""Operations out of order."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(4096, 4096, ZERO, 0), (0, 4096, ZERO, 0)])])
vector = Vector("format", patch)
