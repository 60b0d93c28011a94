"""Leaving out what lies in free space: a target that has the base's content there.

What a file system marks free nobody reads, but it is stored and compared like everything else:
what was deleted since, and what was written there before. The result is not block-identical to
NEW any more; every file of it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .diff import ImageDelta
from .disk.diskmap import DiskMap, read_disk
from .disk.kinds import Partition, VolumeState
from .errors import FreeSpaceError, printable
from .extents import Offsets
from .image import Image
from .spliced import SplicedImage
from .units import SECTOR

_GRANULARITY = 4096  # file systems seldom allocate less
_SHUT_DOWN = "shut down what uses it, entirely, so that it is unmounted, or "
_CHECK = "check it (fsck, chkdsk), or "
_REMEDIES = {
    VolumeState.DIRTY: _SHUT_DOWN + _CHECK,
    VolumeState.NEEDS_RECOVERY: _SHUT_DOWN + _CHECK,
    VolumeState.ERRORS: _CHECK,
    VolumeState.DAMAGED: _CHECK,
}


@dataclass(frozen=True)
class FreeSpace:
    """What is free on a disk, to be left out.

    Attributes:
        image: NEW, with OLD's content in its free space; OLD and NEW must stay open.
        free_bytes: how much is free.
        dropped_bytes: how much of that differs between OLD and NEW, in steps of 4 KiB.
        untouched: the partitions in which nothing that is known was found: left as they are.
    """

    image: Image
    free_bytes: int
    dropped_bytes: int
    untouched: tuple[Partition, ...]


def drop_free(old: Image, new: Image) -> FreeSpace:
    """Return NEW without what differs from OLD in its free space.

    Raises:
        FreeSpaceError: a file system of NEW is not clean, not read or not understood, or its
            partitions overlap or end beyond the disk, so that what is free cannot be told.
        CorruptImageError: an image cannot be read.
    """
    disk = read_disk(new)
    _require_sound(new, disk)
    free = _whole_sectors([disk.free(index) for index in range(len(disk.partitions))])
    untouched = tuple(part for part in disk.partitions if part.filesystem is None)
    return FreeSpace(
        SplicedImage(new, old, free),
        int((free[:, 1] - free[:, 0]).sum()),
        _differing(old, new, free),
        untouched,
    )


def is_free_space_sure(new: Image, disk: DiskMap) -> bool:
    """Tell whether what is free on NEW's disk can be relied on, so that it may be dropped."""
    try:
        _require_sound(new, disk)
    except FreeSpaceError:
        return False
    return True


def _require_sound(new: Image, disk: DiskMap) -> None:
    if not disk.partitions or disk.notes:
        why = "; ".join(disk.notes) or "it has no partition and no file system"
        raise _refused(new, f"its partitions are not understood: {why}")
    for part, held in zip(disk.partitions, disk.contents, strict=True):
        if part.disputed:
            # Free space of one partition may be what another one's files lie in.
            raise _refused(
                new, f"its partitions are not understood: partition {part.number}: {part.note}"
            )
        if part.filesystem in (None, "swap") or held.sound:
            continue
        where = f"partition {part.number}" if part.number else "the disk"
        why = part.note or f"its state is: {held.state.value}"
        raise _refused(
            new, f"{where} ({part.filesystem}) does not tell what is free: {why}", held.state
        )


def _refused(new: Image, why: str, state: VolumeState = VolumeState.NOT_READ) -> FreeSpaceError:
    """Return a refusal, with what helps a file system in that state, if anything does."""
    remedy = _REMEDIES.get(state, "")
    return FreeSpaceError(f"{printable(new.path)}: {why}; {remedy}do without --drop-free")


def _whole_sectors(found: list[Offsets]) -> Offsets:
    free = np.concatenate([np.empty((0, 2), np.int64), *found])
    free = np.stack([free[:, 0] + -free[:, 0] % SECTOR, free[:, 1] - free[:, 1] % SECTOR], axis=1)
    kept: Offsets = free[free[:, 0] < free[:, 1]]
    return kept


def _differing(old: Image, new: Image, free: Offsets) -> int:
    """Return how many bytes of free space differ; only that is compared."""
    delta = ImageDelta(old, new, granularity=_GRANULARITY, dirty=_Ranges(free, new.size))
    total = 0
    for window in delta.windows():
        start = window.changes["start"]
        total += _overlap(start, start + window.changes["length"], free)
    return total


def _overlap(start: Offsets, stop: Offsets, ranges: Offsets) -> int:
    """Return how many bytes of some ranges lie in others, which are sorted and apart."""
    lengths = np.concatenate([[0], np.cumsum(ranges[:, 1] - ranges[:, 0])])

    def before(points: Offsets) -> Offsets:
        row = np.searchsorted(ranges[:, 0], points, side="right")
        inside = np.minimum(points, ranges[row - 1, 1]) - ranges[row - 1, 0]
        found: Offsets = np.where(row > 0, lengths[row - 1] + inside, 0)
        return found

    return int((before(stop) - before(start)).sum()) if len(ranges) else 0


class _Ranges:
    """Ranges of a disk, as :class:`.DirtyRanges` are."""

    granularity = SECTOR

    def __init__(self, rows: Offsets, size: int) -> None:
        self._rows, self.size = rows, size

    def ranges(self, start: int, stop: int) -> Offsets:
        """Return what lies in ``[start, stop)``."""
        first = np.searchsorted(self._rows[:, 1], start, side="right")
        last = np.searchsorted(self._rows[:, 0], stop)
        rows = np.clip(self._rows[first:last], start, stop)
        kept: Offsets = rows[rows[:, 0] < rows[:, 1]]
        return kept

    def next_dirty(self, start: int) -> int | None:
        """Return where the next one goes on or begins."""
        row = int(np.searchsorted(self._rows[:, 1], start, side="right"))
        return max(start, int(self._rows[row, 0])) if row < len(self._rows) else None
