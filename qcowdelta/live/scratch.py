"""Where the VM puts what the guest overwrites while its disk is read."""

from __future__ import annotations

import contextlib
import os
import tempfile

from ..errors import LiveError, OptionError, PathName, printable
from ..qcow2.geometry import Geometry
from ..qcow2.layout import CompressionType
from ..qcow2.writer import Qcow2Writer
from ..units import KIB, MIB, align_down, align_up

_GEOMETRY = Geometry.of_size(64 * KIB)
_SMALLEST = 4 * MIB  # beyond the tables that are there at the start
_NEARLY = 2 * MIB  # less than this left counts as full: a cluster comes with its tables


class Scratch:
    """An empty qcow2 in a file without a name. Use as a context manager, or close it.

    The VM gets its descriptor, so no user or confinement of QEMU's stands in the way, and it is
    gone when the VM lets go of it, whatever became of us.

    Args:
        folder: where it takes its space.
        disk_size: the size of the disk that it is for, bytes.
        limit: how long it may become, bytes; None takes half of what is free there, or what the
            whole disk may need where that is less.
        reserve: take at once what the whole disk may need, so that it never becomes full.

    Attributes:
        limit: how long it may become, bytes: a multiple of 64 KiB.

    Raises:
        OptionError: the limit is too small: for anything, or for what is to be reserved.
        LiveError: there is not enough space.
        OSError: the folder cannot be written to.
    """

    def __init__(
        self,
        folder: PathName,
        disk_size: int,
        limit: int | None = None,
        *,
        reserve: bool = False,
    ) -> None:
        self.folder = printable(os.fspath(folder))
        # Each cluster of data takes itself, its L2 entry and its refcount.
        worst = align_up(disk_size + disk_size // 4096 + _SMALLEST, _GEOMETRY.cluster_size)
        self._fd = _nameless(folder)
        try:
            if limit is None:
                limit = worst if reserve else min(worst, self._free() // 2)
            self.limit = align_down(limit, _GEOMETRY.cluster_size)
            writer = Qcow2Writer(self, disk_size, _GEOMETRY, CompressionType.ZLIB, None)
            needed = writer.finish() + _SMALLEST
            if self.limit < (worst if reserve else needed):
                raise OptionError(
                    f"{self.limit} bytes of scratch space in {self.folder} are too few; "
                    + (
                        f"{worst} are needed, since by the method 'backup' the guest's own writes "
                        "would fail when it is full; give more"
                        if reserve
                        else "give more by --scratch-size, or another folder by --scratch"
                    )
                )
            os.ftruncate(self._fd, self.limit)
            if reserve:
                self._reserve()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def path_for(self, pid: int | None) -> str | None:
        """Return a path by which another process may open it; None: there is none.

        Args:
            pid: the process. Numbers of processes mean the same to it only if it is in our
                namespace of them.
        """
        try:
            same = os.path.samestat(os.stat(f"/proc/{pid}/ns/pid"), os.stat("/proc/self/ns/pid"))
        except OSError:
            return None
        return f"/proc/{os.getpid()}/fd/{self._fd}" if same else None

    def write_at(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of ``data`` at ``offset``."""
        view = memoryview(data)
        while view:
            count = os.pwrite(self._fd, view, offset)
            view, offset = view[count:], offset + count

    @property
    def used(self) -> int:
        """How many bytes it takes on its file system."""
        return os.fstat(self._fd).st_blocks * 512

    @property
    def full(self) -> bool:
        """Whether next to nothing more can be stored in it."""
        return self.limit - self.used < _NEARLY or self._free() < _NEARLY

    def release(self) -> None:
        """Give the space back, once the VM does not use it any more."""
        os.ftruncate(self._fd, 0)

    def close(self) -> None:
        """Close it. Closing twice is allowed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _free(self) -> int:
        found = os.fstatvfs(self._fd)
        return found.f_bavail * found.f_frsize

    def _reserve(self) -> None:
        try:
            os.posix_fallocate(self._fd, 0, self.limit)
        except OSError as error:
            raise LiveError(
                f"{self.folder}: {self.limit} bytes of scratch space cannot be reserved there "
                f"({error.strerror}); give another folder by --scratch, or less by --scratch-size"
            ) from error


def _nameless(folder: PathName) -> int:
    """Open a new file that has no name, or loses it at once."""
    with contextlib.suppress(IsADirectoryError, OSError):
        return os.open(folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    fd, name = tempfile.mkstemp(prefix=".qcowdelta-scratch-", dir=folder)
    os.unlink(name)
    return fd
