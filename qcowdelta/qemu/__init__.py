"""QEMU's own programs: talking to them, and reading what only they can read."""
