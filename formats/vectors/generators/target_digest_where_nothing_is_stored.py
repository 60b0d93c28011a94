"""A target of zeros, where nothing is stored and the base is none."""

from handmade import MIB, Base, Patch, Vector, root

base = Base(MIB)
patch = Patch(base, MIB, [], header={"target_digest": root(bytes(MIB))})
vector = Vector("corrupt", patch)
