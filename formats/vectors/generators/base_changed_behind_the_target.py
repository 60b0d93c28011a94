"""One bit of the base is another, where the target has ended."""

from handmade import MIB, Base, Patch, Vector

base = Base(2 * MIB)
patch = Patch(base, MIB)
vector = Vector("base", patch, Base(2 * MIB, flip=2 * MIB - 1))
