"""An operation that ends behind the target, in a short last segment."""

from handmade import ZERO, Base, Patch, Segment, Vector

base = Base(512)
patch = Patch(base, 512, [Segment(0, [(0, 1024, ZERO, 0)])])
vector = Vector("format", patch)
