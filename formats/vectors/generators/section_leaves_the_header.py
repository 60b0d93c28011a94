"""A section that is longer than the header."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(
    base, MIB, [Segment(0, [(0, 4096, ZERO, 0)])], sections=[b"\x01\0\0\0\x09\0\0\0abcdefgh"]
)
vector = Vector("format", patch)
