"""A header of 64 KiB and 8 bytes."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(
    base,
    MIB,
    [Segment(0, [(0, 4096, ZERO, 0)])],
    sections=[(1, bytes(2**16 - 168))],
    damage=lambda patch: patch[:4096],
)
vector = Vector("format", patch)
