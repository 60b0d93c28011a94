"""Segments of 8 MiB."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(0, 4096, ZERO, 0)])], header={"segment_bits": 23})
vector = Vector("format", patch)
