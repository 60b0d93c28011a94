"""Another magic at the end."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(0, 4096, ZERO, 0)])], footer={"magic": b"QCPEND\n\n"})
vector = Vector("format", patch)
