"""What became of each file: OLD's and NEW's file systems compared, and bytes added up by file."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from .attribution import FileChange, FileStatus, FileType
from .disk.compare import Matching, match, unmatched
from .disk.contents import Contents
from .disk.diskmap import DiskMap, read_disk
from .disk.files import FileTable
from .disk.kinds import Partition
from .disk.space import NOBODY, Spaces, cut
from .disk.volume import Volume
from .extents import Mask, Offsets
from .image import Image

_TYPES = tuple(FileType)
_EXT = {"ext2", "ext3", "ext4"}
_FAT = {"fat12", "fat16", "fat32"}


class FileComparison:
    """Compares the file systems of two disks.

    Args:
        disk: NEW's map.
        old, new: the images, where they are at hand.
        changed: changed bytes of each record of the map.
        certain: whether something in a record surely differs, rather than in the same granule.

    Attributes:
        changes: the files that changed, largest first.
        gone: the partitions that only OLD has.
        notes: what could not be compared.
        index_of_owner: for each owner of the map the index of its change, or -1.

    Raises:
        CorruptImageError: an image cannot be read.
    """

    def __init__(
        self,
        disk: DiskMap,
        old: Image | None,
        new: Image | None,
        changed: Offsets,
        certain: Mask,
    ) -> None:
        self._disk = disk
        self.gone: list[Partition] = []
        self.notes: list[str] = []
        self.index_of_owner = np.full(max(disk.first_owner[-1], 1), -1, np.int32)
        self._changed = self._by_owner(changed)
        self._certain = self._by_owner(certain.astype(np.int64)) > 0
        self._found: list[tuple[int, FileChange]] = []
        if old is not None and new is not None and self._worthwhile(changed):
            self._compare(read_disk(old), old, new)
        self._found.sort(key=lambda row: (-row[1].changed_bytes, -row[1].freed_bytes))
        self.changes = [change for _, change in self._found]
        for index, (owner, _) in enumerate(self._found):
            if owner >= 0:
                self.index_of_owner[owner] = index

    def _worthwhile(self, changed: Offsets) -> bool:
        return bool(changed.any()) and bool(self._disk.partitions)

    def _by_owner(self, weights: Offsets) -> Offsets:
        owner = self._disk.spaces["owner"]
        owned = owner != NOBODY
        sums = np.zeros(max(self._disk.first_owner[-1], 1), np.int64)
        np.add.at(sums, owner[owned], weights[owned])
        return sums

    def _compare(self, before: DiskMap, old: Image, new: Image) -> None:
        pairs = pair_partitions(before.partitions, self._disk.partitions)
        kept = np.full(max(before.first_owner[-1], 1), NOBODY, np.int64)
        matchings: list[Matching] = []
        for number, part in enumerate(self._disk.partitions):
            ours, theirs = self._disk.contents[number], pairs.get(number)
            found = unmatched(ours.files)
            if theirs is not None and ours.read:
                other = before.partitions[theirs]
                if not before.contents[theirs].read:
                    self.notes.append(
                        f"OLD's partition {other.number} was not read, so that its files are not "
                        "known: all of NEW's count as added"
                    )
                else:
                    found = match(
                        before.contents[theirs].files,
                        ours.files,
                        Volume.of(old, old.path).part(other.start, other.length),
                        Volume.of(new, new.path).part(part.start, part.length),
                    )
                    rows = np.flatnonzero(found.old >= 0)
                    kept[found.old[rows] + before.first_owner[theirs]] = (
                        rows + self._disk.first_owner[number]
                    )
            matchings.append(found)
        freed = freed_bytes(before.spaces, self._disk.spaces, kept)
        taken = set(pairs.values())
        for number, found in enumerate(matchings):
            theirs = pairs.get(number)
            self._add_new(number, found, before, theirs, freed)
            if theirs is not None:
                self._add_deleted(number, found, before, theirs, freed)
        for theirs, other in enumerate(before.partitions):
            if theirs not in taken:
                self._add_gone(other, before, theirs, freed)

    # --- one partition --------------------------------------------------------------------------

    def _add_new(
        self,
        number: int,
        found: Matching,
        before: DiskMap,
        theirs: int | None,
        freed: Offsets,
    ) -> None:
        """Take the files of a partition of NEW that changed."""
        files = self._disk.contents[number].files
        old = FileTable.empty() if theirs is None else before.contents[theirs].files
        base = self._disk.first_owner[number]
        changed = self._changed[base : base + files.count]
        certain = self._certain[base : base + files.count]
        status = _statuses(files, old, found, changed, certain)
        first = 0 if theirs is None else before.first_owner[theirs]
        for row in np.flatnonzero(status >= 0).tolist():
            match_row = int(found.old[row])
            what = _STATUSES[int(status[row])]
            old_path = None
            if what is FileStatus.MOVED:
                old_path = _path(old, match_row, int(found.old_name[match_row]))
            change = FileChange(
                path=_path(files, row, int(found.name[row])),
                partition=number,
                status=what,
                type=_TYPES[int(files.type[row])],
                old_path=old_path,
                size=int(files.size[row]),
                changed_bytes=int(changed[row]),
                freed_bytes=int(freed[first + match_row]) if match_row >= 0 else 0,
                inode=int(files.inode[row]),
            )
            self._found.append((base + row, change))

    def _add_deleted(
        self, number: int, found: Matching, before: DiskMap, theirs: int, freed: Offsets
    ) -> None:
        """Take the files of a partition of OLD that are no longer there."""
        if not self._disk.contents[number].read:
            return
        files = before.contents[theirs].files
        gone = np.ones(files.count, bool)
        gone[found.old[found.old >= 0]] = False
        first = before.first_owner[theirs]
        self._add_lost(number, before.contents[theirs], gone, freed[first : first + files.count])

    def _add_gone(self, other: Partition, before: DiskMap, theirs: int, freed: Offsets) -> None:
        """Take all files of a partition that only OLD has."""
        number = len(self._disk.partitions) + len(self.gone)
        self.gone.append(replace(other, gone=True))
        held = before.contents[theirs]
        first = before.first_owner[theirs]
        every = np.ones(held.files.count, bool)
        self._add_lost(number, held, every, freed[first : first + held.files.count])

    def _add_lost(self, number: int, held: Contents, rows: Mask, freed: Offsets) -> None:
        files = held.files
        named = files.first_names() >= 0
        for row in np.flatnonzero(rows & (named | (freed > 0))).tolist():
            change = FileChange(
                path=files.path_of(row),
                partition=number,
                status=FileStatus.DELETED,
                type=_TYPES[int(files.type[row])],
                old_path=None,
                size=int(files.size[row]),
                changed_bytes=0,
                freed_bytes=int(freed[row]),
                inode=int(files.inode[row]),
            )
            self._found.append((NOBODY, change))


_STATUSES = tuple(FileStatus)
_NUMBER = {status: number for number, status in enumerate(_STATUSES)}


def _path(files: FileTable, row: int, name: int) -> bytes:
    return files.path(name) if name >= 0 else files.path_of(row)


def _statuses(
    files: FileTable, old: FileTable, found: Matching, changed: Offsets, certain: Mask
) -> npt.NDArray[np.int8]:
    """Return the number of each file's status; -1 where nothing became of it."""
    there = found.old >= 0
    row = np.where(there, found.old, 0)
    named = (found.name >= 0) | (np.arange(files.count) == files.root)
    meta = np.zeros(files.count, bool)
    if old.count:
        meta = there & (files.metadata != old.metadata[row])
    out = np.full(files.count, -1, np.int8)
    # From what says least to what says most.
    steps: tuple[tuple[FileStatus, Mask], ...] = (
        (FileStatus.UNCHANGED, there & (changed > 0)),
        (FileStatus.METADATA, meta & ~found.differs),
        (FileStatus.MODIFIED, there & (certain | found.differs)),
        (FileStatus.MOVED, there & (found.moved | (found.laid & (changed > 0)))),
        (FileStatus.ADDED, ~there & (named | (changed > 0))),
    )
    for status, rows in steps:
        out[rows] = _NUMBER[status]
    return out


