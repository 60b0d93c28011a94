"""What became of each file: matched file systems, and changed bytes added up by file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from .attribution import FileChange, FileStatus, FileType
from .disk.compare import Matching
from .disk.contents import Contents
from .disk.diskmap import DiskMap
from .disk.files import FileTable
from .disk.kinds import Partition
from .disk.pairing import Pairing
from .disk.space import NOBODY, Index
from .extents import Mask, Offsets

_TYPES = tuple(FileType)
_STATUSES = tuple(FileStatus)
_NUMBER = {status: number for number, status in enumerate(_STATUSES)}


class FileChanges:
    """The files that changed.

    Args:
        pairing: OLD's and NEW's disks.
        changed: changed bytes of each record of NEW's map.
        certain: whether something in a record surely differs, rather than in the same granule.

    Attributes:
        files: the files that changed, by changed bytes and then freed bytes, largest first.
        gone: the partitions that only OLD has.
        index_of_owner: for each owner of NEW's map the index of its change, or -1.
    """

    def __init__(self, pairing: Pairing, changed: Offsets, certain: Mask) -> None:
        self._pairing = pairing
        self._disk = pairing.new
        self._changed = by_owner(self._disk, changed)
        self._certain = by_owner(self._disk, certain.astype(np.int64)) > 0
        self.gone: tuple[Partition, ...] = tuple(
            replace(part, gone=True)
            for number, part in enumerate(pairing.old.partitions)
            if number not in pairing.partitions.values()
        )
        found = list(self._all())
        weights = np.array([(c.freed_bytes, c.changed_bytes) for _, c in found], np.int64)
        order = np.lexsort(-weights.reshape(-1, 2).T)
        self.files = [found[at][1] for at in order.tolist()]
        owners = np.array([owner for owner, _ in found], np.int64)[order]
        index = np.flatnonzero(owners != NOBODY)
        self.index_of_owner = np.full(self._changed.size, -1, np.int32)
        self.index_of_owner[owners[index]] = index

    def _all(self) -> Iterator[tuple[int, FileChange]]:
        """Yield every file that changed, behind its owner in NEW's map."""
        pairing = self._pairing
        for number, matching in enumerate(pairing.files):
            theirs = pairing.partitions.get(number)
            yield from self._of_new(number, matching, theirs)
            if theirs is not None and self._disk.contents[number].read:
                gone = np.ones(pairing.old.contents[theirs].files.count, bool)
                gone[matching.old[matching.old >= 0]] = False
                yield from self._lost(number, theirs, gone)
        number = len(self._disk.partitions)
        for theirs, held in enumerate(pairing.old.contents):
            if theirs not in pairing.partitions.values():
                yield from self._lost(number, theirs, np.ones(held.files.count, bool))
                number += 1

    def _of_new(
        self, number: int, matching: Matching, theirs: int | None
    ) -> Iterator[tuple[int, FileChange]]:
        """Yield the files of a partition of NEW that changed."""
        files = self._disk.contents[number].files
        old, first = FileTable.empty(), 0
        if theirs is not None:
            old = self._pairing.old.contents[theirs].files
            first = self._pairing.old.first_owner[theirs]
        base = self._disk.first_owner[number]
        own = slice(base, base + files.count)
        status = _statuses(files, old, matching, self._changed[own], self._certain[own])
        rows = np.flatnonzero(status >= 0)
        was = matching.old[rows]
        freed = np.where(was >= 0, self._pairing.freed[first + np.maximum(was, 0)], 0)
        columns = (
            rows, freed, status[rows], files.type[rows], files.size[rows],
            self._changed[own][rows], files.inode[rows],
        )  # fmt: skip
        moved = was[status[rows] == _NUMBER[FileStatus.MOVED]]
        came_from = iter(_paths(old, moved, matching.old_name[moved]))
        paths = _paths(files, rows, matching.name[rows])
        for path, row, gone, code, type_, size, changed, inode in zip(
            paths, *(column.tolist() for column in columns), strict=True
        ):
            what = _STATUSES[code]
            before = next(came_from) if what is FileStatus.MOVED else None
            yield (
                base + row,
                FileChange(path, number, what, _TYPES[type_], before, size, changed, gone, inode),
            )

    def _lost(self, number: int, theirs: int, rows: Mask) -> Iterator[tuple[int, FileChange]]:
        """Yield files of OLD that are in NEW no longer."""
        held: Contents = self._pairing.old.contents[theirs]
        files = held.files
        first = self._pairing.old.first_owner[theirs]
        freed = self._pairing.freed[first : first + files.count]
        named = files.first_names() >= 0
        index = np.flatnonzero(rows & (named | (freed > 0)))
        columns = (files.type[index], files.size[index], freed[index], files.inode[index])
        what = FileStatus.DELETED
        for path, type_, size, gone, inode in zip(
            files.paths_of(index), *(column.tolist() for column in columns), strict=True
        ):
            yield (
                NOBODY,
                FileChange(path, number, what, _TYPES[type_], None, size, 0, gone, inode),
            )


def by_owner(disk: DiskMap, weights: Offsets) -> Offsets:
    """Add up by owner what is given for each record of a disk's map."""
    owner = disk.spaces["owner"]
    owned = owner != NOBODY
    sums = np.zeros(max(disk.first_owner[-1], 1), np.int64)
    np.add.at(sums, owner[owned], weights[owned])
    return sums


def _paths(files: FileTable, rows: Index, names: Index) -> list[bytes]:
    """Return the paths of files by the given names; by their first ones where these are -1."""
    named = iter(files.paths(names[names >= 0]))
    others = iter(files.paths_of(rows[names < 0]))
    return [next(named if name >= 0 else others) for name in names.tolist()]


def _statuses(
    files: FileTable, old: FileTable, found: Matching, changed: Offsets, certain: Mask
) -> npt.NDArray[np.int8]:
    """Return the number of each file's status; -1 where nothing became of it."""
    there = found.old >= 0
    named = (found.name >= 0) | (np.arange(files.count) == files.root)
    meta = np.zeros(files.count, bool)
    if old.count:
        row = np.where(there, found.old, 0)
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
