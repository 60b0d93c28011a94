"""An incompatible feature that is not known."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(
    base, MIB, [Segment(0, [(0, 4096, ZERO, 0)])], header={"incompatible_features": 1 << 63}
)
vector = Vector("unsupported", patch)
