"""A dirty bitmap of a running VM, as an export shows it."""

from __future__ import annotations

import numpy as np

from ..extents import Offsets
from ..qemu.nbd import NbdClient
from ..units import GIB, align_down

_DIRTY = 1
_WINDOW = 4 * GIB  # asked for at once, and kept until another part is wanted


def context(bitmap: str) -> str:
    """Return the NBD metadata context of an exported bitmap."""
    return f"qemu:dirty-bitmap:{bitmap}"


class NbdDirty:
    """What is dirty, by an NBD context; for one thread. See :class:`~qcowdelta.dirty.DirtyRanges`.

    Args:
        client: a connection to the export, which is closed with this.
        bitmap: the name of the bitmap.
        granularity: bytes to a bit of it.

    Attributes:
        size: how many bytes of the disk it tells of.
        granularity: the smallest length that it tells apart, bytes.
    """

    def __init__(self, client: NbdClient, bitmap: str, granularity: int) -> None:
        self._client, self._context = client, context(bitmap)
        self.size = client.size
        self.granularity = granularity
        self._start = self._stop = 0
        self._kept: Offsets = np.empty((0, 2), np.int64)

    def ranges(self, start: int, stop: int) -> Offsets:
        """Return what is dirty of ``[start, stop)``: [start, stop) pairs, sorted and apart.

        Raises:
            NbdError: the VM cannot tell.
        """
        found = [np.empty((0, 2), np.int64)]
        position = start
        while position < stop:
            self._look(position)
            found.append(self._kept)
            position = self._stop
        rows = np.clip(np.concatenate(found), start, stop)
        return _joined(rows[rows[:, 0] < rows[:, 1]])

    def next_dirty(self, start: int) -> int | None:
        """Return where something is dirty at or after ``start``; None: nowhere.

        Raises:
            NbdError: the VM cannot tell.
        """
        position = start
        while position < self.size:
            self._look(position)
            after = self._kept[self._kept[:, 1] > position]
            if after.size:
                return max(position, int(after[0, 0]))
            position = self._stop
        return None

    def _look(self, position: int) -> None:
        """Have the window at hand in which a position lies."""
        if not self._start <= position < self._stop:
            start = align_down(position, _WINDOW)
            stop = min(start + _WINDOW, self.size)
            rows = self._client.block_status(self._context, start, stop)
            dirty = rows[(rows[:, 2] & _DIRTY) != 0]
            self._kept = np.stack([dirty[:, 0], dirty[:, 0] + dirty[:, 1]], axis=1)
            self._start, self._stop = start, stop

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def _joined(rows: Offsets) -> Offsets:
    """Join neighbours: a run may go on in the next window."""
    if len(rows) < 2:
        return rows
    first = np.flatnonzero(np.append(True, rows[1:, 0] != rows[:-1, 1]))
    last = np.append(first[1:], len(rows)) - 1
    return np.stack([rows[first, 0], rows[last, 1]], axis=1)
