"""Compatible bits that are not known mean nothing."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(
    base, MIB, [Segment(0, [(0, 4096, ZERO, 0)])], header={"compatible_features": 1 << 63 | 5}
)
vector = Vector("valid", patch)
