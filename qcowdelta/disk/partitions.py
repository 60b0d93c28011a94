"""Partition tables: GPT, and MBR with its logical partitions."""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from construct import Array, Bytes, Const, Int8ul, Int32ul, Int64ul, Struct

from ..declare import parse
from ..errors import FormatError
from ..units import MIB, SECTOR, align_up
from .kinds import Partition
from .volume import Volume

MbrEntry = Struct(
    "boot" / Int8ul,
    "chs_first" / Bytes(3),
    "type" / Int8ul,
    "chs_last" / Bytes(3),
    "first" / Int32ul,
    "count" / Int32ul,
)

Mbr = Struct("code" / Bytes(446), "entries" / Array(4, MbrEntry), "magic" / Const(b"\x55\xaa"))
"""A master boot record, or the extended one before a logical partition; sectors."""

GptHeader = Struct(
    "magic" / Const(b"EFI PART"),
    "revision" / Int32ul,
    "header_size" / Int32ul,
    "header_crc" / Int32ul,
    "reserved" / Int32ul,
    "my_lba" / Int64ul,
    "alternate_lba" / Int64ul,
    "first_usable" / Int64ul,
    "last_usable" / Int64ul,
    "guid" / Bytes(16),
    "entries_lba" / Int64ul,
    "entries" / Int32ul,
    "entry_size" / Int32ul,
    "entries_crc" / Int32ul,
)

GptEntry = Struct(
    "type" / Bytes(16),
    "guid" / Bytes(16),
    "first" / Int64ul,
    "last" / Int64ul,
    "attributes" / Int64ul,
    "name" / Bytes(72),
)

_SECTOR_SIZES = (512, 4096)
_MAX_ENTRIES_LENGTH = MIB
_MAX_ENTRY = 4096
_MAX_LOGICAL = 256
_EXTENDED = {0x05, 0x0F, 0x85}
_PROTECTIVE = 0xEE

GPT_TYPES = {
    "c12a7328-f81f-11d2-ba4b-00a0c93ec93b": "EFI system",
    "21686148-6449-6e6f-744e-656564454649": "BIOS boot",
    "0fc63daf-8483-4772-8e79-3d69d8477de4": "Linux filesystem",
    "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f": "Linux swap",
    "e6d6d379-f507-44c2-a23c-238f2a3df928": "Linux LVM",
    "a19d880f-05fc-4d3b-a006-743f0f84911e": "Linux RAID",
    "bc13c2ff-59e6-4262-a352-b275fd6f7172": "Linux extended boot",
    "933ac7e1-2eb4-4f13-b844-0e14e2aef915": "Linux home",
    "4f68bce3-e8cd-4db1-96e7-fbcaf984b709": "Linux root (x86-64)",
    "b921b045-1df0-41c3-af44-4c6f280d3fae": "Linux root (ARM64)",
    "ca7d7ccb-63ed-4c53-861c-1742536059cc": "LUKS",
    "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7": "Microsoft basic data",
    "e3c9e316-0b5c-4db8-817d-f92df00215ae": "Microsoft reserved",
    "de94bba4-06d1-4d40-a16a-bfd50179d6ac": "Windows recovery",
    "9d275380-40ad-11db-bf97-000c2911d1b8": "PowerPC PReP boot",
}
MBR_TYPES = {
    0x01: "FAT12", 0x04: "FAT16 <32M", 0x06: "FAT16", 0x07: "NTFS/exFAT", 0x0B: "FAT32",
    0x0C: "FAT32 (LBA)", 0x0E: "FAT16 (LBA)", 0x27: "Windows recovery", 0x82: "Linux swap",
    0x83: "Linux", 0x8E: "Linux LVM", 0xEF: "EFI system", 0xFD: "Linux RAID",
}  # fmt: skip


