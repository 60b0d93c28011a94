"""Another memory than it takes."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(0, 4096, ZERO, 0)], head={"memory": MIB})])
vector = Vector("format", patch)
