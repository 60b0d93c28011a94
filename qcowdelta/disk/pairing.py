"""Two disks, of which one is a later state of the other: partitions paired, files matched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ..extents import Offsets
from ..image import Image
from .compare import Matching, identical, match, unmatched
from .diskmap import DiskMap
from .doubts import place
from .kinds import Partition
from .space import NOBODY, Spaces, cut
from .volume import Volume

_FAMILIES = ({"ext2", "ext3", "ext4"}, {"fat12", "fat16", "fat32"})


@dataclass
class Pairing:
    """What of NEW was what of OLD.

    Attributes:
        old, new: the disks' maps.
        partitions: for each of NEW's partitions that OLD has, the index of that.
        files: for each of NEW's partitions its files, matched with those of OLD's.
        freed: for each owner of OLD how many of its bytes are not its own in NEW.
        notes: what could not be compared.
    """

    old: DiskMap
    new: DiskMap
    partitions: dict[int, int]
    files: list[Matching] = field(default_factory=list)
    freed: Offsets = field(default_factory=lambda: np.empty(0, np.int64))
    notes: list[str] = field(default_factory=list)


def pair_disks(before: DiskMap, after: DiskMap, old: Image | None, new: Image | None) -> Pairing:
    """Match the partitions and the files of two disks.

    Args:
        before: OLD's map.
        after: NEW's map.
        old: OLD, to compare content; None where ``before`` has no file systems.
        new: NEW, likewise.

    Raises:
        CorruptImageError: an image cannot be read.
    """
    found = Pairing(before, after, pair_partitions(before.partitions, after.partitions))
    kept = np.full(max(before.first_owner[-1], 1), NOBODY, np.int64)
    for number, held in enumerate(after.contents):
        theirs = found.partitions.get(number)
        matching = unmatched(held.files)
        if theirs is not None and held.read and old is not None and new is not None:
            if before.contents[theirs].read:
                matching = _match(before, after, (theirs, number), old, new)
                rows = np.flatnonzero(matching.old >= 0)
                first = before.first_owner[theirs]
                kept[matching.old[rows] + first] = rows + after.first_owner[number]
            else:
                found.notes.append(
                    f"{place(after.partitions[number])} was not read in OLD, so that its files "
                    "there are not known: all of NEW's count as added"
                )
        elif theirs is not None and before.contents[theirs].read and new is not None:
            found.notes.append(
                f"{place(before.partitions[theirs])} was not read in NEW, so that what became of "
                "its files is not known"
            )
        found.files.append(matching)
    found.freed = freed_bytes(before.spaces, after.spaces, kept)
    return found


def same_disk(disk: DiskMap) -> Pairing:
    """Return the pairing of a disk with itself."""
    found = Pairing(disk, disk, {number: number for number in range(len(disk.partitions))})
    found.files = [identical(held.files) for held in disk.contents]
    found.freed = np.zeros(max(disk.first_owner[-1], 1), np.int64)
    return found


def _match(
    before: DiskMap, after: DiskMap, numbers: tuple[int, int], old: Image, new: Image
) -> Matching:
    return match(
        before.contents[numbers[0]].files,
        after.contents[numbers[1]].files,
        volume_of(old, before.partitions[numbers[0]]),
        volume_of(new, after.partitions[numbers[1]]),
    )


def volume_of(image: Image, part: Partition) -> Volume:
    """Return what a partition of an image holds."""
    return Volume.of(image, image.path).part(part.start, part.length)


def pair_partitions(old: tuple[Partition, ...], new: tuple[Partition, ...]) -> dict[int, int]:
    """Pair partitions: by where they begin and what they hold, then by UUID, then by begin.

    Returns:
        The index of OLD's for each index of NEW's that has one.
    """
    pairs: dict[int, int] = {}
    free = dict(enumerate(old))
    keys: tuple[Callable[[Partition], object], ...] = (
        lambda part: (part.start, _family(part)),
        lambda part: part.uuid or None,
        lambda part: part.start,
    )
    for key in keys:
        where = {key(part): number for number, part in reversed(free.items())}
        for number, part in enumerate(new):
            wanted = key(part)
            other = where.get(wanted) if wanted is not None else None
            if number not in pairs and other in free:
                pairs[number] = other
                del free[other]
    return pairs


def _family(part: Partition) -> str | None:
    for family in _FAMILIES:
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
    owned = cut(old[old["owner"] != NOBODY], new["start"])
    row = np.searchsorted(new["start"], owned["start"], side="right") - 1
    inside = owned["start"] < int(new["start"][-1] + new["length"][-1])
    same = inside & (new["owner"][row] == kept[owned["owner"]]) & (new["owner"][row] != NOBODY)
    np.add.at(sums, owned["owner"][~same], owned["length"][~same])
    return sums
