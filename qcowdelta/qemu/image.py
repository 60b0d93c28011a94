"""What QEMU reads, as the lowest layer of an image: by its storage daemon, or converted at once.

Content that QEMU says lies in the file as it is (:mod:`.placement`) is read there.
"""

from __future__ import annotations

import contextlib
import os

import numpy as np

from ..errors import NbdError, QemuError
from ..extents import Offsets
from ..formats import FORMATS
from ..hostfile import HostFile
from ..layer import How, SourceFile
from ..raw import RawLayer
from .convert import converted
from .daemon import StorageDaemon
from .export import ExportFile, ExportLayer
from .graph import Graph
from .nbd import HOLE, ZERO
from .placement import Placement, placement_of
from .programs import VARIABLES, find
from .vhdx import ZEROS

_CONNECTIONS = 16


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


def _how(graph: Graph, by: str, reason: str) -> How:
    return How(graph.path, graph.format, by, reason, graph.secret is not None)


def _named_file(graph: Graph, source: SourceFile) -> SourceFile:
    return graph.files[0] if graph.files else source


class DaemonFile(ExportFile):
    """The guest content of what a storage daemon has opened; safe to be used by several threads.

    Args:
        daemon: what has opened it.
        graph: what it is.
        placed: where content lies as it is, to be read there; None: all is read by the daemon.
    """

    def __init__(self, daemon: StorageDaemon, graph: Graph, placed: Placement | None) -> None:
        self._daemon, self._placed = daemon, placed
        super().__init__(daemon.connect, _CONNECTIONS, graph.path, _key(graph))
        self.mtime_ns = max((file.mtime_ns for file in graph.files), default=0)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer from an offset; what lies beyond the end is zeros.

        Raises:
            QemuError: it cannot be read.
            CorruptImageError: the file has become shorter since it was opened.
            OSError: reading the file failed.
        """
        if self._placed is None:
            super().read_into(buffer, offset)
            return
        for begin, end, host in self._placed.split(offset, offset + len(buffer)):
            part = buffer[begin - offset : end - offset]
            if host is None:
                super().read_into(part, begin)
            elif host == ZEROS:
                part[:] = bytes(len(part))
            else:
                self._placed.file.read_into(part, host)

    def status(self, start: int, stop: int) -> Offsets:
        """Return what ``base:allocation`` says, and of a VHDX its tables: QEMU calls all data.

        Raises:
            QemuError: it cannot be told.
        """
        if self._placed is None or not self._placed.zeros:
            return super().status(start, stop)
        rows = [
            (begin, end - begin, HOLE | ZERO if host == ZEROS else 0)
            for begin, end, host in self._placed.split(start, stop)
        ]
        return np.array(rows, np.int64).reshape(-1, 3)

    def explained(self, error: NbdError) -> QemuError:
        """Return what to raise: the daemon's end, if that is why."""
        return self._daemon.explained(error)


class QemuLayer(ExportLayer):
    """An image with all that lies below it, as a storage daemon reads it.

    Args:
        graph: what it is; the layer closes it.
        program: the path of qemu-storage-daemon.
        reason: why it is not read natively.
    """

    def __init__(self, graph: Graph, program: str, reason: str) -> None:
        self._graph = graph
        with contextlib.ExitStack() as stack:
            placed = placement_of(graph)  # first, since it is told while the daemon starts
            if placed is not None:
                stack.callback(placed.close)
            daemon = stack.enter_context(contextlib.closing(_started(graph, program)))
            content = DaemonFile(daemon, graph, placed)
            self._end = stack.pop_all()
        self._daemon = daemon
        super().__init__(content, _how(graph, "qemu-storage-daemon", reason))
        self.file = _named_file(graph, content)
        self.files = tuple(graph.files)

    def close(self) -> None:
        """End the daemon, and close the files."""
        super().close()
        try:
            self._end.close()
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
        self.how = _how(graph, "qemu-img convert", why)

    def close(self) -> None:
        """Close the copy, which is gone then, and the files."""
        super().close()
        self._graph.close()
