"""A skippable frame of as many bytes as there should be."""

from handmade import DATA, MIB, ZSTD, Base, Patch, Segment, Vector

base = Base(MIB)
payload = b"\x50\x2a\x4d\x18" + (4096).to_bytes(4, "little") + bytes(4000)
patch = Patch(
    base, MIB, [Segment(0, [(0, 4096, DATA, 0)], data=bytes(4096), codec=ZSTD, payload=payload)]
)
vector = Vector("corrupt", patch)
