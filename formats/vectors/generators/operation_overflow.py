"""An operation whose end overflows 32 bits."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(4096, 2**32 - 4096, ZERO, 0)])])
vector = Vector("format", patch)
