"""What ranges of a disk are used for, and the partitions and volumes that they lie in."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum


class SpaceKind(IntEnum):
    """What a range of a disk is used for."""

    FILE_DATA = 0
    """A file's content, its last block to the block's end."""
    DIRECTORY = 1
    """A directory's blocks."""
    INODE_TABLE = 2
    JOURNAL = 3
    BITMAP = 4
    """Which blocks and inodes, or clusters, are in use; a FAT."""
    METADATA = 5
    """Other structures: superblocks, descriptors, extent blocks, attributes, the MFT."""
    FREE = 6
    """In use by nothing, says the file system: what is there nobody needs."""
    SWAP = 7
    PARTITION_TABLE = 8
    UNPARTITIONED = 9
    """In no partition."""
    NOT_READ = 10
    """In a file system or volume that is not read here."""
    UNKNOWN = 11
    """Not attributed: the structures that would tell are damaged, or not there."""


class VolumeState(Enum):
    """In what state a volume was left."""

    CLEAN = "clean"
    DIRTY = "dirty"
    """It was mounted when the image was taken, or was not unmounted cleanly."""
    NEEDS_RECOVERY = "needs recovery"
    """Its journal has to be replayed before its structures are what they should be."""
    ERRORS = "errors"
    """It says of itself that errors were found in it."""
    DAMAGED = "damaged"
    """Structures contradict each other: what they tell is not to be relied on."""
    NOT_READ = "not read"
    """It is not read here, so nothing is known."""


@dataclass(frozen=True)
class Partition:
    """A partition, or the whole disk where there is no partition table.

    Attributes:
        number: as the system counts them: from 1, logical ones of an MBR from 5; 0 is the disk.
        start, length: where on the disk, bytes.
        scheme: ``gpt``, ``mbr`` or ``none``.
        type: what the table says it is for, in words, or the type's id; empty without a table.
        name: the name that a GPT gives it; from the image, so to be escaped when shown.
        filesystem: what is in it: ``ext4``, ``ntfs``, ``fat32``, ``swap``, ``luks``…, None for
            nothing that is known.
        label, uuid: of the file system; the label is from the image.
        read: whether its space is told apart, by file and by kind.
        note: why it is not read, or what is wrong with it; None: nothing.
        state: in what state the file system was left.
        gone: whether only OLD has it.
        disputed: whether the partition table gives space of it to another as well, or more space
            than the disk has: what it holds may then not be what its file system says.
    """

    number: int
    start: int
    length: int
    scheme: str
    type: str = ""
    name: str = ""
    filesystem: str | None = None
    label: str = ""
    uuid: str = ""
    read: bool = False
    note: str | None = None
    state: VolumeState = VolumeState.NOT_READ
    gone: bool = False
    disputed: bool = False

    @property
    def stop(self) -> int:
        """Where on the disk it ends, bytes."""
        return self.start + self.length
