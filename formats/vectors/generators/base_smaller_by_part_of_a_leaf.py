"""The base's last leaf goes on with zeros in a segment that is not stored."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB + 512)
segments = [
    Segment(0, [(0, 4096, ZERO, 0)]),
]
patch = Patch(base, 2 * MIB, segments)
vector = Vector("valid", patch)
