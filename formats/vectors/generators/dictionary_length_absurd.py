"""A dictionary of 4 GiB."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(0, 4096, ZERO, 0)], head={"dictionary_length": 2**32 - 1})])
vector = Vector("format", patch)
