"""What of two disks is not as it should be, so that what is told of their files may be wrong."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import printable
from .contents import Contents
from .diskmap import READ, DiskMap
from .kinds import Partition, VolumeState

_STATES = {
    VolumeState.DIRTY: "was not unmounted cleanly",
    VolumeState.NEEDS_RECOVERY: "needs recovery",
    VolumeState.ERRORS: "says of itself that it has errors",
    VolumeState.DAMAGED: "is damaged",
}


def doubts(old: DiskMap, new: DiskMap) -> list[str]:
    """Return what is wrong with either disk's partition tables and file systems.

    What was never meant to be read, such as an encrypted volume, is no doubt. Nor is it one
    that neither disk holds anything known.

    Args:
        old: OLD's map.
        new: NEW's map.
    """
    sides: dict[str, list[str]] = {}
    for side, disk in (("OLD", old), ("NEW", new)):
        for text in _of_disk(disk):
            sides.setdefault(text, []).append(side)
    unknown = set() if old.partitions or new.partitions else {*old.notes} & {*new.notes}
    return [
        f"{' and '.join(names)}: {text}" for text, names in sides.items() if text not in unknown
    ]


def place(part: Partition) -> str:
    """Return what a partition is called in a sentence."""
    where = f"partition {part.number}" if part.number else "the disk"
    return f"{where} ({printable(part.filesystem)})" if part.filesystem else where


def _of_disk(disk: DiskMap) -> Iterator[str]:
    yield from disk.notes
    for part, held in zip(disk.partitions, disk.contents, strict=True):
        what = _of_partition(part, held)
        if what is not None:
            yield f"{place(part)}{what}"


def _of_partition(part: Partition, held: Contents) -> str | None:
    state = _STATES.get(part.state)
    if state is not None:
        return f" {state}: {part.note}" if part.note else f" {state}"
    if not part.note:
        return None
    if part.filesystem in READ and not part.read:
        return f" was not read: {part.note}"
    # The rest of a note is the partition table's: overlaps, say.
    own = "; ".join(printable(note) for note in held.notes)
    return f": {part.note}" if part.read or part.note != own else None
