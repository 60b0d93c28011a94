"""2^64 - 1 bytes of segments."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(0, 4096, ZERO, 0)])], header={"segments_length": 2**64 - 1})
vector = Vector("format", patch)
