"""Operations that overlap by a byte."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(0, 4096, ZERO, 0), (4095, 4096, ZERO, 0)])])
vector = Vector("format", patch)
