"""What became of each file: matched file systems, and changed bytes added up by file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import repeat

import numpy as np
import numpy.typing as npt

from ..disk.compare import Matching, rewritten
from ..disk.contents import Contents
from ..disk.diskmap import DiskMap
from ..disk.files import FileTable, Type
from ..disk.kinds import Partition
from ..disk.pairing import Pairing, volume_of
from ..disk.space import NOBODY, Index
from ..extents import Mask, Offsets
from ..image import Image
from .figures import FileChange, FileStatus, FileType

_TYPES = tuple(FileType)
_STATUSES = tuple(FileStatus)
_NUMBER = {status: number for number, status in enumerate(_STATUSES)}


class FileChanges:
    """The files that changed.

    Args:
        pairing: OLD's and NEW's disks.
        changed: changed bytes of each record of NEW's map.
        certain: whether something in a record surely differs, rather than in the same granule.
        images: OLD and NEW, to compare what shares a granule with a change; None where not there.

    Raises:
        CorruptImageError: an image cannot be read.

    Attributes:
        files: the files that changed, by changed bytes and then freed bytes, largest first.
        gone: the partitions that only OLD has.
        untold: how many files could not be compared: they count as unchanged, or as changed in
            metadata only.
        index_of_owner: for each owner of NEW's map the index of its change, or -1.
    """

    def __init__(
        self,
        pairing: Pairing,
        changed: Offsets,
        certain: Mask,
        images: tuple[Image | None, Image | None],
    ) -> None:
        self._images = images
        self.untold = 0
        self._pairing = pairing
        self._disk = pairing.new
        self._changed = by_owner(self._disk, changed)
        self._certain = by_owner(self._disk, certain.astype(np.int64)) > 0
        self.gone: tuple[Partition, ...] = tuple(
            replace(part, gone=True)
            for number, part in enumerate(pairing.old.partitions)
            if number not in pairing.partitions.values()
        )
        parts = list(self._all())
        found = [file for part in parts for file in part.files]
        owner, changed_bytes, freed = (
            np.concatenate([np.empty(0, np.int64), *(getattr(part, name) for part in parts)])
            for name in ("owner", "changed", "freed")
        )
        order = np.lexsort((-freed, -changed_bytes))
        self.files = [found[at] for at in order.tolist()]
        owners = owner[order]
        index = np.flatnonzero(owners != NOBODY)
        self.index_of_owner = np.full(self._changed.size, -1, np.int32)
        self.index_of_owner[owners[index]] = index

    def _all(self) -> Iterator[_Part]:
        """Yield every file that changed."""
        pairing = self._pairing
        for number, matching in enumerate(pairing.files):
            theirs = pairing.partitions.get(number)
            yield self._of_new(number, matching, theirs)
            if theirs is not None and self._disk.contents[number].read:
                gone = np.ones(pairing.old.contents[theirs].files.count, bool)
                gone[matching.old[matching.old >= 0]] = False
                yield self._lost(number, theirs, gone)
        number = len(self._disk.partitions)
        for theirs, held in enumerate(pairing.old.contents):
            if theirs not in pairing.partitions.values():
                yield self._lost(number, theirs, np.ones(held.files.count, bool))
                number += 1

    def _of_new(self, number: int, matching: Matching, theirs: int | None) -> _Part:
        """Return the files of a partition of NEW that changed."""
        files = self._disk.contents[number].files
        old, first = FileTable.empty(), 0
        if theirs is not None:
            old = self._pairing.old.contents[theirs].files
            first = self._pairing.old.first_owner[theirs]
        own = self._owners(number)
        certain = self._certain[own]
        if theirs is not None:
            certain = certain | self._rewritten(number, theirs, matching)
        status = _statuses(files, old, matching, self._changed[own], certain)
        rows = np.flatnonzero(status >= 0)
        was, status = matching.old[rows], status[rows]
        freed = np.where(was >= 0, self._pairing.freed[first + np.maximum(was, 0)], 0)
        changed = self._changed[own][rows]
        found = map(
            FileChange._make,
            zip(
                _paths(files, rows, matching.name[rows]),
                repeat(number),
                map(_STATUSES.__getitem__, status.tolist()),
                map(_TYPES.__getitem__, files.type[rows].tolist()),
                _came_from(old, was, status == _NUMBER[FileStatus.MOVED], matching),
                *(column.tolist() for column in (files.size[rows], changed, freed)),
                files.inode[rows].tolist(),
            ),
        )
        return _Part(own.start + rows, changed, freed, list(found))

    def _rewritten(self, number: int, theirs: int, found: Matching) -> Mask:
        """Tell which files of a partition were changed in their place, by reading them.

        Only those of which the granules do not tell: they share one with what changed.
        """
        old, new = self._pairing.old, self._disk
        files = new.contents[number].files
        own = self._owners(number)
        out = np.zeros(files.count, bool)
        in_doubt = (found.old >= 0) & (self._changed[own] > 0) & ~self._certain[own]
        in_doubt &= ~found.moved & ~found.laid & ~found.differs
        in_doubt &= (files.type == Type.FILE) | (files.type == Type.SYMLINK)
        rows = np.flatnonzero(in_doubt)
        before, after = self._images
        if rows.size and before is not None and after is not None:
            compared, out[rows] = rewritten(
                old.contents[theirs].files,
                files,
                found.old[rows],
                rows,
                volume_of(before, old.partitions[theirs]),
                volume_of(after, new.partitions[number]),
            )
            self.untold += int((~compared).sum())
        return out

    def _owners(self, number: int) -> slice:
        """Return which owners of NEW's map are the files of a partition."""
        base = self._disk.first_owner[number]
        return slice(base, base + self._disk.contents[number].files.count)

    def _lost(self, number: int, theirs: int, rows: Mask) -> _Part:
        """Return files of OLD that are in NEW no longer."""
        held: Contents = self._pairing.old.contents[theirs]
        files = held.files
        first = self._pairing.old.first_owner[theirs]
        freed = self._pairing.freed[first : first + files.count]
        named = files.first_names() >= 0
        index = np.flatnonzero(rows & (named | (freed > 0)))
        found = map(
            FileChange._make,
            zip(
                files.paths_of(index),
                repeat(number),
                repeat(FileStatus.DELETED),
                map(_TYPES.__getitem__, files.type[index].tolist()),
                repeat(None),
                files.size[index].tolist(),
                repeat(0),
                freed[index].tolist(),
                files.inode[index].tolist(),
            ),
        )
        nobody = np.full(index.size, NOBODY, np.int64)
        return _Part(nobody, np.zeros(index.size, np.int64), freed[index], list(found))


@dataclass(frozen=True)
class _Part:
    """Some of the files that changed, and columns of what they are sorted and found by.

    Attributes:
        owner: of each, in NEW's map; NOBODY where it is in OLD only.
        changed, freed: bytes of each.
        files: the files.
    """

    owner: Offsets
    changed: Offsets
    freed: Offsets
    files: list[FileChange]


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


def _came_from(old: FileTable, was: Index, moved: Mask, found: Matching) -> Iterator[bytes | None]:
    """Return an iterator over the paths in OLD of files that moved, None for the others."""
    rows = was[moved]
    paths = iter(_paths(old, rows, found.old_name[rows]))
    return (next(paths) if is_moved else None for is_moved in moved.tolist())


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
