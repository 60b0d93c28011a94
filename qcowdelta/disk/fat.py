"""FAT12, FAT16, FAT32 and exFAT: files through The Sleuth Kit, what is free from the table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from construct import Bytes, Int8ul, Int16ul, Int32ul, Int64ul, Struct

from ..declare import parse
from ..units import MIB
from .contents import Contents, UnreadableError
from .files import Type
from .kinds import SpaceKind, VolumeState
from .ntfs import zero_bits
from .probe import FatBoot, fat_bits
from .space import Spaces, apart, nothing, over, spaces, stops, tile
from .told import claims, hear, used_and_free
from .tsk import Told, ask_tsk
from .volume import Volume

ExfatBoot = Struct(
    "jump" / Bytes(3),
    "name" / Bytes(8),
    "zeros" / Bytes(53),
    "partition_offset" / Int64ul,
    "volume_length" / Int64ul,
    "fat_offset" / Int32ul,
    "fat_length" / Int32ul,
    "heap_offset" / Int32ul,
    "clusters" / Int32ul,
    "root_cluster" / Int32ul,
    "serial" / Int32ul,
    "revision" / Int16ul,
    "flags" / Int16ul,
    "sector_shift" / Int8ul,
    "cluster_shift" / Int8ul,
    "fats" / Int8ul,
)

_AT_ONCE = 3 * MIB  # whole entries of 12, 16 and 32 bits
_VIRTUAL_FILES = (b"$MBR", b"$FAT1", b"$FAT2", b"$ALLOC_BITMAP", b"$UPCASE_TABLE", b"$VOLUME_GUID")
_LABEL_ENTRY = " (Volume Label Entry)"
_EXFAT_DIRTY = 0x2
_NOT_MIRRORED = 0x80


@dataclass(frozen=True)
class _Shape:
    """Where everything is, in bytes.

    Attributes:
        bits: of an entry; 0 for exFAT.
        fat, fats, fat_length: the first table, how many there are, how long each is.
        root: where the root directory is, which FAT12 and FAT16 have outside the clusters.
        data: where the first cluster is.
        cluster, clusters: the size of a cluster, and how many there are.
        dirty: whether the boot sector says that it was not unmounted.
        mirrored: whether all tables are kept the same; otherwise one of them is in use.
    """

    bits: int
    fat: int
    fats: int
    fat_length: int
    root: int
    data: int
    cluster: int
    clusters: int
    dirty: bool
    mirrored: bool = True

    @property
    def stop(self) -> int:
        """Where the last cluster ends."""
        return self.data + self.clusters * self.cluster


def read_fat(volume: Volume) -> Contents:
    """Tell whose each cluster of a FAT file system is.

    Raises:
        UnreadableError: The Sleuth Kit is not there or cannot read it.
        CorruptImageError: the image cannot be read.
    """
    shape = _fat_shape(volume)
    told = ask_tsk(volume, f"FAT{shape.bits}")
    table = _Table(volume, shape)
    free = [
        spaces(begin, length, SpaceKind.FREE)
        for first, values in table
        for begin, length in [_runs_of_zeros(values, first, shape)]
    ]
    wrong = ["its tables are not the same"] if table.differs else []
    if not shape.mirrored:
        wrong.append("only one of its tables is kept up to date")
    return _contents(volume, shape, told, free, wrong, dirty=shape.dirty or table.dirty)


def read_exfat(volume: Volume) -> Contents:
    """Tell whose each cluster of an exFAT file system is.

    Raises:
        UnreadableError: The Sleuth Kit is not there or cannot read it.
        CorruptImageError: the image cannot be read.
    """
    shape = _exfat_shape(volume)
    told = ask_tsk(volume, "EXFAT")
    free = _exfat_free(volume, shape, told)
    return _contents(volume, shape, told, free, [], dirty=shape.dirty)


def _contents(
    volume: Volume, shape: _Shape, told: Told, free: list[Spaces], wrong: list[str], *, dirty: bool
) -> Contents:
    virtual = _hide_virtual(told)
    heard = hear(told, lambda _: True)

    def kind_of(inode: int, type_: int, _: int) -> tuple[SpaceKind, bool]:
        if inode in virtual:
            return SpaceKind.METADATA, False
        return (SpaceKind.DIRECTORY if type_ == Type.DIRECTORY else SpaceKind.FILE_DATA), True

    limit = min(shape.stop, volume.length)
    fixed, _ = apart(_structures(shape, heard.files.root), limit)
    taken, twice = apart(claims(heard, kind_of, shape.cluster, shape.data), limit)
    taken = over(fixed, taken)
    unused, _ = apart(np.concatenate(free) if free else nothing(), limit)
    whole, notes = used_and_free(taken, unused, twice, "table")
    notes += wrong
    if shape.stop > volume.length:
        notes.append("it is larger than its partition")
    state = VolumeState.DAMAGED if notes else VolumeState.CLEAN
    state = VolumeState.DIRTY if dirty else state
    return Contents(
        tile(whole, volume.length, SpaceKind.UNKNOWN),
        heard.files,
        state,
        read=True,
        notes=notes,
        sound=state is VolumeState.CLEAN,
    )


def _hide_virtual(told: Told) -> set[int]:
    """Take away the names of files that The Sleuth Kit makes up; return their inodes."""
    made_up = {text.decode() for text in _VIRTUAL_FILES}
    root = int(told.facts.get("root", -1))
    virtual = {i for p, i, name in told.names if p == root and name in made_up}
    told.names = [
        row for row in told.names if row[1] not in virtual and not row[2].endswith(_LABEL_ENTRY)
    ]
    return virtual


def _structures(shape: _Shape, root: int) -> Spaces:
    rows = [
        spaces(0, shape.fat, SpaceKind.METADATA),
        spaces(shape.fat, shape.fats * shape.fat_length, SpaceKind.BITMAP),
    ]
    between = shape.fat + shape.fats * shape.fat_length
    if shape.bits in (12, 16):
        rows.append(spaces(shape.root, shape.data - shape.root, SpaceKind.DIRECTORY, root))
    else:
        rows.append(spaces(between, max(0, shape.data - between), SpaceKind.METADATA))
    return np.concatenate(rows)


# --- FAT12, FAT16 and FAT32 ---------------------------------------------------------------------


def _fat_shape(volume: Volume) -> _Shape:
    head = volume.read(0, 512)
    boot = parse(FatBoot, head, path=volume.path, offset=volume.start, name="FatBoot")
    bits = fat_bits(boot)
    if bits is None:
        raise UnreadableError("its boot sector is damaged")
    sector = boot.sector_size
    fat_length = (boot.fat_size16 or boot.fat_size32) * sector
    root = boot.reserved * sector + boot.fats * fat_length
    data = root + -(-boot.root_entries * 32 // sector) * sector
    cluster = boot.sectors_per_cluster * sector
    sectors = boot.sectors16 or boot.sectors32
    clusters = min((sectors * sector - data) // cluster, fat_length * 8 // bits - 2)
    if clusters < 1 or data >= volume.length:
        raise UnreadableError("its boot sector is damaged")
    dirty = bool(head[65 if bits == 32 else 37] & 1)
    fat = boot.reserved * sector
    mirrored = bits != 32 or not boot.flags & _NOT_MIRRORED
    return _Shape(bits, fat, boot.fats, fat_length, root, data, cluster, clusters, dirty, mirrored)


class _Table:
    """The entries of the first table, a part at a time, behind the number of the first one.

    Attributes:
        dirty: whether an entry says that the file system is mounted.
        differs: whether another table that should be the same is not. Both are known at the end.
    """

    def __init__(self, volume: Volume, shape: _Shape) -> None:
        self._volume, self._shape = volume, shape
        self.dirty = self.differs = False

    def __iter__(self) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        shape = self._shape
        entries = shape.clusters + 2
        length = min(shape.fat_length, -(-entries * shape.bits // 8))
        for at in range(0, length, _AT_ONCE):
            data = self._volume.read(shape.fat + at, min(_AT_ONCE, length - at))
            if shape.mirrored:
                self._hold_others(at, data)
            values = _decode(data, shape.bits)
            first = at * 8 // shape.bits
            if first == 0:
                self._look_at_state(values)
            yield first, values[: entries - first]

    def _hold_others(self, at: int, data: bytes) -> None:
        """Hold a part of the first table against the same part of the others."""
        for number in range(1, self._shape.fats):
            start = self._shape.fat + number * self._shape.fat_length
            self.differs |= self._volume.read(start + at, len(data)) != data

    def _look_at_state(self, values: npt.NDArray[Any]) -> None:
        """Entry 1 has a bit that is cleared while the file system is mounted."""
        clean = {32: 1 << 27, 16: 1 << 15}.get(self._shape.bits)
        self.dirty = clean is not None and not int(values[1]) & clean


def _decode(data: bytes, bits: int) -> npt.NDArray[Any]:
    if bits != 12:
        width = bits // 8
        values = np.frombuffer(data[: len(data) // width * width], f"<u{width}")
        return values & 0x0FFFFFFF if bits == 32 else values
    triple = np.frombuffer(data + bytes(-len(data) % 3), np.uint8).reshape(-1, 3).astype(np.uint16)
    even = triple[:, 0] | ((triple[:, 1] & 0xF) << 8)
    odd = (triple[:, 1] >> 4) | (triple[:, 2] << 4)
    return np.stack([even, odd], axis=1).reshape(-1)


def _runs_of_zeros(values: npt.NDArray[Any], first: int, shape: _Shape) -> tuple[Any, Any]:
    used = np.concatenate([[1], values != 0, [1]]).astype(np.int8)
    if first == 0:
        used[1:3] = 1  # entries 0 and 1 are no clusters'
    edges = np.diff(used)
    begin, end = np.flatnonzero(edges == -1), np.flatnonzero(edges == 1)
    start = shape.data + (first + begin - 2) * shape.cluster
    return start, (end - begin) * shape.cluster


# --- exFAT --------------------------------------------------------------------------------------


def _exfat_shape(volume: Volume) -> _Shape:
    boot = parse(
        ExfatBoot, volume.read(0, 512), path=volume.path, offset=volume.start, name="ExfatBoot"
    )
    if not 9 <= boot.sector_shift <= 12 or boot.cluster_shift > 25 - boot.sector_shift:
        raise UnreadableError("its boot sector is damaged")
    sector = 1 << boot.sector_shift
    cluster = sector << boot.cluster_shift
    data = boot.heap_offset * sector
    if not 0 < data < volume.length or not boot.clusters or not 1 <= boot.fats <= 2:
        raise UnreadableError("its boot sector is damaged")
    return _Shape(
        0, boot.fat_offset * sector, boot.fats, boot.fat_length * sector, data, data, cluster,
        min(boot.clusters, -(-volume.length // cluster)), bool(boot.flags & _EXFAT_DIRTY),
    )  # fmt: skip


def _exfat_free(volume: Volume, shape: _Shape, told: Told) -> list[Spaces]:
    """Return what the bitmap says is free; The Sleuth Kit shows it as a file."""
    root = int(told.facts["root"])
    inodes = {i for p, i, name in told.names if p == root and name == "$ALLOC_BITMAP"}
    attributes = [a for a in hear(told, lambda _: True).attributes if a.inode in inodes][:1]
    found: list[Spaces] = []
    first = 0
    for one in attributes:
        for start, length, _ in one.runs:
            length = min(length, volume.length - start, -(-shape.clusters // 8) - first // 8)
            for at in range(start, start + length, _AT_ONCE):
                data = volume.read(at, min(_AT_ONCE, start + length - at))
                bits = np.frombuffer(data, np.uint8)
                found.append(zero_bits(bits, first, shape.cluster, shape.data))
                first += len(data) * 8
    for rows in found:
        rows["length"] = np.minimum(stops(rows), shape.stop) - rows["start"]
    return [rows[rows["length"] > 0] for rows in found]
