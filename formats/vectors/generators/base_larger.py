"""A target that ends inside the base's first leaf; no segment is stored there."""

from handmade import KIB, MIB, Base, Patch, Vector

base = Base(3 * MIB)
patch = Patch(base, 512 * KIB + 512)
vector = Vector("valid", patch)
