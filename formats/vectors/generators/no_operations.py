"""A segment without operations."""

from handmade import MIB, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [])])
vector = Vector("format", patch)
