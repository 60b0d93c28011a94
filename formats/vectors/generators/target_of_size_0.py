"""Nothing is left."""

from handmade import MIB, Base, Patch, Vector

base = Base(MIB)
patch = Patch(base, 0)
vector = Vector("valid", patch)
