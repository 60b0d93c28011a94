"""Output that a later run can go on with when the one before was killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
from types import TracebackType

from .errors import PathName
from .journal import Journal
from .output import AtomicOutput, hidden_name


class ResumableOutput(AtomicOutput):
    """A file written under a hidden name beside its own, with a journal of what is written.

    A kill leaves both behind, for the next run to go on with or to begin anew. Whoever goes on
    has to check the result, since a crash of the machine may have lost what the journal tells.

    Args:
        path: the name it gets.
        identity: 32 bytes that tell apart what must not be mixed: inputs, options, version.
        force: replace what is there.
        resume: go on with what an earlier run left, and leave it when this one fails too.

    Attributes:
        resumed: whether an earlier run's work is used.
        journal: what is written.

    Raises:
        OutputError: something is there already, or another process is writing it.
        OSError: the folder cannot be written to.
    """

    def __init__(
        self, path: PathName, identity: bytes, *, force: bool = False, resume: bool = False
    ) -> None:
        self._identity, self._resume, self._kept = identity, resume, False
        self._journal_path = _beside(path, "journal")
        super().__init__(path, force=force)
        try:
            self._begin()
        except BaseException:
            os.close(self.fd)
            self._unlock_target()
            raise

    def _open(self) -> int:
        self._temporary = self.partial
        return self._open_hidden(self.partial)

    def _begin(self) -> None:
        self._lock()
        if os.fstat(self.fd).st_nlink > 1:
            # A run was killed after it had given its work the name it gets: that is no longer ours.
            os.unlink(self.partial)
            os.close(self.fd)
            self.fd = self._open_hidden(self.partial)
            self._lock()
        fresh = not self._resume or os.fstat(self.fd).st_size == 0
        self.journal = Journal(self._open_hidden(self._journal_path), self._identity, fresh=fresh)
        self.resumed = len(self.journal) > 0
        if not self.resumed:
            os.ftruncate(self.fd, 0)

    def _open_hidden(self, name: str) -> int:
        try:
            return os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            error.filename = self.path  # nobody asked for the hidden one
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            same = os.path.samestat(os.fstat(self.fd), os.lstat(self.partial))
        except (BlockingIOError, FileNotFoundError) as error:
            raise self._busy() from error
        if not same:
            raise self._busy()  # it had just finished, and the file we locked is its result

    @property
    def partial(self) -> str:
        """The hidden name."""
        return _beside(self.path, "partial")

    def _temporary_name(self) -> str:
        return self.partial

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._kept = kind is not None and self._resume
        try:
            super().__exit__(kind, error, trace)
        finally:
            self.journal.close()

    def _remove_temporary(self) -> None:
        if not self._kept:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._journal_path)
            super()._remove_temporary()


def _beside(path: PathName, what: str) -> str:
    return hidden_name(path, f"qcowdelta-{what}")
