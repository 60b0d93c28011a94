"""The words that every report uses for kinds of space, partitions and advice.

Whatever comes from an image is made printable here; for HTML it has to be escaped as well.
"""

from __future__ import annotations

from ..attribution.figures import (
    Advice,
    Attribution,
    FileChange,
    FileStatus,
    PartitionShare,
    SourceFacts,
)
from ..delta import Summary
from ..disk.kinds import Partition, SpaceKind, VolumeState
from ..errors import printable
from ..units import readable

KIND_NAMES = {
    SpaceKind.FILE_DATA: "file data",
    SpaceKind.DIRECTORY: "directories",
    SpaceKind.INODE_TABLE: "inode tables",
    SpaceKind.JOURNAL: "journal",
    SpaceKind.BITMAP: "allocation maps",
    SpaceKind.METADATA: "other metadata",
    SpaceKind.FREE: "free space",
    SpaceKind.SWAP: "swap",
    SpaceKind.PARTITION_TABLE: "partition table",
    SpaceKind.UNPARTITIONED: "outside partitions",
    SpaceKind.NOT_READ: "not read",
    SpaceKind.UNKNOWN: "not attributed",
}
OUTSIDE = "outside any partition"
NO_NAME = "(no name, but still in use)"
_LONGEST = 400


def partition_name(partition: Partition | None) -> str:
    """Return what a partition is called in a table: ``1 ext4 "root"``."""
    if partition is None:
        return OUTSIDE
    number = str(partition.number) if partition.number else "whole disk"
    what = printable(partition.filesystem or partition.type or "nothing known")
    name = printable(partition.label or partition.name)
    gone = ", gone" if partition.gone else ""
    return f'{number} {what} "{name}"{gone}' if name else f"{number} {what}{gone}"


def partition_short(partition: Partition) -> str:
    """Return what a partition is called where there is little room: ``1 ext4``."""
    number = str(partition.number) if partition.number else "disk"
    return f"{number} {printable(partition.filesystem or partition.type or '?')}"


def partition_detail(partition: Partition) -> list[str]:
    """Return all else there is to tell of a partition."""
    told = [
        f"{readable(partition.length)} at {readable(partition.start)}"
        if partition.start
        else readable(partition.length)
    ]
    if partition.scheme != "none":
        told.append(f"{partition.scheme.upper()}, {printable(partition.type) or 'no type'}")
    if partition.name and partition.label:
        told.append(f'named "{printable(partition.name)}"')
    if partition.uuid:
        told.append(f"UUID {printable(partition.uuid)}")
    if partition.state not in (VolumeState.CLEAN, VolumeState.NOT_READ):
        told.append(partition.state.value)
    if partition.note:
        told.append(printable(partition.note))
    return told


def advice_text(advice: Advice) -> str:
    """Return an advice's sentence."""
    return "".join(readable(part) if isinstance(part, int) else part for part in advice.text)


def file_path(file: FileChange, longest: int | None = None) -> str:
    """Return a file's path as text, cut in the middle where it is longer than ``longest``."""
    return shortened(printable(file.path) if file.path else NO_NAME, longest)


def shortened(text: str, longest: int | None = _LONGEST) -> str:
    """Return a text with its middle left out where it is longer than ``longest``."""
    if longest is None or len(text) <= longest:
        return text
    head = longest // 3
    return f"{text[:head]}…{text[len(text) - (longest - head - 1) :]}"


def told_shares(attribution: Attribution) -> list[PartitionShare]:
    """Return the shares that tell something: a disk that is one file system has no outside."""
    whole = any(not each.number and not each.gone for each in attribution.partitions)
    return [
        share
        for share in attribution.by_partition
        if share.partition is not None or share.changed_bytes or not whole
    ]


def percent(part: int, whole: int) -> str:
    """Return a share as people read it."""
    if not whole:
        return "-"
    share = 100 * part / whole
    if 0 < share < 0.01:
        return "<0.01 %"
    return f"{share:.2f} %" if 0 < share < 0.1 else f"{share:.1f} %"


def files_text(found: Attribution) -> str:
    """Return how many files changed, and how many only share clusters with what did."""
    beside = sum(file.status is FileStatus.UNCHANGED for file in found.files)
    changed = len(found.files) - beside
    text = f"{changed:,} changed file{'' if changed == 1 else 's'}"
    return f"{text}, {beside:,} unchanged beside them" if beside else text


def resize_text(summary: Summary) -> str:
    """Return what became of the disk's size; empty where it is the same, or not known."""
    old, new = summary.base_size, summary.size
    if old is None or old == new:
        return ""
    one, other = readable(old), readable(new)
    if one == other:  # by less than is shown
        one, other = f"{old:,}", f"{new:,} bytes"
    return f"the disk {'grew' if new > old else 'shrank'} from {one} to {other}"


def source_name(source: SourceFacts | None, otherwise: str) -> str:
    """Return the file name of one side."""
    return otherwise if source is None else printable(source.path).rsplit("/", 1)[-1]


def inner_space(attribution: Attribution) -> list[tuple[SpaceKind, int]]:
    """Return the changed bytes by kind of space, most first."""
    return sorted(attribution.by_kind.items(), key=lambda item: (-item[1], item[0]))
