"""Names: the blocks of all directories, read at once and parsed in step."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ...extents import Mask, Offsets
from ...units import GIB, MIB
from ..files import NAME, Names, gather
from ..space import Index
from ..volume import Volume
from . import layout
from .groups import Geometry
from .inodes import Inodes

_AT_ONCE = 16 * MIB
_MAX_LENGTH = 4 * GIB
_MAX_NAMES = 1 << 25
_HEADER = 8
_SMALLEST = 12
_INLINE = slice(40, 100)
_ATTRIBUTES_AT = 128


@dataclass
class Directories:
    """The names in all directories.

    Attributes:
        names: of :data:`.NAME`, without ``.`` and ``..``, in no order.
        buffer: the bytes of the names.
        damaged: how many blocks of directories end in nonsense.
        complete: whether all was read, and not only as much as a limit allows.
    """

    names: Names = field(default_factory=lambda: np.empty(0, NAME))
    buffer: bytes = b""
    damaged: int = 0
    complete: bool = True


def read_directories(
    volume: Volume, shape: Geometry, inodes: Inodes, row: Index, block: Offsets
) -> Directories:
    """Read directories.

    Args:
        volume: what the file system is in.
        shape: its shape.
        inodes: its inodes.
        row: the row of the directory that each block belongs to.
        block: the blocks, each once.

    Raises:
        CorruptImageError: the image cannot be read.
    """
    found = _Names(inodes)
    size = shape.block_size
    step = _AT_ONCE // size
    most = _MAX_LENGTH // size
    for at in range(0, min(block.size, most), step):
        data = volume.read_many(block[at : at + step] * size, size)
        found.add(row[at : at + step], data)
        if found.total > _MAX_NAMES:
            found.directories.complete = False
            break
    found.directories.complete &= block.size <= most
    for number, raw in inodes.raw.items():
        if inodes.mode[number] >> 12 == 4:
            for piece in _inline_entries(raw):
                found.add(np.array([number]), np.frombuffer(piece, np.uint8)[None, :])
    return found.finish()


class _Names:
    """Collects names."""

    def __init__(self, inodes: Inodes) -> None:
        self._inodes = inodes
        self._names: list[Names] = []
        self._buffers: list[bytes] = []
        self._length = 0
        self.total = 0
        self.directories = Directories()

    def add(self, row: Index, data: npt.NDArray[np.uint8]) -> None:
        """Take the names in blocks, each of one directory."""
        which, at, inode, length, damaged = _entries(data)
        self.directories.damaged += damaged
        place = which * data.shape[1] + at + _HEADER
        flat = data.reshape(-1)
        dots = _is_dots(flat, place, length)
        file = self._inodes.row_of(inode)
        good = ~dots & (file >= 0)
        place, length, which = place[good], length[good], which[good]
        buffer, begin = gather(flat, place, length)
        names = np.empty(place.size, NAME)
        names["file"], names["parent"] = file[good], row[which]
        names["start"], names["length"] = begin + self._length, length
        self._names.append(names)
        self._buffers.append(buffer)
        self._length += len(buffer)
        self.total += names.size

    def finish(self) -> Directories:
        """Return what was found."""
        if self._names:
            self.directories.names = np.concatenate(self._names)
        self.directories.buffer = b"".join(self._buffers)
        return self.directories


def _entries(
    data: npt.NDArray[np.uint8],
) -> tuple[Index, Offsets, Offsets, Offsets, int]:
    """Walk the entries of blocks, a step in each block at a time.

    Returns:
        The block, offset, inode number and length of name of each entry in use, and how many blocks
        end in nonsense.
    """
    count, size = data.shape
    words = np.ascontiguousarray(data).reshape(-1).view("<u4")
    base = np.arange(count, dtype=np.int64) * (size // 4)
    active, at = np.arange(count), np.zeros(count, np.int64)
    found: list[tuple[Index, Offsets, Offsets, Offsets]] = []
    damaged = 0
    while active.size:
        word = base[active] + (at >> 2)
        inode, head = words[word].astype(np.int64), words[word + 1].astype(np.int64)
        step, length = _record_length(head & 0xFFFF, size), (head >> 16) & 0xFF
        good = (step >= _SMALLEST) & (step % 4 == 0) & (at + step <= size)
        damaged += int(good.size - good.sum())
        used = good & (inode != 0) & (length > 0) & (length + _HEADER <= step)
        found.append((active[used], at[used], inode[used], length[used]))
        at = at + step
        more = good & (at <= size - _SMALLEST)
        active, at = active[more], at[more]
    if not found:
        empty = np.empty(0, np.int64)
        return empty, empty, empty, empty, 0
    which, place, inode, length = (np.concatenate(c) for c in zip(*found, strict=True))
    return which, place, inode, length, damaged


def _record_length(value: Offsets, size: int) -> Offsets:
    """Decode ``rec_len``: blocks of 64 KiB do not fit, so 0 and 65535 stand for one."""
    if size < 1 << 16:
        return value
    whole = (value == 0) | (value == 0xFFFF)
    return np.where(whole, size, (value & 0xFFFC) | ((value & 3) << 16))


def _is_dots(flat: npt.NDArray[np.uint8], place: Offsets, length: Offsets) -> Mask:
    dot = ord(".")
    first = flat[place] == dot
    second = flat[np.minimum(place + 1, flat.size - 1)] == dot
    result: Mask = first & ((length == 1) | ((length == 2) & second))
    return result


def _inline_entries(raw: bytes) -> list[bytes]:
    """Return the entries of a directory that lies in its inode: behind its parent's number.

    They go on in the attribute ``system.data``.
    """
    pieces = [raw[_INLINE][4:]]
    if len(raw) > _ATTRIBUTES_AT + 4:
        begin = _ATTRIBUTES_AT + int.from_bytes(raw[_ATTRIBUTES_AT : _ATTRIBUTES_AT + 2], "little")
        value = _system_data(raw, begin)
        if len(value) >= _SMALLEST:
            pieces.append(value[: len(value) // 4 * 4])
    return pieces


def _system_data(raw: bytes, begin: int) -> bytes:
    if int.from_bytes(raw[begin : begin + 4], "little") != layout.ATTRIBUTES_MAGIC:
        return b""
    first = at = begin + 4
    size = layout.AttributeEntry.sizeof()
    while at + size <= len(raw) and raw[at : at + 4] != bytes(4):
        entry = layout.AttributeEntry.parse(raw[at : at + size])
        name = raw[at + size : at + size + entry.name_len]
        if entry.name_index == layout.SYSTEM_INDEX and name == b"data":
            start = first + entry.value_offs
            return raw[start : start + entry.value_size]
        at += size + -(-entry.name_len // 4) * 4
    return b""
