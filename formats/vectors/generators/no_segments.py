"""Base and target are the same: there is nothing but header and footer."""

from handmade import MIB, Base, Patch, Vector

base = Base(MIB)
patch = Patch(base, MIB)
vector = Vector("valid", patch)
