"""The second leaf of a segment is not what it should be."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector, digest, noise

base = Base(2 * MIB)
segments = [
    Segment(
        0,
        [(0, 4096, ZERO, 0)],
        leaf_digests=[digest(bytes(4096) + noise(MIB, "base")[4096:]), bytes(32)],
    ),
]
patch = Patch(base, 2 * MIB, segments, segment_bits=21)
vector = Vector("corrupt", patch)
