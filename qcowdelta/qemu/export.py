"""An NBD export as the lowest layer of an image: what it has, and its bytes."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator

import numpy as np

from ..errors import NbdError, QemuError
from ..extents import Extents, Kind, Offsets, clip, coalesce, join
from ..layer import How, Source, SourceFile
from ..raw import data_and_zeros
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
        key: what identifies the content; None takes what no other file has.

    Attributes:
        size: its length, bytes.
        mtime_ns: when its content was last modified, in nanoseconds since the epoch, if known.

    Raises:
        QemuError: it cannot be connected to, or does not tell what is allocated.
    """

    def __init__(
        self,
        connect: Callable[[], NbdClient],
        limit: int,
        path: str,
        key: tuple[int, ...] | None = None,
    ) -> None:
        self.path = path
        self.key = (-2, next(_numbers)) if key is None else key
        self.mtime_ns = 0
        self._connect = connect
        self._free: list[NbdClient] = []
        self._lock = threading.Lock()
        self._may_connect = threading.BoundedSemaphore(limit)
        with self._connection() as client:
            self.size = client.size
            if ALLOCATION not in client.contexts:
                raise QemuError(f"{path}: the NBD server does not tell what is allocated")

    def explained(self, error: NbdError) -> QemuError:
        """Return what to raise for an error of a connection."""
        return error

    @contextlib.contextmanager
    def _connection(self) -> Iterator[NbdClient]:
        """Lend a connection; one that failed is not used again."""
        with self._may_connect:
            with self._lock:
                client = self._free.pop() if self._free else None
            client = client or self._connect()
            try:
                yield client
            except NbdError as error:
                client.close()
                raise self.explained(error) from None
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
            QemuError: it cannot be read.
        """
        inside = min(len(buffer), max(0, self.size - offset))
        if inside:
            with self._connection() as client:
                client.read_into(buffer[:inside], offset)
        if inside < len(buffer):
            buffer[inside:] = bytes(len(buffer) - inside)

    def status(self, start: int, stop: int) -> Offsets:
        """Return what ``base:allocation`` says, see :meth:`.NbdClient.block_status`.

        Raises:
            QemuError: it cannot be told.
        """
        with self._connection() as client:
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
        self._content = file
        self.file: SourceFile = file
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
            QemuError: it cannot be told.
        """
        parts = [self._window(number) for number in range(start // _WINDOW, -(-stop // _WINDOW))]
        return coalesce(clip(join(parts), start, stop))

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
        status = self._content.status(start, stop)
        # A hole that is not said to be zeros has no defined content, so it has to be read.
        data = status[(status[:, 2] & ZERO) == 0]
        ranges = np.stack([data[:, 0], data[:, 0] + data[:, 1]], axis=1)
        return coalesce(data_and_zeros(ranges, start, stop))

    def next_mapped(self, start: int) -> int | None:
        """Return where the next data begins.

        Raises:
            QemuError: it cannot be told.
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
        self._content.close()
