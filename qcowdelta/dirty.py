"""Dirty ranges: what may have changed since some point in time, as a bitmap recorded it."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from .extents import Offsets


class DirtyRanges(Protocol):
    """What tells which ranges of a disk may differ from an earlier state of it; all else does not.

    It is asked by one thread only.
    """

    @property
    def size(self) -> int:
        """How many bytes of the disk it tells of."""

    @property
    def granularity(self) -> int:
        """The smallest length that it tells apart, bytes: a power of two, 512 or more."""

    def ranges(self, start: int, stop: int) -> Offsets:
        """Return what is dirty of ``[start, stop)``, which lies within its size.

        The array has shape (n, 2): [start, stop) in bytes, whole sectors, sorted and apart.
        """

    def next_dirty(self, start: int) -> int | None:
        """Return where something may be dirty at or after ``start``; None: nowhere."""


class Suspects:
    """What has to be looked at: the dirty ranges, and what lies beyond the end of either disk.

    Args:
        dirty: what may differ between two disks, as far as it tells.
        old_size, new_size: how long the disks are, bytes.
    """

    def __init__(self, dirty: DirtyRanges, old_size: int, new_size: int) -> None:
        self._dirty = dirty
        self._told = min(dirty.size, old_size, new_size)
        self.size = new_size
        self.granularity = dirty.granularity

    def ranges(self, start: int, stop: int) -> Offsets:
        """Return what is suspect of ``[start, stop)``, as :meth:`DirtyRanges.ranges` does."""
        inner = min(stop, self._told)
        found = self._dirty.ranges(start, inner) if start < inner else np.empty((0, 2), np.int64)
        if inner == stop:
            return found
        begin = max(start, self._told)
        if found.size and found[-1, 1] == begin:
            found = found.copy()
            found[-1, 1] = stop
            return found
        return np.concatenate([found, np.array([[begin, stop]], np.int64)])

    def next_dirty(self, start: int) -> int | None:
        """Return where something may be suspect at or after ``start``; None: nowhere."""
        found = self._dirty.next_dirty(start) if start < self._told else None
        if found is not None and found < self._told:
            return found
        at = max(start, self._told)
        return at if at < self.size else None
