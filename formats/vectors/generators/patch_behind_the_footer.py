"""A second patch follows the first."""

from handmade import MIB, Base, Patch, Vector

base = Base(2 * MIB)
patch = Patch(base, 2 * MIB, [], damage=lambda patch: patch * 2)
vector = Vector("format", patch)
