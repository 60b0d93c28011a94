"""An empty file."""

from handmade import MIB, Base, Patch, Vector

base = Base(MIB)
patch = Patch(base, MIB, damage=lambda patch: patch[:0])
vector = Vector("format", patch)