def pair_partitions(old: tuple[Partition, ...], new: tuple[Partition, ...]) -> dict[int, int]:
    """Match partitions: by where they begin and what they hold, then by UUID, then by begin."""
    pairs: dict[int, int] = {}
    free = dict(enumerate(old))
    for key in (
        lambda p: (p.start, _family(p)),
        lambda p: p.uuid or None,
        lambda p: p.start,
    ):
        where = {key(p): number for number, p in reversed(free.items())}
        for number, part in enumerate(new):
            wanted = key(part)
            if number not in pairs and wanted is not None and where.get(wanted) in free:
                pairs[number] = where[wanted]
                del free[where[wanted]]
    return pairs


def _family(part: Partition) -> str | None:
    for family in (_EXT, _FAT):
        if part.filesystem in family:
            return min(family)
    return part.filesystem


def freed_bytes(old: Spaces, new: Spaces, kept: Offsets) -> Offsets:
    """Return for each owner of OLD how many of its bytes are not its own in NEW.

    Args:
        old: records that tile OLD.
        new: records that tile NEW.
        kept: the owner in NEW that each of OLD is; NOBODY for none.
    """
    sums = np.zeros(kept.size, np.int64)
    if not old.size or not new.size:
        return sums
    owned = old[old["owner"] != NOBODY]
    owned = cut(owned, new["start"])
    row = np.searchsorted(new["start"], owned["start"], side="right") - 1
    inside = owned["start"] < int(new["start"][-1] + new["length"][-1])
    same = inside & (new["owner"][row] == kept[owned["owner"]]) & (new["owner"][row] != NOBODY)
    np.add.at(sums, owned["owner"][~same], owned["length"][~same])
    return sums
