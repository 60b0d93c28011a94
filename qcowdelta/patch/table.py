"""A table from keys to blocks that never grows: keys in the same place drive each other out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..units import ceil_div
from .blocks import BLOCK

_MIX = np.uint64(0x9E3779B97F4A7C15)
_MIN_BITS, _MAX_BITS = 10, 23

Offsets = npt.NDArray[np.int64]


class Table:
    """Maps keys to offsets, each key to one place, which it shares with others.

    When more keys are put than there are places, an even sample of them remains.

    Args:
        expected: how many keys are expected.
        size: the length of the disk in bytes; offsets are those of blocks in it.
    """

    def __init__(self, expected: int, size: int) -> None:
        bits = min(max((2 * expected).bit_length(), _MIN_BITS), _MAX_BITS)
        self._shift = np.uint64(64 - bits)
        # One more than the block's number, so 4 bytes each on disks of up to 16 TiB.
        self._block = np.zeros(1 << bits, np.min_scalar_type(ceil_div(size, BLOCK)))
        self._check = np.zeros(1 << bits, np.uint32)
        self.crowded = expected > 1 << bits

    def _places(self, keys: npt.NDArray[np.uint64]) -> tuple[Offsets, npt.NDArray[np.uint32]]:
        mixed = keys * _MIX
        return (mixed >> self._shift).astype(np.int64), mixed.astype(np.uint32)

    def put(self, keys: npt.NDArray[np.uint64], offsets: Offsets) -> None:
        """Remember where keys are; of equal ones the last counts."""
        place, check = self._places(keys)
        if self.crowded:
            # What was put last must not drive out all the rest: a key's own rank decides.
            stays = (self._block[place] == 0) | (check >= self._check[place])
            order = np.flatnonzero(stays)[np.argsort(check[stays], kind="stable")]
            place, check, offsets = place[order], check[order], offsets[order]
        self._block[place] = offsets // BLOCK + 1
        self._check[place] = check

    def put_new(self, keys: npt.NDArray[np.uint64], offsets: Offsets) -> None:
        """Remember where keys are, but leave what is in their places."""
        free = self._block[self._places(keys)[0]] == 0
        self.put(keys[free][::-1], offsets[free][::-1])

    def get(self, keys: npt.NDArray[np.uint64]) -> Offsets:
        """Return where keys are; -1 for those that are not known."""
        place, check = self._places(keys)
        block = self._block[place].astype(np.int64)
        known = (self._check[place] == check) & (block > 0)
        return np.where(known, (block - 1) * BLOCK, -1)
