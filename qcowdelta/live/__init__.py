"""A running VM: looking at it, reading a disk of it as of one moment, and its checkpoints."""
