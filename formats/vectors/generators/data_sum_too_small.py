"""DATA operations that leave a byte of the payload."""

from handmade import DATA, MIB, Base, Patch, Segment, Vector, text

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(0, 4095, DATA, 0)], data=text(4096))])
vector = Vector("format", patch)
