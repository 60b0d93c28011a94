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
from .threads import in_order
from .units import MIB, ceil_div, usable_cpus

LEAF = MIB
FANOUT = 256
_LEAVES_AT_ONCE = 64


def content_digest(image: Image) -> bytes:
    """Return the 32-byte root of an image's hash tree.

    Raises:
        CorruptImageError: content cannot be read.
    """
    tree = TreeHasher(image.size)
    for index, digest in leaf_digests(image):
        tree.add(index, digest)
    return tree.root()


def leaf_length(size: int, index: int) -> int:
    """Return how long a leaf is on a disk of ``size`` bytes; 0 beyond its end."""
    return max(0, min(LEAF, size - index * LEAF))


@cache
def zero_leaf(length: int) -> bytes:
    """Return the hash of a leaf of that many zeros."""
    return blake3(bytes(length)).digest()


@cache
def _zero_node(level: int) -> bytes:
    """Return the hash of a full node over nothing but zeros; level 0 is a leaf."""
    if level == 0:
        return zero_leaf(LEAF)
    return blake3(_zero_node(level - 1) * FANOUT).digest()


class TreeHasher:
    """Computes a root from leaves that come in order; those left out are zeros.

    Args:
        size: the disk's, bytes.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._leaves = ceil_div(size, LEAF)
        self._next = 0
        self._open: list[list[bytes]] = [[]]  # by level, the hashes that wait for their node

    def add(self, index: int, digest: bytes) -> None:
        """Take the hash of leaf ``index``, above all before it and inside the disk."""
        self._skip_to(index)
        self._push(0, digest)
        self._next = index + 1

    def _skip_to(self, index: int) -> None:
        while self._next < index:
            level = 0
            while not self._open[level] and self._next + FANOUT ** (level + 1) <= index:
                level += 1
                if level == len(self._open):
                    self._open.append([])
            self._push(level, _zero_node(level))
            self._next += FANOUT**level

    def _push(self, level: int, digest: bytes) -> None:
        waiting = self._open[level]
        waiting.append(digest)
        if len(waiting) == FANOUT:
            if level + 1 == len(self._open):
                self._open.append([])
            self._push(level + 1, blake3(b"".join(waiting)).digest())
            waiting.clear()

    def root(self) -> bytes:
        """Return the root; nothing can be added after that."""
        if self._next < self._leaves:
            self._skip_to(self._leaves - 1)
            self._push(0, zero_leaf(leaf_length(self._size, self._leaves - 1)))
        top = 1
        while FANOUT**top < self._leaves:
            top += 1
        self._open += [[] for _ in range(top + 1 - len(self._open))]
        for level in range(top):
            if self._open[level] or not self._leaves:
                self._push(level + 1, blake3(b"".join(self._open[level])).digest())
        return blake3(self._size.to_bytes(8, "big") + self._open[top][0]).digest()


def leaf_digests(image: Image, threads: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Yield (index, hash) of every leaf that metadata alone does not prove to be zeros, in order.

    Raises:
        CorruptImageError: content cannot be read.
    """

    def digest(rows: Extents) -> tuple[int, bytes]:
        buffer = bytearray(int(rows["length"].sum()))
        image.reader().read_extents(rows, memoryview(buffer))
        return int(rows["start"][0]) // LEAF, blake3(buffer).digest()

    with ThreadPoolExecutor(threads or usable_cpus(), "qcowdelta-hash") as pool:
        yield from in_order(pool, digest, mapped_leaves(image), _LEAVES_AT_ONCE)


def mapped_leaves(image: Image) -> Iterator[Extents]:
    """Yield the extents of each leaf that is not zeros by metadata, in order."""
    for rows in mapped_windows(image):
        start, stop = int(rows["start"][0]), int(rows["start"][-1] + rows["length"][-1])
        rows = cut_at(rows, np.arange(start, stop, LEAF))
        begin, counts = runs(rows["start"] // LEAF)
        for i, n in zip(begin.tolist(), counts.tolist(), strict=True):
            leaf = rows[i : i + n]
            if (leaf["kind"] != Kind.ZERO).any():
                yield leaf


def mapped_windows(image: Image) -> Iterator[Extents]:
    """Yield the extents of each window of whole leaves in which anything is mapped, in order."""
    window = _LEAVES_AT_ONCE * LEAF
    position = image.next_mapped(0)
    while position < image.size:
        start = position // window * window
        stop = min(start + window, image.size)
        yield image.extents(start, stop)
        position = image.next_mapped(stop) if stop < image.size else stop
