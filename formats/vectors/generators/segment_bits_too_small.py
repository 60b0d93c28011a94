"""Segments of 512 KiB."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(0, 4096, ZERO, 0)])], header={"segment_bits": 19})
vector = Vector("format", patch)
