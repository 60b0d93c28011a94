"""Ranges that do not make up the dictionary's length."""

from handmade import BASE, DATA, MIB, ZSTD, Base, Patch, Segment, Vector, text, zstd_frame

base = Base(MIB)
patch = Patch(
    base,
    MIB,
    [
        Segment(
            0,
            [(0, 4096, DATA, 0)],
            data=text(4096),
            codec=ZSTD,
            payload=zstd_frame(text(4096)),
            ranges=[(0, 4096, BASE)],
            head={"dictionary_length": 4095, "memory": MIB + 4096 + 4095 + 17 + 13},
        )
    ],
)
vector = Vector("format", patch)
