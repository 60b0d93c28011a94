"""Operations begin and end at any byte."""

from handmade import COPY_BASE, DATA, MIB, ZERO, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(
    base,
    MIB,
    [
        Segment(
            0,
            [(1, 1, ZERO, 0), (2, 3, DATA, 0), (77, 1001, COPY_BASE, 5003), (MIB - 1, 1, DATA, 0)],
            data=b"abcd",
        )
    ],
)
vector = Vector("valid", patch)
