"""Memory, and no segment."""

from handmade import MIB, Base, Patch, Vector

base = Base(MIB)
patch = Patch(base, MIB, header={"memory": 1})
vector = Vector("format", patch)
