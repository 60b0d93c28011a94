"""A segment that wants other bytes of the base than there are."""

from handmade import COPY_BASE, MIB, Base, Patch, Segment, Vector

base = Base(MIB)
patch = Patch(
    base, MIB, [Segment(0, [(0, 4096, COPY_BASE, 4096)], head={"base_digest": bytes(32)})]
)
vector = Vector("base", patch)
