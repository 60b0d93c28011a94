"""The base has a sector more."""

from handmade import MIB, Base, Patch, Vector

base = Base(MIB)
patch = Patch(base, MIB)
vector = Vector("base", patch, Base(MIB + 512))
