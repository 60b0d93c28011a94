"""Base and target of size 0."""

from handmade import Base, Patch, Vector

base = Base(0)
patch = Patch(base, 0)
vector = Vector("valid", patch)
