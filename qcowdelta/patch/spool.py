"""A nameless temporary file that holds parts of a target."""

from __future__ import annotations

import os
import tempfile
import threading

from ..errors import PathName
from .codec import Buffer
from .segment import Rows


class Spool:
    """Content by its guest offset; there is no file before something is written.

    Args:
        folder: where the file is; None takes the system's folder for temporary files.
    """

    def __init__(self, folder: PathName | None = None) -> None:
        self._folder = folder
        self._fd = -1
        self._lock = threading.Lock()

    def write(self, content: Buffer, offset: int) -> None:
        """Keep content.

        Raises:
            OSError: there is no room.
        """
        with self._lock:
            if self._fd < 0:
                with tempfile.TemporaryFile(dir=self._folder) as file:
                    self._fd = os.dup(file.fileno())
        view = memoryview(content)
        while view:
            count = os.pwrite(self._fd, view, offset)
            view, offset = view[count:], offset + count

    def read(self, starts: Rows, lengths: Rows) -> memoryview:
        """Return ranges of what was written, one behind the other."""
        return memoryview(
            b"".join(
                os.pread(self._fd, length, start)
                for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)
            )
        )

    def close(self) -> None:
        """Give the room back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
