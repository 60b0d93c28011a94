"""A nameless temporary file that holds parts of a target."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from collections.abc import Iterable

from ..errors import PathName
from .codec import Buffer


class Spool:
    """The content of segments, in the order in which they come; no file before the first.

    Args:
        segment_bits: two to the power of this is a segment's size, bytes.
        folder: where the file is; None takes the system's folder for temporary files.
    """

    def __init__(self, segment_bits: int, folder: PathName | None = None) -> None:
        self._bits, self._folder = segment_bits, folder
        # Not at its guest offset: that may be beyond what the file system allows in a file.
        self._slots: dict[int, int] = {}
        self._fd = -1
        self._lock = threading.Lock()

    def write(self, content: Buffer, number: int) -> None:
        """Keep the content of a segment.

        Raises:
            OSError: there is no room.
        """
        with self._lock:
            if self._fd < 0:
                with tempfile.TemporaryFile(dir=self._folder) as file:
                    self._fd = os.dup(file.fileno())
            offset = self._slots.setdefault(number, len(self._slots)) << self._bits
        view = memoryview(content)
        while view:
            count = os.pwrite(self._fd, view, offset)
            view, offset = view[count:], offset + count

    def read_into(self, buffer: memoryview, rows: Iterable[tuple[int, int, int]]) -> None:
        """Read ranges of the target, each in one segment that was written.

        Args:
            buffer: where to.
            rows: of each range, where it begins, how long it is, and where in the buffer it goes.

        Raises:
            OSError: it cannot be read.
        """
        within = (1 << self._bits) - 1
        for start, length, place in rows:
            offset = (self._slots[start >> self._bits] << self._bits) + (start & within)
            if os.preadv(self._fd, [buffer[place : place + length]], offset) != length:
                raise OSError(errno.EIO, "a temporary file has lost its end")

    def close(self) -> None:
        """Give the room back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
