"""An operation that ends a byte behind its segment."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(2 * MIB)
patch = Patch(base, 2 * MIB, [Segment(0, [(MIB - 4096, 4097, ZERO, 0)])])
vector = Vector("format", patch)
