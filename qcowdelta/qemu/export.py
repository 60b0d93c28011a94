"""An NBD export as the lowest layer of an image: what it has, and its bytes."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

import numpy as np

from ..extents import EXTENT, Extents, Kind, Offsets
from ..layer import Source
from ..units import GIB
from .nbd import ALLOCATION, ZERO, NbdClient

_STRIDE = GIB  # how far is looked at a time for what is mapped
_UNIT = 4096
_numbers = itertools.count()


class ExportFile:
    """The content of an export, as a file in which offsets are guest offsets; for any thread.

    Args:
        connect: makes a connection; each thread that reads gets one of its own.
        limit: how many connections there may be.
        path: what the export is to people.

    Attributes:
        size: its length, bytes.
        key: like no other file's.

    Raises:
        NbdError: it cannot be connected to.
    """

    def __init__(self, connect: Callable[[], NbdClient], limit: int, path: str) -> None:
        self.path = path
        self.key: tuple[int, ...] = (-2, next(_numbers))
        self.mtime_ns = 0
        self._connect = connect
        self._free = threading.Semaphore(limit)
        self._lock = threading.Lock()
        self._all: list[NbdClient] = [connect()]
        self._idle = list(self._all)
        self.size = self._all[0].size

    def fileno(self) -> None:
        """Return that there is no descriptor."""
        return

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer from an offset; what lies beyond the end is zeros.

        Raises:
            NbdError: it cannot be read.
        """
        inside = max(0, min(len(buffer), self.size - offset))
        if inside:
            self._use(lambda client: client.read_into(buffer[:inside], offset))
        if inside < len(buffer):
            buffer[inside:] = bytes(len(buffer) - inside)

    def block_status(self, start: int, stop: int) -> Offsets:
        """Return what :meth:`.NbdClient.block_status` does, of what is allocated.

        Raises:
            NbdError: it cannot be told.
        """
        found: list[Offsets] = []
        self._use(lambda client: found.append(_status(client, start, stop)))
        return found[0]

    def _use(self, work: Callable[[NbdClient], None]) -> None:
        with self._free:
            with self._lock:
                client = self._idle.pop() if self._idle else None
            if client is None:
                client = self._connect()
                with self._lock:
                    self._all.append(client)
            try:
                work(client)
            finally:
                with self._lock:
                    self._idle.append(client)

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            clients, self._all, self._idle = self._all, [], []
        for client in clients:
            client.close()


def _status(client: NbdClient, start: int, stop: int) -> Offsets:
    if ALLOCATION in client.contexts:
        return client.block_status(ALLOCATION, start, stop)
    return np.array([[start, stop - start, 0]], np.int64)


class ExportLayer:
    """An export as a layer that has all of its disk: data, and zeros by metadata.

    Args:
        file: the export; the layer closes it.
        format: the format's name, as qemu-img has it.
    """

    changes_only = False

    def __init__(self, file: ExportFile, format: str) -> None:  # noqa: A002 # term of qemu-img
        self.file = file
        self.format = format
        self.size = file.size
        self.unit = _UNIT
        self.source = Source(file, _UNIT)

    def extents(self, start: int, stop: int) -> Extents:
        """Return what ``[start, stop)`` is: ZERO or DATA.

        Raises:
            NbdError: it cannot be told.
        """
        rows = self.file.block_status(start, stop)
        out = np.zeros(len(rows), EXTENT)
        out["start"] = out["host"] = rows[:, 0]
        out["length"] = rows[:, 1]
        out["kind"] = np.where(rows[:, 2] & ZERO, Kind.ZERO, Kind.DATA)
        return out

    def next_mapped(self, start: int) -> int | None:
        """Return where the next range begins that does not read as zeros by metadata."""
        while start < self.size:
            stop = min(start + _STRIDE, self.size)
            rows = self.file.block_status(start, stop)
            data = rows[(rows[:, 2] & ZERO) == 0]
            if data.size:
                return int(data[0, 0])
            start = stop
        return None

    def close(self) -> None:
        """Close the connections."""
        self.file.close()
