"""A whole disk told apart: its partitions, and whose each range is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ..errors import printable
from ..extents import Offsets
from ..image import Image
from .contents import Contents, UnreadableError, one_kind
from .ext.read import read_ext
from .fat import read_exfat, read_fat
from .kinds import Partition, SpaceKind, VolumeState
from .ntfs import read_ntfs
from .partitions import PartitionTable, read_partitions
from .probe import Probe, probe
from .space import NOBODY, Index, Spaces, apart, over, spaces, stops, tile
from .volume import Volume

_READERS: dict[str, Callable[[Volume], Contents]] = {
    "ext2": read_ext, "ext3": read_ext, "ext4": read_ext, "ntfs": read_ntfs,
    "fat12": read_fat, "fat16": read_fat, "fat32": read_fat, "exfat": read_exfat,
}  # fmt: skip
READ = frozenset(_READERS)
"""The file systems that are read here."""
_AT_THE_START = {"ntfs", "fat12", "fat16", "fat32", "exfat", "iso9660"}
"""What begins in a disk's first sector, or leaves room there, and looks like an MBR."""
_NOTES = {
    "xfs": "XFS is not read here",
    "btrfs": "Btrfs is not read here",
    "luks": "it is encrypted (LUKS)",
    "bitlocker": "it is encrypted (BitLocker)",
    "lvm": "it is a volume of LVM, which is not read here",
    "linux raid": "it is a member of a software RAID, which is not read here",
    "ext journal": "it is the journal of another file system",
}


@dataclass(frozen=True)
class DiskMap:
    """A disk, told apart.

    Attributes:
        size: the disk's, bytes.
        partitions: by their start; a whole disk without a table is one, where it holds something.
        contents: what each holds.
        spaces: records of :data:`.SPACE` that tile the disk; an owner is the row of a file in its
            partition's ``contents.files``, plus the partition's number in ``first_owner``.
        first_owner: for each partition, how many files those before it have; and how many all have.
        partition: for each record, the index of its partition, or -1.
        notes: what is wrong with the partition table.
    """

    size: int
    partitions: tuple[Partition, ...]
    contents: tuple[Contents, ...]
    spaces: Spaces
    first_owner: tuple[int, ...]
    partition: Index
    notes: tuple[str, ...]

    def free(self, index: int) -> Offsets:
        """Return what a partition's file system says is free.

        Returns:
            Pairs of where on the disk each range begins and ends, shape (count, 2), sorted and
            apart. They are to be relied on where the partition's ``contents.sound`` says so.
        """
        rows = self.spaces[(self.partition == index) & (self.spaces["kind"] == SpaceKind.FREE)]
        return np.stack([rows["start"], stops(rows)], axis=1)


def read_disk(image: Image) -> DiskMap:
    """Read an image's partition tables and file systems.

    Whatever they are: what cannot be read is told in notes.

    Raises:
        CorruptImageError: the image cannot be read.
    """
    disk = Volume.of(image, image.path)
    whole = probe(disk)
    bare = whole is not None and whole.filesystem in _AT_THE_START
    table = read_partitions(disk, bare=bare, held=whole is not None)
    if table.scheme == "none" and whole is not None:
        table.partitions = [Partition(0, 0, disk.length, "none")]
    contents: list[Contents] = []
    partitions: list[Partition] = []
    for part in table.partitions:
        volume = disk.part(part.start, part.length)
        found = probe(volume)
        held = read_volume(volume, found)
        contents.append(held)
        partitions.append(_described(part, found, held))
    return _assemble(disk.length, table, partitions, contents)


def read_volume(volume: Volume, found: Probe | None) -> Contents:
    """Read a file system, if it is one that is read.

    Raises:
        CorruptImageError: the image cannot be read.
    """
    if found is None:
        return one_kind(volume.length, SpaceKind.NOT_READ, "it holds nothing that is known here")
    if found.filesystem == "swap":
        return one_kind(volume.length, SpaceKind.SWAP)
    reader = _READERS.get(found.filesystem)
    if reader is None:
        note = _NOTES.get(found.filesystem, f"{found.filesystem} is not read here")
        return one_kind(volume.length, SpaceKind.NOT_READ, note)
    try:
        return reader(volume)
    except UnreadableError as error:
        note = str(error)
    except (ArithmeticError, LookupError, ValueError, MemoryError):
        # The readers check what they use. Should they have missed something, it is one file
        # system that is not read, and not the end of everything.
        note = "it is damaged in a way that was not foreseen"
    return one_kind(volume.length, SpaceKind.NOT_READ, note)


def _described(part: Partition, found: Probe | None, held: Contents) -> Partition:
    notes = ([part.note] if part.note else []) + held.notes
    swap = found is not None and found.filesystem == "swap"
    return replace(
        part,
        filesystem=None if found is None else found.filesystem,
        label=held.label or ("" if found is None else found.label),
        uuid="" if found is None else found.uuid,
        read=held.read or swap,
        note="; ".join(printable(note) for note in notes) or None,
        state=VolumeState.CLEAN if swap else held.state,
    )


def _assemble(
    size: int, table: PartitionTable, partitions: list[Partition], contents: list[Contents]
) -> DiskMap:
    owners = np.cumsum([0, *(held.files.count for held in contents)]).tolist()
    rows = []
    for part, held, first in zip(partitions, contents, owners[:-1], strict=True):
        moved = held.spaces.copy()
        moved["start"] += part.start
        moved["owner"][moved["owner"] != NOBODY] += first
        rows.append(moved)
    below, _ = apart(
        spaces(
            np.array([start for start, _ in table.tables], np.int64),
            np.array([length for _, length in table.tables], np.int64),
            SpaceKind.PARTITION_TABLE,
        ),
        size,
    )
    outside = SpaceKind.UNKNOWN if table.scheme == "none" else SpaceKind.UNPARTITIONED
    inside = np.concatenate([*rows, below[:0]])
    # Neighbours in two partitions may be of the same kind; they must not become one record.
    found = tile(over(inside, below), size, outside, keep=[part.start for part in partitions])
    starts = np.array([part.start for part in partitions], np.int64)
    ends = np.array([part.stop for part in partitions], np.int64)
    index = np.searchsorted(starts, found["start"], side="right") - 1
    if starts.size:
        index = np.where((index >= 0) & (found["start"] < ends[index]), index, -1)
    notes = list(table.notes)
    if table.scheme == "none" and not partitions and not notes:
        notes.append("it has no partition table and no file system that is known here")
    return DiskMap(
        size, tuple(partitions), tuple(contents), found, tuple(owners), index, tuple(notes)
    )
