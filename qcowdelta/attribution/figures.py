"""To whom the bytes of a delta belong: the figures that every report shows.

Sums are exact: the shares of the partitions add up to the bytes changed, and so do the kinds of
space, in all and within each share. Changed bytes are counted where NEW has them, in whole
granules of the delta; what became zeros counts too. What a file occupied in OLD alone is freed,
and its space counts as what NEW uses it for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..disk.kinds import Partition, SpaceKind


class FileStatus(Enum):
    """What became of a file from OLD to NEW."""

    ADDED = "added"
    MODIFIED = "modified"
    DELETED = "deleted"
    MOVED = "moved"
    """Same content, under another path or, where the old path is the same, at another place."""
    METADATA = "metadata"
    """Same content; its times, rights, owner or attributes differ. The last access is no change."""
    UNCHANGED = "unchanged"
    """Only shares a granule of the delta with something that changed."""


class FileType(Enum):
    """What a file is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    OTHER = "other"


class FileChange(NamedTuple):
    """One file that changed. There may be hundreds of thousands, so it is a plain tuple.

    Attributes:
        path: within its file system, from ``/``, as the image has it: no text, and to be escaped
            when shown. Empty where it has no name: unlinked but still allocated.
        partition: its index in :attr:`Attribution.partitions`.
        status: what became of it.
        type: what it is.
        old_path: for MOVED, where it was in OLD; None otherwise.
        size: its length in bytes, in NEW; for DELETED in OLD.
        changed_bytes: bytes of the delta that are its own in NEW.
        freed_bytes: bytes that were its own in OLD and are its own no longer.
        inode: the number of its inode or MFT entry, in NEW; for DELETED in OLD.
    """

    path: bytes
    partition: int
    status: FileStatus
    type: FileType
    old_path: bytes | None
    size: int
    changed_bytes: int
    freed_bytes: int
    inode: int


@dataclass(frozen=True)
class PartitionShare:
    """What of the change lies in one partition.

    Attributes:
        partition: the partition; None is the row for what lies outside any.
        changed_bytes: bytes of the delta in it, the sum of ``by_kind``.
        by_kind: those bytes by kind of space; kinds with none are left out.
        zeroed: of those bytes what became zeros, by kind; they cost a delta next to nothing.
        space: all of the partition's bytes by kind of space.
    """

    partition: Partition | None
    changed_bytes: int
    by_kind: Mapping[SpaceKind, int]
    zeroed: Mapping[SpaceKind, int]
    space: Mapping[SpaceKind, int]


@dataclass(frozen=True)
class Cells:
    """The disk in equal ranges, for a map of it.

    Attributes:
        size: bytes a cell; the last may be cut off by the end of the disk.
        changed: changed bytes, by kind of change (``ChangeKind - 1``): shape (3, cells).
        space: the :class:`SpaceKind` that most of each cell is: shape (cells,).
        changed_space: that most of its changed bytes are, or of the cell where none changed.
        file: the index in :attr:`Attribution.files` of the file that most of its changed bytes
            belong to; -1 where they are no file's.
    """

    size: int
    changed: npt.NDArray[np.int64]
    space: npt.NDArray[np.uint8]
    changed_space: npt.NDArray[np.uint8]
    file: npt.NDArray[np.int32]


@dataclass(frozen=True)
class SourceFacts:
    """What one of the two images is, and how it stores its disk.

    Attributes:
        path, format: of the top file.
        virtual_size: the disk's size, bytes.
        file_size: the length of all its files, bytes.
        cluster_size: of the top file, bytes; None without clusters.
        data_bytes, compressed_bytes: bytes of the disk that are stored plain, and compressed.
    """

    path: str
    format: str
    virtual_size: int
    file_size: int
    cluster_size: int | None
    data_bytes: int
    compressed_bytes: int


@dataclass(frozen=True)
class Advice:
    """A measured fact that explains a part of the delta, and what would make it smaller.

    Attributes:
        code: which fact it is, for programs: ``free-space``, ``package-cache``, ``swap``…
        bytes: the changed bytes that it explains; 0 where it explains none by itself.
        text: the sentence, in parts: an integer is a number of bytes, to be shown as a size.
            Names from the image are printable already.
        remedy: what to do about it; empty where there is nothing to say.
    """

    code: str
    bytes: int
    text: tuple[str | int, ...]
    remedy: str = ""


@dataclass(frozen=True)
class Attribution:
    """A delta, attributed.

    Attributes:
        size: NEW's virtual size, bytes.
        granularity: what the delta's changes are rounded to, bytes.
        changed_bytes: bytes that differ: data and zeroed.
        by_kind: those bytes by kind of space; kinds with none are left out.
        zeroed: of those bytes what became zeros, by kind.
        droppable_bytes: of those bytes what leaving free space out would save: data in granules
            that lie in free space as a whole.
        partitions: NEW's partitions in order of their start, then those that only OLD has.
        by_partition: a share for each of NEW's partitions that way, and one for what is in none.
        files: the files that changed, by changed bytes and then freed bytes, largest first.
        cells: the disk as a map.
        sources: OLD and NEW; None for one that is not at hand.
        free_is_sure: whether what is free can be relied on, so that --drop-free is not refused.
        doubts: what is not as it should be on either disk, so that the figures may be wrong.
        notes: what else could not be read or told, and why.
        advice: what explains the delta's size, by its worth.
    """

    size: int
    granularity: int
    changed_bytes: int
    by_kind: Mapping[SpaceKind, int]
    zeroed: Mapping[SpaceKind, int]
    partitions: tuple[Partition, ...]
    by_partition: tuple[PartitionShare, ...]
    files: Sequence[FileChange]
    cells: Cells
    sources: tuple[SourceFacts | None, SourceFacts | None]
    droppable_bytes: int = 0
    free_is_sure: bool = True
    doubts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    advice: tuple[Advice, ...] = ()


@dataclass
class DirectoryNode:
    """A directory, and the changes in all that lies under it.

    Attributes:
        name: its own name, bytes of the image; the root's is empty.
        changed_bytes, freed_bytes: of the files under it, and of the directory itself.
        count: how many files that changed lie under it, by status.
        directories: those right in it, by name.
        files: indices of the files right in it, in the order of the list they came from.
    """

    name: bytes
    changed_bytes: int = 0
    freed_bytes: int = 0
    count: dict[FileStatus, int] = field(default_factory=dict)
    directories: dict[bytes, DirectoryNode] = field(default_factory=dict)
    files: list[int] = field(default_factory=list)


def directory_tree(files: Iterable[FileChange], partition: int) -> DirectoryNode:
    """Roll the files of one partition up by directory.

    Files without a name are gathered in a directory with an empty name, right under the root.
    """
    root = DirectoryNode(b"")
    for index, file in enumerate(files):
        if file.partition != partition:
            continue
        node = root
        _count(node, file)
        for part in _directories(file):
            node = node.directories.setdefault(part, DirectoryNode(part))
            _count(node, file)
        node.files.append(index)
    return root


def _directories(file: FileChange) -> list[bytes]:
    """Return the names of the directories on the way to a file, or to and with a directory."""
    if len(file.path) < 2:
        return [] if file.path else [b""]
    parts = file.path.split(b"/")[1:]
    return parts if file.type is FileType.DIRECTORY else parts[:-1]


def _count(node: DirectoryNode, file: FileChange) -> None:
    node.changed_bytes += file.changed_bytes
    node.freed_bytes += file.freed_bytes
    node.count[file.status] = node.count.get(file.status, 0) + 1
