"""An operation of no bytes."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(0, 0, ZERO, 0)])])
vector = Vector("format", patch)
