"""A directory that takes more room than it would without a codec."""

import struct

from handmade import MIB, ZERO, ZSTD, Base, Patch, Segment, Vector, zstd_frame

base = Base(MIB)
directory = struct.pack("<IIBQ", 0, 4096, ZERO, 0)
patch = Patch(
    base,
    MIB,
    [Segment(0, [(0, 4096, ZERO, 0)], directory_codec=ZSTD, directory=zstd_frame(directory))],
)
vector = Vector("format", patch)
