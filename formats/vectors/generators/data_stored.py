"""DATA that is stored as it is."""

from handmade import DATA, MIB, Base, Patch, Segment, Vector, noise

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(0, 512, DATA, 0)], data=noise(512, "new"))])
vector = Vector("valid", patch)
