"""The snapshot table (spec section "Snapshots")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import CorruptImageError, FormatError, QcowDeltaError, printable
from ..hostfile import HostFile
from ..units import MIB, SECTOR
from . import layout
from .header import MAX_L1_BYTES, Header

MAX_EXTRA = 1024
MAX_TABLE = 64 * MIB
MAX_L1_TABLES = 1024 * MIB
_FIXED = 40
_CHUNK = MIB


@dataclass(frozen=True)
class Snapshot:
    """An internal snapshot. Names are bytes from the file; sizes are bytes."""

    id: bytes
    name: bytes
    l1_table_offset: int
    l1_size: int
    disk_size: int
    vm_state_size: int
    date_sec: int
    vm_clock_nsec: int
    entry_size: int


def read_snapshots(file: HostFile, header: Header) -> tuple[Snapshot, ...]:
    """Read the snapshot table.

    Raises:
        FormatError: an entry is beyond QEMU's limits.
        CorruptImageError: the table, or an L1 table it names, lies beyond the end of the file.
    """
    table = _Table(file, header.snapshots_offset)
    found, tables = [], 0
    for index in range(header.nb_snapshots):
        snapshot = _read_one(file, header, table, f"snapshot {index}")
        tables += snapshot.l1_size * 8
        if table.position - header.snapshots_offset > MAX_TABLE or tables > MAX_L1_TABLES:
            raise FormatError("tables are too large", path=file.path, field="snapshots")
        found.append(snapshot)
    return tuple(found)


class _Table:
    """The table's bytes, read ahead a chunk at a time."""

    def __init__(self, file: HostFile, position: int) -> None:
        self.position = position
        self._file, self._begin, self._data = file, position, b""

    def take(self, length: int) -> bytes:
        """Return the next bytes.

        Raises:
            CorruptImageError: they lie beyond the end of the file.
        """
        at = self.position - self._begin
        if at + length > len(self._data):
            ahead = max(length, min(_CHUNK, self._file.size - self.position))
            self._begin, self._data, at = self.position, self._file.read(self.position, ahead), 0
        self.position += length
        return self._data[at : at + length]


def _read_one(file: HostFile, header: Header, table: _Table, name: str) -> Snapshot:
    position = table.position
    fixed = layout.parse(
        layout.compiled(layout.SnapshotHeader),
        table.take(_FIXED),
        path=file.path,
        offset=position,
        name=name,
    )
    length = fixed.extra_data_size
    if length > MAX_EXTRA or (header.version >= 3 and length < 16):
        raise FormatError(
            f"{length} bytes of extra data are not 16 to {MAX_EXTRA}",
            path=file.path,
            offset=position,
            field=name,
        )
    size = _FIXED + length + fixed.id_size + fixed.name_size
    rest = table.take(size - _FIXED)
    table.position += -size % 8
    extra = _read_extra(file, rest[:length], position + _FIXED, name)
    _check_l1(file, header, fixed, name)
    disk_size = extra.disk_size if extra else header.size
    return Snapshot(
        id=rest[length : length + fixed.id_size],
        name=rest[length + fixed.id_size :],
        l1_table_offset=fixed.l1_table_offset,
        l1_size=fixed.l1_size,
        disk_size=disk_size - disk_size % SECTOR,
        vm_state_size=extra.vm_state_size if extra else fixed.vm_state_size,
        date_sec=fixed.date_sec,
        vm_clock_nsec=fixed.vm_clock_nsec,
        entry_size=size + -size % 8,
    )


def _read_extra(file: HostFile, data: bytes, offset: int, name: str) -> Any:
    """Return the extra data, or None where there is none (version 2)."""
    if len(data) < 16:
        return None
    return layout.parse(
        layout.SnapshotExtra, data, path=file.path, offset=offset, name=name, length=len(data)
    )


def _check_l1(file: HostFile, header: Header, fixed: Any, name: str) -> None:
    offset, size = fixed.l1_table_offset, fixed.l1_size * 8
    if size > MAX_L1_BYTES or not header.geometry.is_aligned(offset):
        raise FormatError(
            f"L1 table of {size} bytes at {offset:#x} is too large or unaligned",
            path=file.path,
            field=name,
        )
    if offset + size > file.size:
        raise CorruptImageError(
            "L1 table lies beyond the end of the file", path=file.path, offset=offset, field=name
        )


def find_snapshot(snapshots: tuple[Snapshot, ...], wanted: str, path: str) -> Snapshot:
    """Return the snapshot with that id or, failing that, that name, as QEMU looks them up.

    Raises:
        QcowDeltaError: there is none; the message lists those there are.
    """
    key = wanted.encode("utf-8", "surrogateescape")
    for field in ("id", "name"):
        for snapshot in snapshots:
            if getattr(snapshot, field) == key:
                return snapshot
    known = ", ".join(repr(printable(s.name)) for s in snapshots[:8]) or "none"
    raise QcowDeltaError(
        f"{printable(path)}: has no snapshot {printable(wanted)!r}; it has: {known}"
    )
