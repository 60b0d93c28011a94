"""A list may name segments that nothing is taken from."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(2 * MIB)
segments = [
    Segment(0, [(0, 4096, ZERO, 0)]),
    Segment(1, [(0, 4096, ZERO, 0)], references=[0]),
]
patch = Patch(base, 2 * MIB, segments)
vector = Vector("valid", patch)