@dataclass
class PartitionTable:
    """What a disk's partition tables say.

    Attributes:
        scheme: ``gpt``, ``mbr`` or ``none``.
        partitions: by their start, apart and inside the disk.
        tables: where the tables themselves are: (start, length), bytes.
        notes: what is wrong with them.
    """

    scheme: str = "none"
    partitions: list[Partition] = field(default_factory=list)
    tables: list[tuple[int, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_partitions(disk: Volume, *, bare: bool = False, held: bool = False) -> PartitionTable:
    """Read a disk's partition table.

    Args:
        disk: the disk.
        bare: whether a file system is known to begin at the disk's first sector; then an MBR
            counts only where it has a partition, none of which begins there or beyond the disk.
        held: whether anything is known to begin at the disk's start; then the backup of a GPT
            counts only where a protective MBR says that there is one: it outlives what is made
            over the rest.

    Returns:
        The table; with scheme ``none`` where there is none.

    Raises:
        CorruptImageError: the image cannot be read.
    """
    table = _read_gpt(disk, backup=not held or _is_protected(disk))
    if table is None:
        table = _read_mbr(disk, bare=bare)
        if bare and not table.partitions:
            table = PartitionTable()
    table.partitions = list(_apart(table, disk.length))
    return table


def _apart(table: PartitionTable, size: int) -> Iterator[Partition]:
    """Yield the partitions by their start, cut where they overlap or end beyond the disk."""
    position = 0
    for part in sorted(table.partitions, key=lambda p: (p.start, -p.length)):
        start, stop = max(part.start, position), min(part.stop, size)
        if start >= stop:
            table.notes.append(f"partition {part.number} lies beyond the disk or inside another")
            continue
        note = None
        if start > part.start:
            note = "overlaps the partition before it"
        elif stop < part.stop:
            note = "ends beyond the disk"
        elif any(begin < stop and start < begin + length for begin, length in table.tables):
            note = "overlaps the partition table"
        yield replace(part, start=start, length=stop - start, note=note, disputed=note is not None)
        position = stop


# --- MBR ----------------------------------------------------------------------------------------


def _parse_mbr(disk: Volume, offset: int) -> Any | None:
    data = disk.read(offset, SECTOR)
    if data[510:] != b"\x55\xaa":
        return None
    return parse(Mbr, data, path=disk.path, offset=disk.start + offset, name="Mbr")


def _read_mbr(disk: Volume, *, bare: bool) -> PartitionTable:
    mbr = _parse_mbr(disk, 0)
    if mbr is None or any(e.boot not in (0, 0x80) for e in mbr.entries):
        return PartitionTable()
    used = [(n, e) for n, e in enumerate(mbr.entries, 1) if e.type and e.count]
    # A boot sector's code looks like entries that begin anywhere. Where it can be no boot sector,
    # one entry inside the disk is enough: a disk that was cut off keeps its first partitions.
    inside = [e.first * SECTOR < disk.length for _, e in used]
    if any(e.first == 0 for _, e in used) or not (all(inside) if bare else any(inside)):
        return PartitionTable()
    table = PartitionTable("mbr", tables=[(0, SECTOR)])
    for number, entry in used:
        if entry.type == _PROTECTIVE:
            _note_lost_gpt(table)
        elif entry.type in _EXTENDED:
            _read_logical(disk, entry.first, table)
        else:
            table.partitions.append(_mbr_partition(number, entry, 0))
    if all(entry.type == _PROTECTIVE for _, entry in used):
        table.scheme = "none"
    return table


def _note_lost_gpt(table: PartitionTable) -> None:
    """Note that a GPT should be there; an MBR counts only where none was found."""
    note = "the GPT is damaged, and so is its backup: its partitions are not known"
    if note not in table.notes:
        table.notes.append(note)


def _mbr_partition(number: int, entry: Any, base: int) -> Partition:
    kind = MBR_TYPES.get(entry.type, f"type {entry.type:#04x}")
    return Partition(number, (base + entry.first) * SECTOR, entry.count * SECTOR, "mbr", type=kind)


def _read_logical(disk: Volume, base: int, table: PartitionTable) -> None:
    """Follow the chain of extended boot records, each of which names a partition and the next."""
    if base * SECTOR >= disk.length:
        table.notes.append("the logical partitions lie beyond the disk")
        return
    at, seen, number = base, set[int](), 5
    while at not in seen and len(seen) < _MAX_LOGICAL and at * SECTOR < disk.length:
        seen.add(at)
        record = _parse_mbr(disk, at * SECTOR)
        if record is None:
            table.notes.append("the chain of logical partitions is broken")
            return
        table.tables.append((at * SECTOR, SECTOR))
        entry, following = record.entries[0], record.entries[1]
        if entry.type and entry.count:
            table.partitions.append(_mbr_partition(number, entry, at))
            number += 1
        if following.type not in _EXTENDED or not following.count:
            return
        at = base + following.first
    table.notes.append("the chain of logical partitions has no end")


# --- GPT ----------------------------------------------------------------------------------------


def _is_protected(disk: Volume) -> bool:
    """Tell whether the MBR is one that keeps programs that know no GPT away."""
    mbr = _parse_mbr(disk, 0)
    return mbr is not None and any(e.type == _PROTECTIVE and e.first == 1 for e in mbr.entries)


def _read_gpt(disk: Volume, *, backup: bool) -> PartitionTable | None:
    for sector in _SECTOR_SIZES:
        primary = _gpt_at(disk, sector, sector)
        last = (disk.length // sector - 1) * sector
        found = primary or (_gpt_at(disk, last, sector) if backup else None)
        if found is not None:
            table = _table_of(disk, *found, sector)
            if primary is None:
                table.notes.append("the GPT is damaged; its backup at the disk's end was read")
            return table
    return None


def _gpt_at(disk: Volume, offset: int, sector: int) -> tuple[Any, bytes] | None:
    """Return the header at an offset, and its entries, if its checksums hold."""
    data = disk.read(max(offset, 0), sector)
    try:
        header = parse(GptHeader, data, path=disk.path, offset=offset, name="GptHeader")
    except FormatError:
        return None
    size = header.header_size
    if not GptHeader.sizeof() <= size <= sector or header.my_lba * sector != offset:
        return None
    if zlib.crc32(data[:16] + bytes(4) + data[20:size]) != header.header_crc:
        return None
    length = header.entries * header.entry_size
    if not GptEntry.sizeof() <= header.entry_size <= _MAX_ENTRY or length > _MAX_ENTRIES_LENGTH:
        return None
    entries = disk.read(header.entries_lba * sector, length)
    return (header, entries) if zlib.crc32(entries) == header.entries_crc else None


def _table_of(disk: Volume, header: Any, data: bytes, sector: int) -> PartitionTable:
    table = PartitionTable("gpt", tables=[(0, 2 * sector)])
    length = align_up(len(data), sector)
    for place, size in _gpt_places(disk, header, length, sector):
        if place >= 0 and place + size <= disk.length:
            table.tables.append((place, size))
    for index in range(header.entries):
        raw = data[index * header.entry_size :][: GptEntry.sizeof()]
        entry = GptEntry.parse(raw)
        if entry.type != bytes(16) and entry.first <= entry.last:
            table.partitions.append(_gpt_partition(index + 1, entry, sector))
    return table


def _gpt_places(disk: Volume, header: Any, length: int, sector: int) -> Iterator[tuple[int, int]]:
    """Yield where both copies of the header and of the entries are."""
    yield header.entries_lba * sector, length
    for lba in (header.my_lba, header.alternate_lba):
        yield lba * sector, sector
    other = disk.read(min(header.alternate_lba * sector, disk.length), sector)
    if other.startswith(b"EFI PART"):
        yield GptHeader.parse(other).entries_lba * sector, length


def _gpt_partition(number: int, entry: Any, sector: int) -> Partition:
    kind = str(uuid.UUID(bytes_le=entry.type))
    return Partition(
        number,
        entry.first * sector,
        (entry.last - entry.first + 1) * sector,
        "gpt",
        type=GPT_TYPES.get(kind, kind),
        name=entry.name.decode("utf-16-le", "replace").split("\0", 1)[0],
    )
