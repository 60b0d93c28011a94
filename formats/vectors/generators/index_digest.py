"""One bit of the index is another."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector, flipped

base = Base(2 * MIB)
segments = [
    Segment(0, [(0, 4096, ZERO, 0)]),
    Segment(1, [(0, 8192, ZERO, 0)]),
]
patch = Patch(base, 2 * MIB, segments, index_damage=lambda index: flipped(index, 40))
vector = Vector("corrupt", patch)
