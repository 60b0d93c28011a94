"""A digest of a disk's whole content that costs only what the disk holds.

The disk is cut into leaves of 1 MiB of guest space (the last may be shorter). A leaf's hash is
BLAKE3 of its content, a node's is BLAKE3 of up to 256 hashes below it, one behind the other;
the root is BLAKE3 of the size (8 bytes, big-endian) and the topmost node. An all-zero leaf is
hashed as its zeros are, which is known without reading, so a sparse disk costs little. The tree
is specified in formats/qcow2-profile.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
from blake3 import blake3

from .extents import Extents, Kind, cut_at, runs
from .image import Image
from .units import MIB, ceil_div, usable_cpus

LEAF = MIB
FANOUT = 256


def content_digest(image: Image) -> bytes:
    """Return the 32-byte root of an image's hash tree.

    Raises:
        CorruptImageError: content cannot be read.
    """
    leaves = ceil_div(image.size, LEAF)
    level = 0
    while FANOUT**level < leaves:
        level += 1
    with ThreadPoolExecutor(usable_cpus(), "qcowdelta-hash") as pool:
        top = _Tree(image, pool).node(max(level, 1), 0, leaves)
    return blake3(image.size.to_bytes(8, "big") + top).digest()


@cache
def _zero_leaf(length: int) -> bytes:
    return blake3(bytes(length)).digest()


@cache
def _zero_node(level: int) -> bytes:
    """Return the hash of a full node over nothing but zeros."""
    below = _zero_node(level - 1) if level > 1 else _zero_leaf(LEAF)
    return blake3(below * FANOUT).digest()


class _Tree:
    def __init__(self, image: Image, pool: ThreadPoolExecutor) -> None:
        self._image, self._pool = image, pool

    def node(self, level: int, first: int, count: int) -> bytes:
        """Return the hash of a node over ``count`` leaves from leaf ``first`` on."""
        below = FANOUT ** (level - 1)
        unmapped = self._image.next_mapped(first * LEAF) >= (first + count) * LEAF
        if unmapped and count == FANOUT**level:
            return _zero_node(level)
        if level == 1:
            return blake3(b"".join(self._leaves(first, count))).digest()
        children = range(first, first + count, below)
        hashes = (self.node(level - 1, at, min(below, first + count - at)) for at in children)
        return blake3(b"".join(hashes)).digest()

    def _leaves(self, first: int, count: int) -> Iterator[bytes]:
        start, stop = first * LEAF, min((first + count) * LEAF, self._image.size)
        if start >= stop:
            return iter(())
        rows = self._image.extents(start, stop)
        rows = cut_at(rows, np.arange(start, stop, LEAF))
        begin, counts = runs(rows["start"] // LEAF)
        groups = [rows[i : i + n] for i, n in zip(begin.tolist(), counts.tolist(), strict=True)]
        return self._pool.map(self._leaf, groups)

    def _leaf(self, rows: Extents) -> bytes:
        length = int(rows["length"].sum())
        if (rows["kind"] == Kind.ZERO).all():
            return _zero_leaf(length)
        buffer = bytearray(length)
        self._image.reader().read_extents(rows, memoryview(buffer))
        return blake3(buffer).digest()
