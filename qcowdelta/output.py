"""Output that appears whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import secrets
from types import TracebackType
from typing import Self

from .errors import OutputError, PathName, printable

_SYNC_FILE_RANGE_WRITE = 2
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_LONGEST_NAME = 255  # bytes, in every file system that Linux has
_NO_TMPFILE = {errno.EISDIR, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT}


class AtomicOutput:
    """A file that gets its name only when it is complete and on disk.

    It is written without a name where the file system can do that, so that even a kill leaves
    nothing behind; elsewhere under a temporary name beside the target.

    Of several that write one name at once, one wins and the others raise: what is to be replaced
    is held locked, and where there is nothing yet, only the first gets the name.

    Args:
        path: the name it gets.
        force: replace what is there.

    Attributes:
        folder: where that name will be.
        fd: the open file.

    Raises:
        OutputError: something is there already, it is not a regular file, or another process is
            about to replace it.
        OSError: the folder cannot be written to.
    """

    def __init__(self, path: PathName, *, force: bool = False) -> None:
        self.path = os.fspath(path)
        self._force, self._replaces = force, False
        self.folder = os.path.dirname(self.path) or "."
        self._temporary: str | None = None
        self._target = -1
        self._check_target()
        try:
            self.fd = self._open()
        except BaseException:
            self._unlock_target()
            raise

    def _check_target(self) -> None:
        check_target(self.path, force=self._force)
        if not os.path.lexists(self.path):
            return
        self._replaces = True
        try:
            same = self._lock_target()
        except FileNotFoundError:
            self._replaces = False
        except OSError as error:
            if error.errno == errno.EWOULDBLOCK:
                self._unlock_target()
                raise self._busy() from error
            # It cannot be read, or the file system has no locks: it can be replaced all the same.
        else:
            if not same:  # another has just replaced it
                self._unlock_target()
                raise self._busy()

    def _lock_target(self) -> bool:
        """Hold what is to be replaced, and tell whether it still has the name."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self._target = os.open(self.path, flags)
        fcntl.flock(self._target, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(self._target), os.lstat(self.path))

    def _unlock_target(self) -> None:
        if self._target >= 0:
            os.close(self._target)
            self._target = -1

    def _busy(self) -> OutputError:
        return OutputError(f"{printable(self.path)}: another qcowdelta is writing it")

    def _open(self) -> int:
        try:
            return os.open(self.folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
        self._temporary = self._temporary_name()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(self._temporary, flags, 0o666)

    def _temporary_name(self) -> str:
        return hidden_name(self.path, f"{secrets.token_hex(4)}.tmp")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._commit()
        except OSError as failed:
            error = failed
            raise
        finally:
            # A descriptor has no name to tell, and it is this file that could not be written.
            if isinstance(error, OSError) and error.errno and error.filename is None:
                error.filename = self.path
            # Closed last: a lock on the file must not be free while its temporary name is there.
            try:
                self._remove_temporary()
            finally:
                os.close(self.fd)
                self._unlock_target()

    def _remove_temporary(self) -> None:
        if self._temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._temporary)

    def write_at(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of ``data`` at ``offset``."""
        view = memoryview(data)
        while view:
            count = os.pwrite(self.fd, view, offset)
            view, offset = view[count:], offset + count

    def start_writeback(self, offset: int, length: int) -> None:
        """Let the disk begin with a range that is complete, so that less is left for the end."""
        if _sync_file_range is not None:
            _sync_file_range(self.fd, offset, length, _SYNC_FILE_RANGE_WRITE)

    def _commit(self) -> None:
        """Bring it to disk, give it its name, and bring that to disk too."""
        os.fsync(self.fd)
        if self._replaces:
            if self._temporary is None:
                self._temporary = self._temporary_name()
                self._link(self._temporary)
            os.rename(self._temporary, self.path)
            self._temporary = None
        else:
            self._link(self.path)
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _link(self, path: str) -> None:
        """Give the file a name that must be free: two writers of one name cannot both win."""
        try:
            if self._temporary is not None and path != self._temporary:
                os.link(self._temporary, path)
            else:
                # With a folder descriptor given, Python uses linkat(2), which can follow the
                # link in /proc to a file that has no name.
                here = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    os.link(f"/proc/self/fd/{self.fd}", path, src_dir_fd=here)
                finally:
                    os.close(here)
        except FileExistsError as error:
            raise OutputError(
                f"{printable(self.path)}: exists already, since another process wrote it "
                "meanwhile: not replaced"
            ) from error


def check_target(path: PathName, *, force: bool) -> None:
    """Refuse what an output could not be put in the place of.

    Raises:
        OutputError: something is there already, or it is not a regular file.
    """
    if not os.path.lexists(path):
        return
    if not force:
        raise OutputError(f"{printable(path)}: exists already; --force replaces it")
    if not os.path.isfile(path) or os.path.islink(path):
        raise OutputError(f"{printable(path)}: is not a regular file: not replaced")


def hidden_name(path: PathName, ending: str) -> str:
    """Return a hidden name beside a file's; a long name's digest takes its place."""
    folder, name = os.path.split(os.fspath(path))
    hidden = f".{name}.{ending}"
    if len(os.fsencode(hidden)) > _LONGEST_NAME:
        hidden = f".{hashlib.sha256(os.fsencode(name)).hexdigest()}.{ending}"
    return os.path.join(folder, hidden)
