"""Nobody looks at a section's padding."""

from handmade import MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(
    base, MIB, [Segment(0, [(0, 4096, ZERO, 0)])], sections=[b"\x01\0\0\0\x01\0\0\0a1234567"]
)
vector = Vector("valid", patch)
