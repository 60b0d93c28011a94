"""VHDX: its size, and where its blocks lie, of which QEMU does not tell."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import numpy as np
from construct import Array, Bytes, Const, Int16ul, Int32ul, Int64ul, Padding, Struct

from ..declare import parse
from ..errors import CorruptImageError
from ..extents import Offsets
from ..hostfile import HostFile
from ..units import MIB

ZEROS = -1
"""In place of an offset: what reads as zeros, and lies nowhere."""
_MAX_ENTRIES = 2047  # of a table

_Regions = Struct(
    Const(b"regi"),
    Padding(4),
    "count" / Int32ul,
    Padding(4),
    "entries"
    / Array(
        lambda c: min(c.count, _MAX_ENTRIES),
        Struct("guid" / Bytes(16), "offset" / Int64ul, "length" / Int32ul, Padding(4)),
    ),
)
_Metadata = Struct(
    Const(b"metadata"),
    Padding(2),
    "count" / Int16ul,
    Padding(20),
    "entries"
    / Array(
        lambda c: min(c.count, _MAX_ENTRIES),
        Struct("guid" / Bytes(16), "offset" / Int32ul, "length" / Int32ul, Padding(8)),
    ),
)
_Size = Struct("value" / Int64ul)
_Parameters = Struct("block_size" / Int32ul, "flags" / Int32ul)
_SectorSize = Struct("value" / Int32ul)
_REGIONS = 192 << 10
_TABLE = 64 << 10
_METADATA = UUID("8B7CA206-4790-4B9A-B8FE-575F050F886E").bytes_le
_BAT = UUID("2DC27766-F623-4200-9D64-115E9BFD4A08").bytes_le
_DISK_SIZE = UUID("2FA54224-CD1B-4876-B211-5DBED83BF4B8").bytes_le
_PARAMETERS = UUID("CAA16737-FA36-4D43-B3B6-33F0AA44E76B").bytes_le
_SECTOR_SIZE = UUID("8141BF1D-A96F-4709-BA47-F233A8FAAB5F").bytes_le
_HAS_PARENT = 2
_BLOCK_SIZES = tuple(MIB << shift for shift in range(9))
_SECTOR_SIZES = (512, 4096)

# Of an entry of the block allocation table; the lower 3 bits are the state.
_STATE = np.uint64(7)
_FULLY_PRESENT = np.uint64(6)
_UNMAPPED = np.uint64(3)  # and below it: not present, undefined, zero; QEMU reads all as zeros
_OFFSET = ~np.uint64(MIB - 1)
_SECTORS_TO_A_BITMAP = 1 << 23


class Vhdx:
    """The tables of a VHDX.

    Args:
        file: the file, which stays the caller's.

    Raises:
        FormatError, CorruptImageError: they cannot be read.
    """

    def __init__(self, file: HostFile) -> None:
        self._file = file
        self._regions = self._at(_Regions, _REGIONS, "region table")
        self._place = self._entry(self._regions, _METADATA, "metadata region").offset
        self._metadata = self._at(_Metadata, self._place, "metadata table")

    @property
    def size(self) -> int:
        """The virtual size, bytes."""
        return int(self._item(_Size, _DISK_SIZE, "virtual disk size").value)

    def runs(self, start: int, stop: int) -> Offsets:
        """Return where ``[start, stop)`` lies in the file.

        Returns:
            An array of shape (n, 3): start, stop and offset in the file of each run, in order and
            apart, whole blocks each, but for the end of the disk; the offset of what reads as
            zeros is :data:`ZEROS`. Nothing is said of blocks whose state is another, which QEMU
            does not read either.

        Raises:
            FormatError, CorruptImageError: the tables cannot be read.
        """
        block, ratio = self._block_size()
        table = self._entry(self._regions, _BAT, "block allocation table")
        size = self.size
        blocks = np.arange(start // block, -(-min(stop, size) // block))
        if not blocks.size:
            return np.empty((0, 3), np.int64)
        # Behind the entries of so many blocks is one for their bitmap, which only a child uses.
        index = blocks + blocks // ratio
        first, count = int(index[0]), int(index[-1] - index[0]) + 1
        if 8 * (first + count) > table.length:
            raise self._damaged("block allocation table")
        data = self._file.read(table.offset + 8 * first, 8 * count)
        entries = np.frombuffer(data, "<u8").astype(np.uint64)[index - first]
        state = entries & _STATE
        host = np.where(state <= _UNMAPPED, ZEROS, (entries & _OFFSET).astype(np.int64))
        # Behind the disk's end a block's rest is not the disk's, which reads as zeros there.
        stops = np.minimum((blocks + 1) * block, size)
        rows = np.stack([blocks * block, stops, host], axis=1)
        return _joined(rows[(state <= _UNMAPPED) | (state == _FULLY_PRESENT)])

    def _block_size(self) -> tuple[int, int]:
        """Return a block's length in bytes, and how many blocks have one bitmap."""
        parameters = self._item(_Parameters, _PARAMETERS, "file parameters")
        sector = int(self._item(_SectorSize, _SECTOR_SIZE, "logical sector size").value)
        block = int(parameters.block_size)
        if block not in _BLOCK_SIZES or sector not in _SECTOR_SIZES:
            raise self._damaged("block or sector size")
        if parameters.flags & _HAS_PARENT:
            raise self._damaged("parent")
        return block, _SECTORS_TO_A_BITMAP * sector // block

    def _at(self, declaration: Any, offset: int, name: str, length: int = _TABLE) -> Any:
        if offset >= self._file.size:
            raise CorruptImageError(
                "ends before it", path=self._file.path, offset=offset, field=f"VHDX {name}"
            )
        data = self._file.read(offset, min(length, self._file.size - offset))
        return parse(declaration, data, path=self._file.path, offset=offset, name=f"VHDX {name}")

    def _item(self, declaration: Any, guid: bytes, name: str) -> Any:
        offset = self._place + self._entry(self._metadata, guid, name).offset
        return self._at(declaration, offset, name, declaration.sizeof())

    def _entry(self, table: Any, guid: bytes, name: str) -> Any:
        for entry in table.entries:
            if entry.guid == guid:
                return entry
        raise CorruptImageError("is missing", path=self._file.path, field=f"VHDX {name}")

    def _damaged(self, name: str) -> CorruptImageError:
        return CorruptImageError("cannot be used", path=self._file.path, field=f"VHDX {name}")


def _joined(runs: Offsets) -> Offsets:
    """Join runs that go on in the file too."""
    if not runs.size:
        return runs
    zeros = runs[:, 2] == ZEROS
    behind = runs[1:, 2] - runs[:-1, 2] == runs[1:, 0] - runs[:-1, 0]
    same = np.where(zeros[1:] | zeros[:-1], zeros[1:] & zeros[:-1], behind)
    same &= runs[1:, 0] == runs[:-1, 1]
    first = np.flatnonzero(np.append(True, ~same))
    joined = runs[first]
    joined[:, 1] = runs[np.append(first[1:], len(runs)) - 1, 1]
    return joined
