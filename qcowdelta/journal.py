"""Which numbered steps of a long work are done, kept in a file."""

from __future__ import annotations

import os
import threading

import numpy as np

_WORD = 8


class Journal:
    """A file that begins with what the work is, and goes on with the steps done.

    Args:
        fd: the open file, which the journal closes.
        identity: 32 bytes; a file that begins otherwise is of other work, and is begun anew.
        fresh: begin anew in any case.
    """

    def __init__(self, fd: int, identity: bytes, *, fresh: bool) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._done: set[int] = set()
        if not fresh and os.pread(fd, len(identity), 0) == identity:
            length = os.fstat(fd).st_size - len(identity)
            steps = os.pread(fd, length - length % _WORD, len(identity))
            self._done.update(np.frombuffer(steps, "<u8").tolist())
            self._end = len(identity) + len(steps)
        else:
            os.ftruncate(fd, 0)
            os.pwrite(fd, identity, 0)
            self._end = len(identity)

    def __len__(self) -> int:
        return len(self._done)

    def done(self, step: int) -> bool:
        """Tell whether a step was done before."""
        return step in self._done

    def add(self, step: int) -> None:
        """Note that a step is done."""
        with self._lock:
            os.pwrite(self._fd, step.to_bytes(_WORD, "little"), self._end)
            self._end += _WORD

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
