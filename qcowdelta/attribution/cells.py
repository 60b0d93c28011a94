"""The disk in equal ranges, for a map: what changed in each, and what most of it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..delta import ChangeKind
from ..disk.kinds import SpaceKind
from ..disk.space import NOBODY, Index, stops
from ..extents import Offsets, spread
from ..units import ceil_div
from .figures import Cells

if TYPE_CHECKING:
    from ..disk.diskmap import DiskMap

_AT_ONCE = 1 << 20
_KINDS = len(SpaceKind)


class CellSums:
    """Adds changes up by cell, as they come.

    Args:
        disk: the disk.
        granularity: cells are whole granules.
        cells: how many there are at most.
    """

    def __init__(self, disk: DiskMap, granularity: int, cells: int) -> None:
        self._rows = disk.spaces
        granules = ceil_div(max(disk.size, 1), granularity)
        self.size = ceil_div(granules, max(cells, 1)) * granularity
        self.count = ceil_div(max(disk.size, 1), self.size)
        self._changed = np.zeros((len(ChangeKind), self.count), np.int64)
        self._kinds = np.zeros((_KINDS, self.count), np.int64)
        self._owner = np.full(self.count, NOBODY, np.int64)
        self._open: tuple[Offsets, Offsets] = (np.empty(0, np.int64), np.empty(0, np.int64))

    def add(self, kind: npt.NDArray[np.uint8], row: Index, start: Offsets, length: Offsets) -> None:
        """Take pieces of changes: their kind of change, the record each lies in, and where."""
        for at in range(0, start.size, _AT_ONCE):
            some = slice(at, at + _AT_ONCE)
            which, cell, inside = self._split(start[some], length[some])
            np.add.at(self._changed, (kind[some][which].astype(np.int64) - 1, cell), inside)
            records = self._rows[row[some][which]]
            np.add.at(self._kinds, (records["kind"], cell), inside)
            self._add_owners(records["owner"], cell, inside)

    def _split(self, start: Offsets, length: Offsets) -> tuple[Index, Index, Offsets]:
        """Cut ranges at the borders of cells: which range, which cell, how many bytes."""
        first = start // self.size
        which, cell = spread(first, (start + length - 1) // self.size - first + 1)
        low = np.maximum(start[which], cell * self.size)
        high = np.minimum((start + length)[which], (cell + 1) * self.size)
        return which, cell, high - low

    def _add_owners(self, owner: npt.NDArray[np.int32], cell: Index, inside: Offsets) -> None:
        """Find who has most of each cell. Changes come in order: only the last cell goes on."""
        key = (cell.astype(np.int64) << 32) | (owner.astype(np.int64) & 0xFFFFFFFF)
        key, weight = np.concatenate([self._open[0], key]), np.append(self._open[1], inside)
        key, index = np.unique(key, return_inverse=True)
        sums = np.zeros(key.size, np.int64)
        np.add.at(sums, index, weight)
        cells = key >> 32
        order = np.lexsort((sums, cells))
        last = order[np.flatnonzero(np.append(cells[order][1:] != cells[order][:-1], True))]
        self._owner[cells[last]] = (key[last] & 0xFFFFFFFF).astype(np.int32)
        goes_on = cells == cells[-1]
        self._open = (key[goes_on], sums[goes_on])

    def finish(self, index_of_owner: npt.NDArray[np.int32]) -> Cells:
        """Return the cells.

        Args:
            index_of_owner: for each owner the index of its file among those that are shown.
        """
        all_of = np.zeros((_KINDS, self.count), np.int64)
        for at in range(0, self._rows.size, _AT_ONCE):
            rows = self._rows[at : at + _AT_ONCE]
            which, cell, inside = self._split(rows["start"], stops(rows) - rows["start"])
            np.add.at(all_of, (rows["kind"][which], cell), inside)
        space = all_of.argmax(axis=0).astype(np.uint8)
        touched = self._kinds.any(axis=0)
        changed = np.where(touched, self._kinds.argmax(axis=0), space).astype(np.uint8)
        owned = self._owner != NOBODY
        file = np.full(self.count, -1, np.int32)
        file[owned] = index_of_owner[self._owner[owned]]
        return Cells(self.size, self._changed, space, changed, file)
