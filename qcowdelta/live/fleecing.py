"""Reading a disk as of one moment through an overlay that gets what the guest overwrites."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from ..errors import NbdError
from ..extents import Offsets
from ..qemu.export import ExportFile
from ..qemu.nbd import ALLOCATION, ZERO, NbdClient
from ..units import SECTOR

DEPTH = "qemu:allocation-depth"
"""The context that tells how far down the chain a range is: 1 is the overlay itself."""
_OVERLAY = 1


class FleecingFile(ExportFile):
    """The disk as of the moment, for any thread; what can break fails, and is never wrong.

    Args:
        connect: makes a connection to the export of the overlay, with allocation and depth.
        limit: how many there may be.
        path: what the disk is to people.
        probe: a connection to an export whose reads fail from when the view is broken; None:
            it cannot break.
    """

    def __init__(
        self,
        connect: Callable[[], NbdClient],
        limit: int,
        path: str,
        probe: NbdClient | None,
    ) -> None:
        self._probe = probe
        self._probing = threading.Lock()
        self._sector = memoryview(bytearray(SECTOR))
        super().__init__(connect, limit, path)
        with self._connection() as client:
            if DEPTH not in client.contexts:
                raise NbdError(f"{path}: QEMU does not tell what the overlay has")

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer from an offset; what lies beyond the end is zeros.

        Raises:
            NbdError: it cannot be read, or the view was broken before it was.
        """
        super().read_into(buffer, offset)
        self._check()

    def status(self, start: int, stop: int) -> Offsets:
        """Return what reads as zeros, by metadata that is sure to be of the moment.

        An overlay and what lies below it are not asked at once: the guest may write in between,
        and the disk tell of its new content. It has not where the overlay still has nothing when
        it is asked again after that; elsewhere the content counts as data.

        Raises:
            NbdError: it cannot be told, or the view was broken before it was.
        """
        with self._connection() as client:
            told = client.block_status(ALLOCATION, start, stop)
            depth = client.block_status(DEPTH, start, stop)
        self._check()
        edges = np.append(np.union1d(told[:, 0], depth[:, 0]), stop)
        zero = _flags(told, edges) & ZERO
        out = np.stack([edges[:-1], np.diff(edges), zero], axis=1)
        out[_flags(depth, edges) == _OVERLAY, 2] = 0
        return out

    def _check(self) -> None:
        """Ask whether the view holds still, which says that all read before was right."""
        if self._probe is not None:
            with self._probing:
                self._probe.read_into(self._sector, 0)


def _flags(rows: Offsets, edges: Offsets) -> Offsets:
    """Return the flags of the rows that the ranges between the edges lie in."""
    flags: Offsets = rows[np.searchsorted(rows[:, 0], edges[:-1], side="right") - 1, 2]
    return flags
