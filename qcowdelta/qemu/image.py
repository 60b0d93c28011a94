"""What QEMU reads, as the lowest layer of an image: by its storage daemon, or converted at once."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np

from ..errors import NbdError, QemuError
from ..extents import EXTENT, Extents, Kind, Offsets, clip, coalesce
from ..formats import FORMATS
from ..hostfile import HostFile
from ..layer import How, Source, SourceFile
from ..raw import RawLayer
from ..units import MIB
from .convert import converted
from .daemon import StorageDaemon
from .graph import Graph
from .nbd import ALLOCATION, ZERO, NbdClient
from .programs import VARIABLES, find

# What most formats allocate at least; a window of a comparison is sized by it.
_UNIT = 4096
_CONNECTIONS = 16
_WINDOW = 64 * MIB
_WINDOWS = 16
_FARTHEST = 2048 * MIB


def open_by_qemu(graph: Graph, reason: str) -> QemuLayer | ConvertedLayer:
    """Let QEMU open an image: its storage daemon where there is one, else a copy is converted.

    Args:
        graph: what to open; the layer owns it from then on.
        reason: why it is not read natively, for :class:`How`.

    Raises:
        QemuError: there is no QEMU, or it cannot read the image.
        PolicyError: QEMU opened what was not allowed.
    """
    try:
        program = find("qemu-storage-daemon")
        if program is not None:
            return QemuLayer(graph, program, reason)
        program = find("qemu-img")
        if program is not None:
            return ConvertedLayer(graph, program, reason)
        raise QemuError(
            f"{graph.path}: is read through QEMU ({reason}), and there is neither "
            "qemu-storage-daemon nor qemu-img here; install one (Debian and Ubuntu have them in "
            "qemu-system-common and qemu-utils), or say where with "
            f"{VARIABLES['qemu-storage-daemon']} or {VARIABLES['qemu-img']}"
        )
    except BaseException:
        graph.close()
        raise


def _key(graph: Graph) -> tuple[int, ...]:
    """Return what identifies the content: all its files, in the way they are read.

    It is no host file's key, since offsets mean guest offsets here.
    """
    keys = [*(file.key for file in graph.files), *(remote.key for remote in graph.remotes)]
    secret = 0 if graph.secret is None else graph.secret.number
    return (*(number for key in keys for number in key), secret, FORMATS.index(graph.format) + 1)


def _named_file(graph: Graph, source: SourceFile) -> SourceFile:
    return graph.files[0] if graph.files else source


class DaemonFile:
    """The guest content of what a storage daemon has opened; safe to be used by several threads."""

    def __init__(self, daemon: StorageDaemon, graph: Graph) -> None:
        self.path = graph.path
        self.key = _key(graph)
        self.mtime_ns = max((file.mtime_ns for file in graph.files), default=0)
        self._daemon = daemon
        self._free: list[NbdClient] = []
        self._lock = threading.Lock()
        self._may_connect = threading.BoundedSemaphore(_CONNECTIONS)
        with self._connection() as client:
            self.size = client.size
            if ALLOCATION not in client.contexts:
                raise QemuError(f"{self.path}: qemu-storage-daemon does not tell what is allocated")

    @contextlib.contextmanager
    def _connection(self) -> Iterator[NbdClient]:
        """Lend a connection; one that failed is not used again."""
        with self._may_connect:
            with self._lock:
                client = self._free.pop() if self._free else None
            client = client or self._daemon.connect()
            try:
                yield client
            except NbdError as error:
                client.close()
                raise self._daemon.explained(error) from None
            except BaseException:
                client.close()
                raise
            with self._lock:
                self._free.append(client)

    def fileno(self) -> None:
        """Return that there is no descriptor."""
        return

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset``; what lies beyond :attr:`size` is zeros.

        Raises:
            QemuError: QEMU cannot read it, hung, or has ended.
        """
        inside = min(len(buffer), max(0, self.size - offset))
        if inside:
            with self._connection() as client:
                client.read_into(buffer[:inside], offset)
        if inside < len(buffer):
            buffer[inside:] = bytes(len(buffer) - inside)

    def status(self, start: int, stop: int) -> Offsets:
        """Return what ``base:allocation`` says, see :meth:`.NbdClient.block_status`."""
        with self._connection() as client:
            return client.block_status(ALLOCATION, start, stop)

    def close(self) -> None:
        """Close every connection."""
        while self._free:
            self._free.pop().close()


class QemuLayer:
    """An image with all that lies below it, as a storage daemon reads it.

    Args:
        graph: what it is; the layer closes it.
        program: the path of qemu-storage-daemon.
        reason: why it is not read natively.
    """

    changes_only = False
    unit = _UNIT

    def __init__(self, graph: Graph, program: str, reason: str) -> None:
        self._graph = graph
        self.format = graph.format
        self._daemon = _started(graph, program)
        try:
            graph.forget_memory()
            self._content = DaemonFile(self._daemon, graph)
        except BaseException:
            self._daemon.close()
            raise
        self.size = self._content.size
        self.source = Source(self._content, _UNIT)
        self.file: SourceFile = _named_file(graph, self._content)
        self.files: tuple[SourceFile, ...] = tuple(graph.files)
        self.how = How(graph.path, graph.format, "qemu-storage-daemon", reason)
        self._windows: OrderedDict[int, Extents] = OrderedDict()
        self._lock = threading.Lock()

    def extents(self, start: int, stop: int) -> Extents:
        """Return data where QEMU says there is some, and zeros elsewhere."""
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
        status = self._content.status(start, stop)
        out = np.zeros(len(status), EXTENT)
        out["start"] = out["host"] = status[:, 0]
        out["length"] = status[:, 1]
        # A hole that is not said to be zeros has no defined content, so it has to be read.
        out["kind"] = np.where(status[:, 2] & ZERO, Kind.ZERO, Kind.DATA)
        return out

    def next_mapped(self, start: int) -> int | None:
        """Return where the next data begins."""
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
        """End the daemon, and close the files."""
        self._content.close()
        try:
            self._daemon.close()
        finally:
            self._graph.close()


def _started(graph: Graph, program: str) -> StorageDaemon:
    return StorageDaemon(
        program,
        graph.node,
        graph.fds,
        {file.key for file in graph.files},
        graph.secret,
        name=graph.path,
    )


class ConvertedLayer(RawLayer):
    """An image with all that lies below it, as a raw copy that has no name.

    Args:
        graph: what it is; the layer closes it.
        program: the path of qemu-img.
        reason: why it is not read natively.
    """

    def __init__(self, graph: Graph, program: str, reason: str) -> None:
        fd = converted(graph, program)
        super().__init__(HostFile(graph.path, fd, os.fstat(fd).st_size, _key(graph)))
        graph.forget_memory()
        self._graph = graph
        self.format = graph.format  # what it was, not what the copy is
        self.file = _named_file(graph, self.file)
        self.files = tuple(graph.files)
        why = f"{reason}; there is no qemu-storage-daemon, which would need no copy"
        self.how = How(graph.path, graph.format, "qemu-img convert", why)

    def close(self) -> None:
        """Close the copy, which is gone then, and the files."""
        super().close()
        self._graph.close()
