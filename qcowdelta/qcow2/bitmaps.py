"""Persistent dirty bitmaps: the directory of them, and their bits (spec section "Bitmaps")."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag, StrEnum

import numpy as np
import numpy.typing as npt

from ..errors import CorruptImageError, FormatError, printable
from ..extents import Offsets
from ..hostfile import HostFile
from ..units import MIB, ceil_div
from . import layout
from .geometry import ALL_ONES, BITMAP_RESERVED, Entries
from .header import Header, read_bitmaps_info
from .layout import Autoclear
from .tables import read_words

MAX_NAME = 1023
MAX_BITS = 512 * MIB
MIN_GRANULARITY_BITS, MAX_GRANULARITY_BITS = 9, 31
_DIRTY_TRACKING = 1
_FIXED = 24
_ENTRIES_AT_ONCE = 1 << 16


class BitmapFlags(IntFlag):
    """Flags of a bitmap."""

    IN_USE = 1
    AUTO = 2


class BitmapState(StrEnum):
    """What a bitmap is good for."""

    USABLE = "usable"
    """It marks all that was written since it was made or cleared."""
    DISABLED = "disabled"
    """What was written since it was disabled is not marked."""
    IN_USE = "in use"
    """A writer has the image open, or did not close it: the bits on disk are out of date."""
    STALE = "stale"
    """Autoclear bit 0 is clear: a writer that knows no bitmaps wrote to the image."""


@dataclass(frozen=True)
class Bitmap:
    """A persistent bitmap. The name is bytes from the file; sizes are bytes.

    Attributes:
        table_size: entries of its table.
        state: whether its bits can be relied on.
    """

    name: bytes
    granularity: int
    flags: int
    type: int
    table_offset: int
    table_size: int
    state: BitmapState

    @property
    def known_flags(self) -> list[BitmapFlags]:
        """The flags that are set and have a name."""
        return [flag for flag in BitmapFlags if self.flags & flag]


def read_bitmaps(file: HostFile, header: Header) -> tuple[Bitmap, ...]:
    """Read the bitmap directory; none where there is no extension.

    Raises:
        FormatError: an entry is beyond QEMU's limits, or the directory is not as long as it says.
        CorruptImageError: the directory lies beyond the end of the file.
    """
    info = read_bitmaps_info(header, file.path)
    if info is None:
        return ()
    if info.directory_offset + info.directory_size > file.size:
        raise CorruptImageError(
            "bitmap directory lies beyond the end of the file",
            path=file.path,
            offset=info.directory_offset,
            field="bitmaps",
        )
    data = file.read(info.directory_offset, info.directory_size)
    found, position = [], 0
    for index in range(info.count):
        offset = info.directory_offset + position
        entry = data[position : position + _FIXED + MAX_NAME]
        bitmap, length = _read_one(file, header, entry, offset, f"bitmap {index}")
        found.append(bitmap)
        position += length
    if position != len(data):
        raise FormatError(
            f"directory has {len(data)} bytes, its entries {position}",
            path=file.path,
            offset=info.directory_offset,
            field="bitmaps",
        )
    return tuple(found)


def _read_one(
    file: HostFile, header: Header, data: bytes, offset: int, name: str
) -> tuple[Bitmap, int]:
    cluster_size = header.geometry.cluster_size
    fixed = layout.parse(
        layout.compiled(layout.BitmapHeader),
        data[:_FIXED],
        path=file.path,
        offset=offset,
        name=name,
    )
    stop = _FIXED + fixed.name_size
    limits = (
        not fixed.extra_data_size,
        not fixed.flags & ~sum(BitmapFlags),
        fixed.type == _DIRTY_TRACKING,
        cluster_size <= fixed.table_offset <= file.size - fixed.table_size * 8,
        not fixed.table_offset % cluster_size,
        0 < fixed.table_size * cluster_size <= MAX_BITS,
        fixed.name_size <= MAX_NAME,
        MIN_GRANULARITY_BITS <= fixed.granularity_bits <= MAX_GRANULARITY_BITS,
        stop <= len(data),
    )
    if not all(limits):
        raise FormatError(
            "its name, table, granularity, flags, type or extra data is beyond the limits",
            path=file.path,
            offset=offset,
            field=name,
        )
    bitmap = Bitmap(
        name=data[_FIXED:stop],
        granularity=1 << fixed.granularity_bits,
        flags=fixed.flags,
        type=fixed.type,
        table_offset=fixed.table_offset,
        table_size=fixed.table_size,
        state=_state(header, fixed.flags),
    )
    return bitmap, stop + -stop % 8


def _state(header: Header, flags: int) -> BitmapState:
    if not header.has_autoclear(Autoclear.BITMAPS):
        return BitmapState.STALE
    if flags & BitmapFlags.IN_USE:
        return BitmapState.IN_USE
    return BitmapState.USABLE if flags & BitmapFlags.AUTO else BitmapState.DISABLED


class BitmapBits:
    """The bits of a bitmap, as ranges of the active disk; see :class:`~..dirty.DirtyRanges`.

    Table and bits are read as they are asked for, and only what was read last is kept.

    Args:
        file: the qcow2 file, which must stay open.
        header: its header.
        bitmap: which one. Whether its bits can be relied on is for the caller to judge.

    Raises:
        CorruptImageError: its table is not as long as the disk needs.
    """

    def __init__(self, file: HostFile, header: Header, bitmap: Bitmap) -> None:
        self._file, self._bitmap = file, bitmap
        self._geometry = header.geometry
        self.size = header.size
        self.granularity = bitmap.granularity
        self._reach = self._geometry.bitmap_reach(bitmap.granularity)
        self._part: tuple[int, Entries] | None = None
        self._bytes: tuple[int, npt.NDArray[np.uint8]] | None = None
        needed = self._geometry.bitmap_entries(self.size, bitmap.granularity)
        if bitmap.table_size != needed:
            raise self._corrupt(f"table of {bitmap.table_size} entries, the disk needs {needed}")

    def ranges(self, start: int, stop: int) -> Offsets:
        """Return what is marked of ``[start, stop)``, as an array of shape (n, 2).

        Raises:
            CorruptImageError: a table entry in the way is invalid, or leads out of the file.
        """
        found = [np.empty((0, 2), np.int64)]
        last = ceil_div(stop, self._reach)
        index = self._next_used(start // self._reach, last)
        while index is not None:
            begin = index * self._reach
            found.append(self._within(index, max(start, begin), min(stop, begin + self._reach)))
            index = self._next_used(index + 1, last)
        return _joined(np.concatenate(found))

    def next_dirty(self, start: int) -> int | None:
        """Return where the first mark at or after ``start`` is; None: nowhere.

        Raises:
            CorruptImageError: as :meth:`ranges`.
        """
        index = self._next_used(start // self._reach, self._bitmap.table_size)
        while index is not None:
            begin = index * self._reach
            at = self._first(index, max(start, begin))
            if at is not None:
                return at if at < self.size else None
            index = self._next_used(index + 1, self._bitmap.table_size)
        return None

    def _next_used(self, first: int, stop: int) -> int | None:
        """Return the first table entry of ``[first, stop)`` that is not all clear."""
        while first < stop:
            part = first - first % _ENTRIES_AT_ONCE
            entries = self._entries(part)[first - part : stop - part]
            used = np.flatnonzero(entries)
            if used.size:
                return first + int(used[0])
            first = part + _ENTRIES_AT_ONCE
        return None

    def _within(self, index: int, start: int, stop: int) -> Offsets:
        """Return what is marked of a range that one entry tells of."""
        bits = self._bits(index)
        if bits is None:
            return np.array([[start, stop]], np.int64)
        first = start // self.granularity
        begin = index * self._reach // self.granularity
        low, high = first - begin, ceil_div(stop, self.granularity) - begin
        marked = np.zeros(high - low + 2, np.uint8)
        bytes_ = np.unpackbits(bits[low // 8 : ceil_div(high, 8)], bitorder="little")
        marked[1:-1] = bytes_[low % 8 :][: high - low]
        edges = np.flatnonzero(marked[1:] != marked[:-1]).reshape(-1, 2)
        return np.clip((first + edges) * self.granularity, start, stop)

    def _first(self, index: int, start: int) -> int | None:
        """Return the first mark at or after ``start`` of what one entry tells of."""
        bits = self._bits(index)
        if bits is None:
            return start
        begin = index * self._reach // self.granularity
        low = start // self.granularity - begin
        used = np.flatnonzero(bits[low // 8 :])
        for byte in (low // 8 + used[:2]).tolist():  # in the first, all marks may be before it
            marked = np.flatnonzero(np.unpackbits(bits[byte : byte + 1], bitorder="little"))
            marked = marked[byte * 8 + marked >= low]
            if marked.size:
                bit: int = begin + byte * 8 + int(marked[0])
                return max(start, bit * self.granularity)
        return None

    def _bits(self, index: int) -> npt.NDArray[np.uint8] | None:
        """Return the bytes that an entry leads to; None: all are ones."""
        part = index - index % _ENTRIES_AT_ONCE
        entry = int(self._entries(part)[index - part])
        if entry == ALL_ONES:
            return None
        if self._bytes is None or self._bytes[0] != entry:
            data = self._file.read(entry, self._geometry.cluster_size)
            self._bytes = entry, np.frombuffer(data, np.uint8)
        return self._bytes[1]

    def _entries(self, part: int) -> Entries:
        """Return the table's entries from ``part`` on, as many as are read at once."""
        if self._part is None or self._part[0] != part:
            count = min(_ENTRIES_AT_ONCE, self._bitmap.table_size - part)
            offset = self._bitmap.table_offset + part * 8
            entries = read_words(self._file, offset, count, "bitmap table")
            self._check(entries, part)
            self._part = part, entries
        return self._part[1]

    def _check(self, entries: Entries, part: int) -> None:
        size = self._geometry.cluster_size
        placed = entries > np.uint64(ALL_ONES)
        for bad, what in (
            (entries & np.uint64(BITMAP_RESERVED) != 0, "reserved bits set"),
            (placed & (entries & np.uint64(size - 1) != 0), "unaligned offset of bits"),
            (
                placed & (entries > max(0, self._file.size - size)),
                "bits beyond the end of the file",
            ),
        ):
            if bad.any():
                raise self._corrupt(what, part + int(np.argmax(bad)))

    def _corrupt(self, what: str, index: int | None = None) -> CorruptImageError:
        entry = "" if index is None else f", table entry {index}"
        return CorruptImageError(
            what,
            path=self._file.path,
            offset=self._bitmap.table_offset + 8 * (index or 0),
            field=f"bitmap {printable(self._bitmap.name)!r}{entry}",
        )


def _joined(ranges: Offsets) -> Offsets:
    """Join ranges that touch."""
    if not len(ranges):
        return ranges
    first = np.flatnonzero(np.append(True, ranges[1:, 0] != ranges[:-1, 1]))
    last = np.append(first[1:], len(ranges)) - 1
    return np.stack([ranges[first, 0], ranges[last, 1]], axis=1)
