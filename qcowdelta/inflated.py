"""Compressed clusters that were inflated once, for those who come again."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Sequence
from typing import IO, TypeAlias

from .errors import PathName
from .units import MIB

_ROOM = 32 * MIB
_ROOM_IN_FOLDER = 1024 * MIB
_PART = 8  # of the free space, what may be taken: the output needs its own
_MOST = 1 << 16  # clusters, whatever their size: each takes memory too
_AT_ONCE = 512  # clusters written or parts read by one call; systems have a limit
_NEAR = 32 << 10  # bytes that are sooner read than left out

Part: TypeAlias = tuple[int, int, int, int]
"""Where a cluster's payload begins, and of its content: offset in it, length, place in a buffer."""


class Inflated:
    """The content of compressed clusters of one size in a nameless temporary file, those kept last.

    Safe to be used by several threads. It only saves time: where there is no room for the file,
    nothing is kept.

    Args:
        cluster_size: theirs, bytes.
        folder: where the file is, of up to 1 GiB, or an eighth of what is free there; None takes
            the system's folder for temporary files, and 32 MiB.

    Attributes:
        folder: as given.
    """

    def __init__(self, cluster_size: int, folder: PathName | None = None) -> None:
        self._size, self.folder = cluster_size, folder
        self._slots = 1
        self._file: IO[bytes] | None = None
        # Clusters are numbered as they come, and the number's remainder is the slot. So whoever
        # finds the same number before and after reading has read what it wanted.
        self._numbers: dict[tuple[int, int], int] = {}
        self._owners: dict[int, tuple[tuple[int, int], int]] = {}
        self._next, self._full = 0, False
        self._between = memoryview(bytearray(_NEAR))
        self._lock = threading.Lock()

    def read(self, source: int, parts: Sequence[Part], buffer: memoryview) -> list[int]:
        """Fill in what is kept, and return which parts, counted from 0, are not.

        Args:
            source: what tells apart the files that clusters come from.
            parts: what is wanted.
            buffer: where to.
        """
        numbers = [self._numbers.get((source, host)) for host, *_ in parts]
        if self._file is None or not self._read(self._file, self._runs(parts, numbers, buffer)):
            return list(range(len(parts)))
        return [
            index
            for index, (number, (host, *_)) in enumerate(zip(numbers, parts, strict=True))
            if number is None or self._numbers.get((source, host)) != number
        ]

    @staticmethod
    def _read(file: IO[bytes], runs: list[tuple[int, list[memoryview]]]) -> bool:
        """Read, and tell whether that went well."""
        try:
            return all(
                os.preadv(file.fileno(), pieces, offset) == sum(map(len, pieces))
                for offset, pieces in runs
            )
        except (OSError, ValueError):  # it is closed
            return False

    def _runs(
        self, parts: Sequence[Part], numbers: list[int | None], buffer: memoryview
    ) -> list[tuple[int, list[memoryview]]]:
        """Return what is read by one call each: where, and into which pieces of memory.

        What lies between two parts that are near to each other is read too, and forgotten.
        """
        runs: list[tuple[int, list[memoryview]]] = []
        end = -1 - _NEAR
        pieces: list[memoryview] = []
        for number, (_, within, length, place) in zip(numbers, parts, strict=True):
            if number is None:
                continue
            offset = number % self._slots * self._size + within
            if not 0 <= offset - end <= _NEAR or len(pieces) > _AT_ONCE:
                pieces = []
                runs.append((offset, pieces))
            elif offset > end:
                pieces.append(self._between[: offset - end])
            pieces.append(buffer[place : place + length])
            end = offset + length
        return runs

    def keep(self, source: int, clusters: Sequence[tuple[int, bytes]]) -> None:
        """Keep clusters: where each one's payload begins, and its content."""
        with self._lock:
            if self._file is None and not self._full:
                self._open()
            step = min(_AT_ONCE, self._slots)
            for first in range(0, len(clusters), step):
                if not self._full:
                    self._keep(source, clusters[first : first + step])

    def _open(self) -> None:
        """Make the file, as large as may be; it is full from the beginning where it cannot be."""
        try:
            file = tempfile.TemporaryFile(buffering=0, dir=self.folder)  # noqa: SIM115
        except OSError:
            self._full = True
            return
        found = os.fstatvfs(file.fileno())
        free = found.f_bavail * found.f_frsize
        room = min(_ROOM if self.folder is None else _ROOM_IN_FOLDER, free // _PART)
        self._slots = max(1, min(_MOST, room // self._size))
        self._full = room < self._size
        self._file = file

    def _keep(self, source: int, clusters: Sequence[tuple[int, bytes]]) -> None:
        """Keep some that are neighbours in the file too."""
        slot = self._next % self._slots
        if self._slots - slot < len(clusters):
            self._next, slot = self._next + self._slots - slot, 0
        for index in range(slot, slot + len(clusters)):
            owner, number = self._owners.pop(index, (None, 0))
            if owner is not None and self._numbers.get(owner) == number:
                del self._numbers[owner]
        if not self._write([data for _, data in clusters], slot * self._size):
            self._give_up()
            return
        for host, _ in clusters:
            self._owners[self._next % self._slots] = (source, host), self._next
            self._numbers[source, host] = self._next
            self._next += 1

    def _write(self, content: list[bytes], offset: int) -> bool:
        """Write, and tell whether there was room."""
        if self._file is None:
            return False
        try:
            return os.pwritev(self._file.fileno(), content, offset) == len(content) * self._size
        except OSError:
            return False

    def _give_up(self) -> None:
        """Keep nothing any more: the output may need the room."""
        self._full = True
        self._numbers.clear()
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), 0)

    def close(self) -> None:
        """Give the room back. Nothing is kept any more."""
        with self._lock:
            self._give_up()
            if self._file is not None:
                self._file.close()
                self._file = None
