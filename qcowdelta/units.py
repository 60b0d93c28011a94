"""Units of length and the types that keep the two address spaces apart."""

import os
from typing import NewType

GuestOffset = NewType("GuestOffset", int)
"""A byte offset on the virtual disk."""

HostOffset = NewType("HostOffset", int)
"""A byte offset in a file that holds an image."""

ClusterIndex = NewType("ClusterIndex", int)
"""A guest cluster's number: guest offset divided by the cluster size."""

SECTOR = 512
KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40


def align_down(value: int, unit: int) -> int:
    """Return the largest multiple of ``unit`` that is not above ``value``."""
    return value - value % unit


def align_up(value: int, unit: int) -> int:
    """Return the smallest multiple of ``unit`` that is not below ``value``."""
    return -(-value // unit) * unit


def ceil_div(value: int, unit: int) -> int:
    """Return ``value / unit`` rounded up."""
    return -(-value // unit)


def readable(count: float) -> str:
    """Return a number of bytes as people read it: ``1.5 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.3g} {unit}"


def usable_cpus() -> int:
    """Return how many threads are worth starting."""
    return min(8, len(os.sched_getaffinity(0)))
