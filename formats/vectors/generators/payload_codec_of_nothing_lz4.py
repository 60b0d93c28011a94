"""An empty block or frame, which there is not, where there is no DATA."""

from handmade import LZ4, MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(base, MIB, [Segment(0, [(0, 4096, ZERO, 0)], codec=LZ4, payload=b"")])
vector = Vector("corrupt", patch)
