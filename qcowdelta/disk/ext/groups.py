"""The superblock, checked, and the block groups that it leads to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...declare import parse
from ...extents import Mask, Offsets
from ...units import ceil_div
from ..contents import UnreadableError
from ..kinds import VolumeState
from ..records import Records, dtype_of, records
from ..volume import Volume
from . import layout
from .layout import Compatible, GroupFlag, Incompatible, ReadOnly, State

_MAX_GROUPS = 1 << 22
_MAX_LENGTH = 1 << 60  # bytes
_MAX_LOG_BLOCK = 6
_MIN_BLOCKS_PER_GROUP = 256


@dataclass(frozen=True)
class Geometry:
    """A file system's shape, from its superblock. Counts of blocks are of blocks, not clusters.

    Attributes:
        block_size: bytes.
        ratio: blocks in a cluster; 1 without bigalloc.
        blocks: how many the file system has, as far as its volume reaches.
        told: how many it says it has.
        first_block: the first of group 0: 1 where blocks are 1 KiB, else 0.
        blocks_per_group, inodes_per_group, groups: as they are called.
        inodes: how many there are.
        inode_size, descriptor_size: bytes.
    """

    block_size: int
    ratio: int
    blocks: int
    told: int
    first_block: int
    blocks_per_group: int
    inodes_per_group: int
    groups: int
    inodes: int
    inode_size: int
    descriptor_size: int
    superblock: Any

    def has(self, feature: Compatible | Incompatible | ReadOnly) -> bool:
        """Tell whether a feature is on."""
        field = {
            Compatible: "feature_compat",
            Incompatible: "feature_incompat",
            ReadOnly: "feature_ro_compat",
        }[type(feature)]
        return bool(self.superblock[field] & feature)

    @property
    def descriptors_per_block(self) -> int:
        """How many group descriptors a block holds."""
        return self.block_size // self.descriptor_size

    @property
    def checksummed_groups(self) -> bool:
        """Whether the flags of group descriptors count."""
        return self.has(ReadOnly.GDT_CSUM) or self.has(ReadOnly.METADATA_CSUM)

    def group_start(self, group: Any) -> Any:
        """Return the first block of a group, or of an array of groups."""
        return self.first_block + group * self.blocks_per_group


def read_superblock(volume: Volume) -> Any:
    """Return the superblock.

    Raises:
        CorruptImageError: the image cannot be read.
    """
    data = volume.read(layout.SUPERBLOCK_OFFSET, layout.SUPERBLOCK_SIZE)
    return parse(
        layout.Superblock, data, path=volume.path, offset=volume.start + 1024, name="Superblock"
    )


def read_geometry(volume: Volume) -> Geometry:
    """Read the superblock and hold every field that is used against its limits.

    Raises:
        UnreadableError: it is damaged or has a feature that is not understood.
        CorruptImageError: the image cannot be read.
    """
    sb = read_superblock(volume)
    if sb.magic != layout.MAGIC:
        raise UnreadableError("its superblock is damaged")
    incompatible = sb.feature_incompat if sb.rev_level else 0
    unknown = incompatible & ~int(layout.UNDERSTOOD)
    if unknown:
        raise UnreadableError(f"it has a feature that is not known here ({unknown:#x})")
    if sb.log_block_size > _MAX_LOG_BLOCK or sb.creator_os not in (0, 1, 2, 3, 4):
        raise UnreadableError("its superblock is damaged (block size)")
    block_size = 1024 << sb.log_block_size
    bigalloc = bool(sb.feature_ro_compat & ReadOnly.BIGALLOC)
    if bigalloc and not sb.log_block_size <= sb.log_cluster_size <= sb.log_block_size + 15:
        raise UnreadableError("its superblock is damaged (cluster size)")
    blocks = sb.blocks_count_lo
    descriptor = 32
    if incompatible & Incompatible.BIT64:
        blocks |= sb.blocks_count_hi << 32
        descriptor = sb.desc_size
    inode_size = sb.inode_size if sb.rev_level else 128
    # What lies beyond the volume is not there to be read, and could be any number of groups.
    held = min(blocks, volume.length // block_size)
    shape = Geometry(
        block_size,
        1 << (sb.log_cluster_size - sb.log_block_size) if bigalloc else 1,
        held,
        blocks,
        sb.first_data_block,
        sb.blocks_per_group,
        sb.inodes_per_group,
        ceil_div(max(held - sb.first_data_block, 0), max(sb.blocks_per_group, 1)),
        sb.inodes_count,
        inode_size,
        descriptor,
        sb,
    )
    _check(shape)
    return shape


def _check(shape: Geometry) -> None:
    """Hold a geometry against what the format allows."""
    per_bitmap = shape.block_size * 8
    power = [shape.inode_size, shape.descriptor_size]
    limits = {
        "block count": shape.first_block < shape.blocks
        and shape.told < _MAX_LENGTH // shape.block_size,
        "first block": shape.first_block <= 1,
        "blocks per group": _MIN_BLOCKS_PER_GROUP
        <= shape.blocks_per_group
        <= per_bitmap * shape.ratio
        and shape.blocks_per_group % (8 * shape.ratio) == 0,
        "inodes per group": 0 < shape.inodes_per_group <= per_bitmap,
        "inode size": 128 <= shape.inode_size <= shape.block_size,
        "descriptor size": 32 <= shape.descriptor_size <= shape.block_size,
        "inode size or descriptor size": all(n & (n - 1) == 0 for n in power),
        "group count": shape.groups <= _MAX_GROUPS,
        "inode count": shape.told > shape.blocks
        or shape.inodes <= shape.groups * shape.inodes_per_group,
    }
    wrong = [name for name, good in limits.items() if not good]
    if wrong:
        raise UnreadableError(f"its superblock is damaged ({wrong[0]})")


def state_of(superblock: Any) -> VolumeState:
    """Tell in what state the superblock says that the file system was left."""
    if superblock.feature_incompat & Incompatible.RECOVER:
        return VolumeState.NEEDS_RECOVERY
    if superblock.state & State.ERROR:
        return VolumeState.ERRORS
    dirty = not superblock.state & State.VALID or superblock.last_orphan
    if dirty or superblock.feature_ro_compat & ReadOnly.ORPHAN_PRESENT:
        return VolumeState.DIRTY
    return VolumeState.CLEAN


@dataclass(frozen=True)
class Groups:
    """The block groups: a row each, blocks as numbers of the whole file system.

    Attributes:
        block_bitmap, inode_bitmap, inode_table: the block where each begins.
        free_clusters, free_inodes: how many each says are free.
        block_uninit, inode_uninit: whether its bitmaps were never written.
        used_inodes: how many of its inodes may have been written at all.
        backup: whether a copy of the superblock is in it.
    """

    block_bitmap: Offsets
    inode_bitmap: Offsets
    inode_table: Offsets
    free_clusters: Offsets
    free_inodes: Offsets
    block_uninit: Mask
    inode_uninit: Mask
    used_inodes: Offsets
    backup: Mask


def read_groups(volume: Volume, shape: Geometry) -> Groups:
    """Read all group descriptors.

    Raises:
        CorruptImageError: the image cannot be read.
    """
    places = descriptor_blocks(shape) * shape.block_size
    data = volume.read_many(places, shape.block_size)
    rows = data.reshape(-1, shape.descriptor_size)[: shape.groups]
    low = _fields(layout.GroupDescriptor, rows[:, :32])
    high = None
    if shape.descriptor_size >= 64 and shape.has(Incompatible.BIT64):
        high = _fields(layout.GroupDescriptorHigh, rows[:, 32:64])

    def wide(name: str, bits: int) -> Offsets:
        value: Offsets = low[name].astype(np.int64)
        if high is not None:
            value += high[name].astype(np.int64) << bits
        return value

    counted = shape.checksummed_groups
    flags = low["flags"] if counted else np.zeros(shape.groups, np.uint16)
    inode_uninit = (flags & GroupFlag.INODE_UNINIT) != 0
    unused = wide("itable_unused", 16) if counted else np.zeros(shape.groups, np.int64)
    used = np.clip(shape.inodes_per_group - unused, 0, shape.inodes_per_group)
    return Groups(
        wide("block_bitmap", 32),
        wide("inode_bitmap", 32),
        wide("inode_table", 32),
        wide("free_blocks_count", 16),
        wide("free_inodes_count", 16),
        (flags & GroupFlag.BLOCK_UNINIT) != 0,
        inode_uninit,
        np.where(inode_uninit, 0, used),
        backups(shape),
    )


def _fields(declaration: Any, rows: npt.NDArray[np.uint8]) -> Records:
    packed = np.ascontiguousarray(rows)
    assert packed.shape[1] == dtype_of(declaration).itemsize  # noqa: S101 # our own layout
    return records(declaration, packed)


def backups(shape: Geometry) -> Mask:
    """Tell which groups have a copy of the superblock and of the descriptors."""
    has = np.zeros(shape.groups, bool)
    if shape.has(Compatible.SPARSE_SUPER2):
        has[[n for n in shape.superblock.backup_bgs if 0 < n < shape.groups]] = True
    elif shape.has(ReadOnly.SPARSE_SUPER):
        has[1:2] = True
        for base in (3, 5, 7):
            number = base
            while number < shape.groups:
                has[number] = True
                number *= base
    else:
        has[:] = True
    has[0] = True
    return has


def descriptor_blocks(shape: Geometry) -> Offsets:
    """Return the blocks that hold the group descriptors, in their order."""
    per_block = shape.descriptors_per_block
    number = np.arange(ceil_div(shape.groups, per_block), dtype=np.int64)
    plain: Offsets = superblock_block(shape) + 1 + number
    if not shape.has(Incompatible.META_BG):
        return plain
    group = number * per_block
    meta = shape.group_start(group) + backups(shape)[group]
    if shape.block_size == 1024 and not shape.first_block:
        meta[0] += 1
    return np.where(number < shape.superblock.first_meta_bg, plain, meta)


def superblock_block(shape: Geometry) -> int:
    """Return the block that holds the superblock."""
    return layout.SUPERBLOCK_OFFSET // shape.block_size
