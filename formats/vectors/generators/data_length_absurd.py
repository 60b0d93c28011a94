"""A payload that decodes to 4 GiB."""

from handmade import DATA, MIB, ZSTD, Base, Patch, Segment, Vector, text

base = Base(MIB)
patch = Patch(
    base,
    MIB,
    [
        Segment(
            0, [(0, 4096, DATA, 0)], data=text(4096), codec=ZSTD, head={"data_length": 2**32 - 1}
        )
    ],
)
vector = Vector("format", patch)
