"""What the groups themselves take, and what their bitmaps say is free or in use."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ...extents import Mask, Offsets
from ...units import MIB, ceil_div
from ..kinds import SpaceKind
from ..space import Spaces, nothing, spaces
from ..volume import Volume
from .groups import Geometry, Groups, superblock_block
from .layout import Incompatible

_AT_ONCE = 16 * MIB


def structures(shape: Geometry, groups: Groups) -> Spaces:
    """Return where superblocks, descriptors, bitmaps and inode tables are, in bytes; unsorted."""
    tables = ceil_div(shape.inodes_per_group * shape.inode_size, shape.block_size)
    block = shape.block_size
    rows = [
        spaces(0, (superblock_block(shape) + 1) * block, SpaceKind.METADATA),
        *_descriptor_space(shape, groups),
        spaces(groups.block_bitmap * block, block, SpaceKind.BITMAP),
        spaces(groups.inode_bitmap * block, block, SpaceKind.BITMAP),
        spaces(groups.inode_table * block, tables * block, SpaceKind.INODE_TABLE),
    ]
    if shape.has(Incompatible.MMP):
        rows.append(spaces(shape.superblock.mmp_block * block, block, SpaceKind.METADATA))
    found = np.concatenate(rows)
    found = found[(found["start"] >= 0) & (found["start"] < shape.blocks * block)]
    return whole_clusters(found, shape)


def _descriptor_space(shape: Geometry, groups: Groups) -> Iterator[Spaces]:
    """Yield the copies of the superblock and of the descriptors."""
    block, per_block = shape.block_size, shape.descriptors_per_block
    number = np.arange(shape.groups, dtype=np.int64)
    start = np.asarray(shape.group_start(number))
    start[0] = superblock_block(shape)
    meta_bg = shape.has(Incompatible.META_BG)
    in_row = ceil_div(shape.groups, per_block) + shape.superblock.reserved_gdt_blocks
    if meta_bg:
        in_row = min(shape.superblock.first_meta_bg, in_row)
    yield spaces(start[groups.backup] * block, block, SpaceKind.METADATA)
    meta = meta_bg & (number // per_block >= shape.superblock.first_meta_bg)
    plain = groups.backup & ~meta
    yield spaces((start[plain] + 1) * block, in_row * block, SpaceKind.METADATA)
    within = number % per_block
    meta &= (within == 0) | (within == 1) | (within == per_block - 1)
    yield spaces((start + groups.backup)[meta] * block, block, SpaceKind.METADATA)


def whole_clusters(rows: Spaces, shape: Geometry) -> Spaces:
    """Round records out to clusters, which are what is allocated."""
    if shape.ratio > 1:
        size = shape.ratio * shape.block_size
        base = shape.first_block * shape.block_size
        start, stop = rows["start"] - base, rows["start"] + rows["length"] - base
        start = np.where(start < 0, start, start // size * size)
        stop = -(-stop // size) * size
        rows["start"], rows["length"] = start + base, stop - start
    return rows


def _bitmaps(
    volume: Volume, shape: Geometry, places: Offsets, wanted: Mask, bits: int
) -> Iterator[tuple[Offsets, npt.NDArray[np.uint8]]]:
    """Yield the bitmaps of the wanted groups: group numbers, and a row of bits for each."""
    groups = np.flatnonzero(wanted & (places > 0) & (places < shape.blocks))
    step = max(1, _AT_ONCE // (8 * shape.block_size))
    for at in range(0, groups.size, step):
        some = groups[at : at + step].astype(np.int64)
        data = volume.read_many(places[some] * shape.block_size, ceil_div(bits, 8))
        yield some, data


def free_space(volume: Volume, shape: Geometry, groups: Groups) -> tuple[Spaces, bool]:
    """Return what the block bitmaps say is free, sorted and apart, in bytes.

    Where a bitmap was never written, all of the group counts as free: what it does hold is among
    :func:`structures`. A group whose bitmap lies nowhere has nothing free.

    Returns:
        The records; and whether each bitmap has as many free clusters as its group says.

    Raises:
        CorruptImageError: the image cannot be read.
    """
    per_group = shape.blocks_per_group // shape.ratio
    cluster = shape.block_size * shape.ratio
    last = ceil_div(shape.blocks - int(shape.group_start(shape.groups - 1)), shape.ratio)
    found: list[Spaces] = []
    agreed = True
    for some, data in _bitmaps(volume, shape, groups.block_bitmap, ~groups.block_uninit, per_group):
        in_use = np.unpackbits(data, axis=1, bitorder="little")[:, :per_group]
        if some[-1] == shape.groups - 1:
            in_use[-1, last:] = 1
        count = per_group - in_use.sum(axis=1, dtype=np.int64)
        agreed = agreed and bool((count == groups.free_clusters[some]).all())
        group, first, stop = _zero_runs(in_use)
        base = np.asarray(shape.group_start(some[group])) * shape.block_size
        found.append(spaces(base + first * cluster, (stop - first) * cluster, SpaceKind.FREE))
    lazy = np.flatnonzero(groups.block_uninit)
    start = np.asarray(shape.group_start(lazy)) * shape.block_size
    found.append(spaces(start, shape.blocks_per_group * shape.block_size, SpaceKind.FREE))
    rows = np.concatenate(found) if found else nothing()
    limit = shape.blocks * shape.block_size
    rows["length"] = np.minimum(rows["length"], limit - rows["start"])
    return rows[np.argsort(rows["start"], kind="stable")], agreed


def _zero_runs(bits: npt.NDArray[np.uint8]) -> tuple[Offsets, Offsets, Offsets]:
    """Return for each run of zeros its row, its begin and its end."""
    edge = np.ones((bits.shape[0], bits.shape[1] + 2), np.uint8)
    edge[:, 1:-1] = bits
    turns = np.diff(edge.view(np.int8), axis=1)
    row, begin = np.nonzero(turns == -1)
    return row, begin, np.nonzero(turns == 1)[1]


def inodes_in_use(volume: Volume, shape: Geometry, groups: Groups, limit: int) -> Offsets:
    """Return the numbers of the inodes that are in use, in order, but no more than a limit.

    Raises:
        CorruptImageError: the image cannot be read.
    """
    found: list[Offsets] = []
    total = 0
    per_group = shape.inodes_per_group
    for some, data in _bitmaps(volume, shape, groups.inode_bitmap, ~groups.inode_uninit, per_group):
        bits = np.unpackbits(data, axis=1, bitorder="little")[:, :per_group]
        row, index = np.nonzero(bits)
        inside = index < groups.used_inodes[some[row]]
        row, index = row[inside], index[inside]
        found.append(some[row] * per_group + index + 1)
        total += found[-1].size
        if total > limit:
            break
    return np.concatenate(found)[:limit] if found else np.empty(0, np.int64)
