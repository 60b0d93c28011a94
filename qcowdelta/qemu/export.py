"""An NBD export as the lowest layer of an image: what it has, and its bytes."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator

import numpy as np

from ..extents import EXTENT, Extents, Kind, Offsets, clip, coalesce
from ..layer import How, Source, SourceFile
from ..units import MIB
from .nbd import ALLOCATION, ZERO, NbdClient

_UNIT = 4096  # what most formats allocate at least; a window of a comparison is sized by it
_WINDOW = 64 * MIB
_WINDOWS = 16
_FARTHEST = 2048 * MIB
_numbers = itertools.count()


class ExportFile:
    """The content of an export, as a file in which offsets are guest offsets; for any thread.

    Args:
        connect: makes a connection, which is used by one thread at a time.
        limit: how many connections there may be.
        path: what the export is to people.

    Attributes:
        size: its length, bytes.
        key: like no other file's.

    Raises:
        NbdError: it cannot be connected to.
    """

    mtime_ns = 0

    def __init__(self, connect: Callable[[], NbdClient], limit: int, path: str) -> None:
        self.path = path
        self.key: tuple[int, ...] = (-2, next(_numbers))
        self._connect = connect
        self._free: list[NbdClient] = []
        self._lock = threading.Lock()
        self._may_connect = threading.BoundedSemaphore(limit)
        with self._connection() as client:
            self.size = client.size

    @contextlib.contextmanager
    def _connection(self) -> Iterator[NbdClient]:
        """Lend a connection; one that failed is not used again."""
        with self._may_connect:
            with self._lock:
                client = self._free.pop() if self._free else None
            client = client or self._connect()
            try:
                yield client
            except BaseException:
                client.close()
                raise
            with self._lock:
                self._free.append(client)

    def fileno(self) -> None:
        """Return that there is no descriptor."""
        return

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer from an offset; what lies beyond the end is zeros.

        Raises:
            NbdError: it cannot be read.
        """
        inside = min(len(buffer), max(0, self.size - offset))
        if inside:
            with self._connection() as client:
                client.read_into(buffer[:inside], offset)
        if inside < len(buffer):
            buffer[inside:] = bytes(len(buffer) - inside)

    def status(self, start: int, stop: int) -> Offsets:
        """Return what ``base:allocation`` says, see :meth:`.NbdClient.block_status`.

        Where the server does not tell, all is data.

        Raises:
            NbdError: it cannot be told.
        """
        with self._connection() as client:
            if ALLOCATION not in client.contexts:
                return np.array([[start, stop - start, 0]], np.int64)
            return client.block_status(ALLOCATION, start, stop)

    def close(self) -> None:
        """Close every connection."""
        while self._free:
            self._free.pop().close()


class ExportLayer:
    """An export as a layer that has all of its disk: data, and zeros by metadata.

    Args:
        file: the export; the layer closes it.
        how: what it is, and how it is read.
    """

    changes_only = False
    unit = _UNIT

    def __init__(self, file: ExportFile, how: How) -> None:
        self.file = file
        self.files: tuple[SourceFile, ...] = (file,)
        self.how = how
        self.format = how.format
        self.size = file.size
        self.source = Source(file, _UNIT)
        self._windows: OrderedDict[int, Extents] = OrderedDict()
        self._lock = threading.Lock()

    def extents(self, start: int, stop: int) -> Extents:
        """Return data where the server says there is some, and zeros elsewhere.

        Raises:
            NbdError: it cannot be told.
        """
        parts = [self._window(number) for number in range(start // _WINDOW, -(-stop // _WINDOW))]
        rows = parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, EXTENT), *parts])
        return coalesce(clip(rows, start, stop))

    def _window(self, number: int) -> Extents:
        """Return a window's extents; those asked for last are kept."""
        with self._lock:
            rows = self._windows.get(number)
            if rows is not None:
                self._windows.move_to_end(number)
                return rows
        rows = self._ask(number * _WINDOW, min((number + 1) * _WINDOW, self.size))
        with self._lock:
            self._windows[number] = rows
            while len(self._windows) > _WINDOWS:
                self._windows.popitem(last=False)
        return rows

    def _ask(self, start: int, stop: int) -> Extents:
        status = self.file.status(start, stop)
        out = np.zeros(len(status), EXTENT)
        out["start"] = out["host"] = status[:, 0]
        out["length"] = status[:, 1]
        # A hole that is not said to be zeros has no defined content, so it has to be read.
        out["kind"] = np.where(status[:, 2] & ZERO, Kind.ZERO, Kind.DATA)
        return out

    def next_mapped(self, start: int) -> int | None:
        """Return where the next data begins.

        Raises:
            NbdError: it cannot be told.
        """
        position, step = start, _WINDOW
        while position < self.size:
            stop = min(position - position % _WINDOW + step, self.size)
            rows = self.extents(position, stop) if step == _WINDOW else self._ask(position, stop)
            data = rows["start"][rows["kind"] == Kind.DATA]
            if data.size:
                return int(data[0])
            position, step = stop, min(2 * step, _FARTHEST)
        return None

    def close(self) -> None:
        """Close the connections."""
        self.file.close()
