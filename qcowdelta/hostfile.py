"""A host file that holds an image: opened safely, locked as QEMU locks, read by offset.

Everything here is about one open file; what its bytes mean is not known here.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import CorruptImageError, ImageLockedError, PathName, PolicyError
from .extents import Offsets
from .units import SECTOR

# Image locks, QEMU's block/file-posix.c: permission n is byte 100+n, "n is not shared" is byte
# 200+n. Every lock is a shared one; a conflict is found by testing, never by waiting.
_CONSISTENT_READ, _WRITE, _RESIZE = 100, 101, 103
_NOT_SHARED_CONSISTENT_READ, _NOT_SHARED_WRITE, _NOT_SHARED_RESIZE = 200, 201, 203
_READER_HOLDS = (_CONSISTENT_READ, _NOT_SHARED_WRITE, _NOT_SHARED_RESIZE)
_READER_TESTS = (_NOT_SHARED_CONSISTENT_READ, _WRITE, _RESIZE)
_F_OFD_GETLK, _F_OFD_SETLK = 36, 37
_FLOCK = struct.Struct("hhxxxxqqixxxx")
_NO_LOCKS_HERE = {errno.ENOLCK, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}

# linux/fiemap.h and linux/fs.h
_FS_IOC_FIEMAP = 0xC020660B
_FS_IOC_FSGETXATTR = 0x801C581F
_XFLAG_REALTIME = 0x1
_FIEMAP_SYNC = 0x1
_FIEMAP_HEAD = struct.Struct("=QQLLLL")
_FIEMAP_EXTENT = np.dtype(
    [
        ("logical", "<u8"),
        ("physical", "<u8"),
        ("length", "<u8"),
        ("reserved64", "<u8", 2),
        ("flags", "<u4"),
        ("reserved", "<u4", 3),
    ]
)
_FIEMAP_BATCH = 512
_EXTENT_LAST = 0x1
_EXTENT_SHARED = 0x2000
# File systems whose FIEMAP_EXTENT_SHARED means "this physical range, and another file may own it
# too", physical being one address space for the whole file system: btrfs, OCFS2, XFS.
_SHARING_FILE_SYSTEMS = {0x9123683E, 0x7461636F, 0x58465342}

WORTH_ASKING = 256 << 10
"""Asking the file system about fewer bytes than this takes longer than reading them."""


class HostFile:
    """An open host file.

    Attributes:
        path: the name it was opened by, for messages.
        size: its length in bytes when it was opened; reads beyond it give zeros, so callers
            must have checked that what they read may lie there.
        key: what identifies the file itself, whatever it is called.
    """

    def __init__(self, path: PathName, fd: int, size: int, key: tuple[int, ...]) -> None:
        self.path = os.fspath(path)
        self.size = size
        self.key = key
        self._fd = fd
        self._sharing: bool | None = None

    @classmethod
    def open(cls, path: PathName, *, lock: bool = True, device: bool = False) -> HostFile:
        """Open a regular file for reading.

        Args:
            path: the file.
            lock: take QEMU's reader lock, so that no writer starts, and refuse where one is.
            device: allow a block device too.

        Raises:
            PolicyError: it is a FIFO, a socket, a folder, or a device that is not allowed.
            ImageLockedError: a writer has it open.
            OSError: the system refused.
        """
        # O_NONBLOCK, so that a FIFO put there by a stranger cannot hang us before fstat.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            info = os.fstat(fd)
            if stat.S_ISREG(info.st_mode):
                file = cls(path, fd, info.st_size, (info.st_dev, info.st_ino))
            elif stat.S_ISBLK(info.st_mode) and device:
                file = cls(path, fd, os.lseek(fd, 0, os.SEEK_END), (info.st_rdev,))
            else:
                kind = _file_kind(info.st_mode)
                raise PolicyError(f"is {kind}, not a regular file: not opened", path=path)
            if lock:
                file._take_reader_lock()
        except BaseException:
            os.close(fd)
            raise
        return file

    def close(self) -> None:
        """Close the file, which drops its lock. Closing twice is allowed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._fd

    @property
    def mtime_ns(self) -> int:
        """When the file's content was last modified, in nanoseconds since the epoch."""
        return os.fstat(self._fd).st_mtime_ns

    def _take_reader_lock(self) -> None:
        try:
            for byte in _READER_HOLDS:
                fcntl.fcntl(self._fd, _F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, 0, byte, 1, 0))
        except OSError as error:
            if error.errno in _NO_LOCKS_HERE:
                return
            raise self._locked() from error
        for byte in _READER_TESTS:
            answer = fcntl.fcntl(self._fd, _F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, 0, byte, 1, 0))
            if _FLOCK.unpack(answer)[0] != fcntl.F_UNLCK:
                raise self._locked()

    def _locked(self) -> ImageLockedError:
        return ImageLockedError(
            "is in use by a writer, a running VM perhaps: stop it, take a consistent delta of the "
            "running VM with 'qcowdelta live diff', or read the image all the same with "
            "-U/--force-share, whose result may be inconsistent",
            path=self.path,
        )

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset``; what lies beyond :attr:`size` is zeros.

        Raises:
            CorruptImageError: the file has become shorter since it was opened.
            OSError: the read failed.
        """
        wanted = min(len(buffer), max(0, self.size - offset))
        done = 0
        while done < wanted:
            try:
                count = os.preadv(self._fd, [buffer[done:wanted]], offset + done)
            except OSError as error:
                error.filename = self.path
                raise
            if not count:
                raise CorruptImageError(
                    "became shorter while it was read", path=self.path, offset=offset + done
                )
            done += count
        if wanted < len(buffer):
            buffer[wanted:] = bytes(len(buffer) - wanted)

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``, which must lie inside the file.

        Raises:
            CorruptImageError: the range goes beyond the end of the file.
        """
        if offset < 0 or length < 0 or offset + length > self.size:
            raise CorruptImageError(
                f"{length} bytes are wanted there, but the file ends at {self.size:#x}",
                path=self.path,
                offset=offset,
            )
        buffer = bytearray(length)
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def next_data(self, offset: int) -> int:
        """Return where the first data at or after ``offset`` begins, or the file's length."""
        if offset >= self.size:
            return self.size
        try:
            return os.lseek(self._fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return self.size
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
                return offset
            raise

    def _next_hole(self, offset: int) -> int:
        try:
            return os.lseek(self._fd, offset, os.SEEK_HOLE)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
                return self.size
            raise

    def data_ranges(self, start: int, stop: int) -> Offsets:
        """Return where the file has data, as an array of shape (n, 2) of [start, stop) bytes.

        What is not in it reads as zeros. Where the file system cannot say, all is data.
        """
        ranges: list[tuple[int, int]] = []
        stop = min(stop, self.size)
        position = start
        while position < stop:
            begin = self.next_data(position)
            if begin >= stop:
                break
            position = min(self._next_hole(begin), stop)
            ranges.append((begin, position))
        return np.array(ranges, np.int64).reshape(-1, 2)

    def hole_ranges(self, start: int, stop: int) -> Offsets:
        """Return which whole sectors of ``[start, stop)`` are holes, as :meth:`data_ranges` does.

        What lies beyond the end of the file counts as one. A file that has almost all of its
        blocks is not asked: finding its holes takes longer than reading them.
        """
        missing = self.size - os.fstat(self._fd).st_blocks * 512
        if missing < WORTH_ASKING:
            data = np.array([start, max(start, min(stop, self.size))], np.int64)
        else:
            data = self.data_ranges(start, stop).reshape(-1)
        edges = np.concatenate([[start], data, [stop]]).astype(np.int64).reshape(-1, 2)
        edges[:, 0] += -edges[:, 0] % SECTOR
        edges[:, 1] -= edges[:, 1] % SECTOR
        return edges[edges[:, 0] < edges[:, 1]]

    def shared_ranges(self, start: int, stop: int) -> Offsets:
        """Return which parts share physical blocks with other files, and where those lie.

        The array has shape (n, 3): [start, stop) in the file and the physical address of start.
        Dirty pages are written out first. Empty where the file system does not share blocks, or
        where its physical addresses are not one space.
        """
        if not self._can_share():
            return np.empty((0, 3), np.int64)
        found = [np.empty((0, 3), np.int64)]
        position = start
        while position < stop:
            extents = self._fiemap(position, stop - position)
            if not extents.size:
                break
            clean = (extents["flags"] & ~np.uint32(_EXTENT_LAST)) == _EXTENT_SHARED
            kept = extents[clean]
            rows = np.stack([kept["logical"], kept["logical"] + kept["length"], kept["physical"]])
            found.append(rows.T.astype(np.int64))
            last = extents[-1]
            position = int(last["logical"] + last["length"])
            if last["flags"] & _EXTENT_LAST:
                break
        return np.concatenate(found)

    def _fiemap(self, start: int, length: int) -> npt.NDArray[Any]:
        size = _FIEMAP_HEAD.size + _FIEMAP_BATCH * _FIEMAP_EXTENT.itemsize
        buffer = bytearray(size)
        _FIEMAP_HEAD.pack_into(buffer, 0, start, length, _FIEMAP_SYNC, 0, _FIEMAP_BATCH, 0)
        try:
            fcntl.ioctl(self._fd, _FS_IOC_FIEMAP, buffer)
        except OSError:
            self._sharing = False
            return np.empty(0, _FIEMAP_EXTENT)
        count = _FIEMAP_HEAD.unpack_from(buffer)[3]
        return np.frombuffer(buffer, _FIEMAP_EXTENT, count, _FIEMAP_HEAD.size)

    def _can_share(self) -> bool:
        if self._sharing is None:
            self._sharing = _file_system(self._fd) in _SHARING_FILE_SYSTEMS and not _on_realtime(
                self._fd
            )
        return self._sharing


def _file_kind(mode: int) -> str:
    for test, name in (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISBLK, "a block device"),
        (stat.S_ISCHR, "a character device"),
    ):
        if test(mode):
            return name
    return "a special file"


def _file_system(fd: int) -> int:
    """Return the file system's magic number (statfs(2), f_type), or 0 where it is not known."""
    buffer = ctypes.create_string_buffer(256)
    fstatfs = getattr(ctypes.CDLL(None), "fstatfs", None)
    if fstatfs is None or fstatfs(fd, buffer) != 0:
        return 0
    return int(ctypes.c_long.from_buffer(buffer).value) & 0xFFFFFFFF


def _on_realtime(fd: int) -> bool:
    """Tell whether an XFS file lies on the realtime device, an address space of its own."""
    buffer = bytearray(28)
    try:
        fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, buffer)
    except OSError:
        return False
    return bool(int.from_bytes(buffer[:4], "little") & _XFLAG_REALTIME)
