"""Going through a base once: the leaves of its hash tree, and where its blocks are."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from blake3 import blake3

from ..delta import Progress
from ..extents import Extents, Offsets
from ..hashtree import LEAF, TreeHasher, leaf_length, mapped_leaves, zero_leaf
from ..image import Image
from ..threads import in_order
from ..units import ceil_div
from .blocks import BLOCK, Blocks, Features, Keys, block_keys, features
from .table import Table

_AHEAD = 8


@dataclass(frozen=True)
class Leaf:
    """One leaf of the base.

    Attributes:
        index: its number.
        digest: BLAKE3 of its content.
        offsets: guest offsets of its blocks that are not zeros.
        keys: the hash of each.
        features: the features of each; none where they are not wanted.
    """

    index: int
    digest: bytes
    offsets: Offsets
    keys: Keys
    features: Features


class BaseScan:
    """What a scan of a base found.

    Attributes:
        equal: finds blocks by their hash.
        similar: finds blocks by a feature.
        digest: the root of the base's hash tree.
    """

    def __init__(self, base: Image, per: int | None) -> None:
        self._base, self._per = base, per
        # Not how much of it holds data: the patch must not depend on how the base is stored.
        blocks = ceil_div(base.size, BLOCK)
        self.equal = Table(blocks, base.size)
        self.similar = Table(blocks * (BLOCK // per) if per else 0, base.size)
        self._leaves: dict[int, bytes] = {}
        self.digest = b""

    def run(self, pool: Executor, progress: Progress | None = None) -> None:
        """Read the base.

        Raises:
            CorruptImageError: content cannot be read.
        """
        tree = TreeHasher(self._base.size)
        for leaf in in_order(pool, self._scan, mapped_leaves(self._base), _AHEAD):
            tree.add(leaf.index, leaf.digest)
            self._leaves[leaf.index] = leaf.digest
            self.equal.put(leaf.keys, leaf.offsets)
            if self._per:
                each = np.repeat(leaf.offsets, leaf.features.shape[1])
                self.similar.put(leaf.features.reshape(-1).astype(np.uint64), each)
            if progress is not None:
                progress(leaf.index * LEAF, self._base.size)
        self.digest = tree.root()

    def _scan(self, rows: Extents) -> Leaf:
        length = int(rows["length"].sum())
        buffer = bytearray(-(-length // BLOCK) * BLOCK)
        self._base.reader().read_extents(rows, memoryview(buffer)[:length])
        blocks = np.frombuffer(buffer, np.uint8).reshape(-1, BLOCK)
        keys = block_keys(blocks)
        start = int(rows["start"][0])
        whole = np.flatnonzero(keys[: length // BLOCK])
        found: Blocks = blocks[whole] if whole.size < len(blocks) else blocks
        return Leaf(
            start // LEAF,
            blake3(memoryview(buffer)[:length]).digest(),
            start + whole * BLOCK,
            keys[whole],
            features(found, self._per) if self._per else np.empty((0, 0), np.uint32),
        )

    def leaf(self, index: int, size: int) -> bytes | None:
        """Return the hash of a leaf that is the same on a disk of another size.

        None where the two disks' leaves are not equally long, so that it must be read.
        """
        length = leaf_length(size, index)
        if index not in self._leaves:
            return zero_leaf(length)
        return self._leaves[index] if length == leaf_length(self._base.size, index) else None

    def leaves(self) -> Iterator[int]:
        """Return the numbers of the base's leaves that are not zeros, in order."""
        return iter(self._leaves)
