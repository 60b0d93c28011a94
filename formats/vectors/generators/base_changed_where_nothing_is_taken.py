"""One bit of the base is another, where the patch takes nothing."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(3 * MIB)
patch = Patch(base, 3 * MIB, [Segment(0, [(0, 4096, ZERO, 0)])])
vector = Vector("base", patch, Base(3 * MIB, flip=3 * MIB - 1))
