"""2^22 segments of a target that may have them."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(
    base,
    MIB,
    [Segment(0, [(0, 4096, ZERO, 0)])],
    header={"target_size": 1 << 42, "segment_count": 1 << 22},
)
vector = Vector("format", patch)
