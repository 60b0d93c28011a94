"""Inodes in bulk: the fields that are needed, as columns."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from ...extents import Mask, Offsets
from ...units import GIB, MIB
from ..files import Hashes, Type, hashed
from ..records import dtype_of
from ..volume import Volume
from . import layout
from .groups import Geometry, Groups
from .layout import Incompatible, InodeFlag, ReadOnly

MAX_INODES = 1 << 24
_MAX_TABLES = 4 * GIB
_AT_ONCE = 16 * MIB
_INLINE_SYMLINK = 60
# What of an inode's flags says how it is stored, not what it is.
_STORAGE_FLAGS = 0x1000 | 0x40000 | 0x80000 | 0x10000000 | 0x400000 | 0x20000


@dataclass
class Inodes:
    """The inodes in use: a row each, by their numbers.

    Attributes:
        number, mode, size, flags, links: as they are called.
        identity: a hash of the generation and, where there is one, the time it was made; 0 where
            both are zero.
        metadata: a hash of rights, owner, links, flags, time of modification and the attributes
            in the inode.
        inline: a hash of what content the inode itself holds; 0 for none.
        block: the 60 bytes that say where the content is.
        attribute_block: the block of its further attributes; 0 for none.
        raw: where inline data may be, whole inodes of those that have it, by row.
    """

    number: Offsets
    mode: npt.NDArray[np.uint16]
    size: Offsets
    flags: npt.NDArray[np.uint32]
    links: npt.NDArray[np.uint16]
    identity: Hashes
    metadata: Hashes
    inline: Hashes
    block: npt.NDArray[np.uint8]
    attribute_block: Offsets
    raw: dict[int, bytes]

    @property
    def type(self) -> npt.NDArray[np.uint8]:
        """A :class:`.Type` for each."""
        kind = self.mode >> 12
        out = np.full(kind.size, Type.OTHER, np.uint8)
        for value, name in ((8, Type.FILE), (4, Type.DIRECTORY), (10, Type.SYMLINK)):
            out[kind == value] = name
        return out

    @property
    def mapped(self) -> Mask:
        """Whether ``block`` leads to blocks: not for devices, short links and inline data."""
        kind = self.mode >> 12
        link = (kind == 10) & (self.size < _INLINE_SYMLINK) & ~self.flag(InodeFlag.EXTENTS)
        special = self.number < 11  # the journal and its like may have any mode
        real = (kind == 8) | (kind == 4) | (kind == 10) | special
        mapped: Mask = real & ~link & ~self.flag(InodeFlag.INLINE_DATA)
        return mapped

    def flag(self, bit: InodeFlag) -> Mask:
        """Tell which have a flag."""
        has: Mask = (self.flags & np.uint32(bit)) != 0
        return has

    def row_of(self, number: Offsets) -> Offsets:
        """Return the rows of inodes by their numbers; -1 for those that are not in use."""
        at = np.searchsorted(self.number, number)
        at = np.minimum(at, max(self.number.size - 1, 0))
        if not self.number.size:
            return np.full(number.size, -1, np.int64)
        return np.where(self.number[at] == number, at, -1)


def inode_limit(shape: Geometry) -> int:
    """Return how many inodes are read at most, so that a hostile table takes no forever."""
    return min(MAX_INODES, _MAX_TABLES // shape.inode_size)


def read_inodes(volume: Volume, shape: Geometry, groups: Groups, number: Offsets) -> Inodes:
    """Read inodes by their numbers, which are sorted.

    Raises:
        CorruptImageError: the image cannot be read.
    """
    step = max(1, _AT_ONCE // shape.inode_size)
    parts: list[Inodes] = []
    rows = 0
    for at in range(0, max(number.size, 1), step):
        parts.append(_read_some(volume, shape, groups, number[at : at + step], rows))
        rows += parts[-1].number.size
    if len(parts) == 1:
        return parts[0]
    columns = [f.name for f in fields(Inodes) if f.name != "raw"]
    whole = {name: np.concatenate([getattr(part, name) for part in parts]) for name in columns}
    raw = {row: data for part in parts for row, data in part.raw.items()}
    return Inodes(**whole, raw=raw)


def _read_some(
    volume: Volume, shape: Geometry, groups: Groups, number: Offsets, base: int
) -> Inodes:
    data = _read_tables(volume, shape, groups, number)
    low = data[:, :128].view(dtype_of(layout.Inode))[:, 0]
    keep = low["mode"] != 0
    keep |= number == layout.SpecialInode.BAD
    data, number, low = data[keep], number[keep], low[keep]
    size = low["size_lo"].astype(np.int64) | (low["size_high"].astype(np.int64) << 32)
    kind = low["mode"] >> 12
    short = (kind != 8) & ~((kind == 4) & shape.has(Incompatible.LARGEDIR))
    size = np.where(short, low["size_lo"].astype(np.int64), size)
    acl = low["file_acl_lo"].astype(np.int64)
    if shape.has(Incompatible.BIT64) or shape.has(ReadOnly.HUGE_FILE):
        acl |= low["file_acl_high"].astype(np.int64) << 32
    extra = _extra(data)
    inline = (low["flags"] & np.uint32(InodeFlag.INLINE_DATA)) != 0
    kept = np.where(inline | (kind == 10), _content(data, inline), 0).astype(np.uint64)
    raw = {base + row: data[row].tobytes() for row in np.flatnonzero(inline).tolist()}
    return Inodes(
        number, low["mode"].copy(), np.maximum(size, 0), low["flags"].copy(),
        low["links_count"].copy(), _identity(low, extra), _metadata(low, extra), kept,
        np.ascontiguousarray(low["block"]), acl, raw,
    )  # fmt: skip


def _read_tables(
    volume: Volume, shape: Geometry, groups: Groups, number: Offsets
) -> npt.NDArray[np.uint8]:
    """Return the bytes of inodes: shape (count, inode size)."""
    group, index = np.divmod(number - 1, shape.inodes_per_group)
    place = groups.inode_table[group] * shape.block_size + index * shape.inode_size
    block, within = np.divmod(place, shape.block_size)
    wanted, which = np.unique(block, return_inverse=True)
    tables = volume.read_many(wanted * shape.block_size, shape.block_size)
    per_block = shape.block_size // shape.inode_size
    inodes = tables.reshape(-1, shape.inode_size)
    found: npt.NDArray[np.uint8] = inodes[which * per_block + within // shape.inode_size]
    return found


def _extra(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """Return the words behind the first 128 bytes: the extra fields that are there, attributes.

    Shape (count, words); what is no field and no attribute is 0.
    """
    rest = np.ascontiguousarray(data[:, 128:])
    words = rest.view(np.uint32)
    if not words.shape[1]:
        return np.zeros((data.shape[0], 8), np.uint32)
    size = (words[:, 0] & 0xFFFF).astype(np.int64)
    column = np.arange(words.shape[1]) * 4
    fields = column < size[:, None]
    begin = np.minimum(size // 4, words.shape[1] - 1)
    has = words[np.arange(words.shape[0]), begin] == layout.ATTRIBUTES_MAGIC
    out = np.where(fields | has[:, None], words, 0)
    return out if out.shape[1] >= 8 else np.pad(out, ((0, 0), (0, 8 - out.shape[1])))


def _identity(low: npt.NDArray[np.void], extra: npt.NDArray[np.uint32]) -> Hashes:
    made = np.stack([low["generation"], extra[:, 4], extra[:, 5]], axis=1)
    return np.where(made.any(axis=1), hashed(made), np.uint64(0))


def _metadata(low: npt.NDArray[np.void], extra: npt.NDArray[np.uint32]) -> Hashes:
    flags = low["flags"] & np.uint32(~_STORAGE_FLAGS & 0xFFFFFFFF)
    owner = low["uid"].astype(np.uint32) | (low["uid_high"].astype(np.uint32) << 16)
    group = low["gid"].astype(np.uint32) | (low["gid_high"].astype(np.uint32) << 16)
    links = np.where(low["mode"] >> 12 == 4, 0, low["links_count"]).astype(np.uint32)
    fields = [low["mode"].astype(np.uint32), owner, group, links, flags, low["mtime"]]
    words = np.column_stack([*fields, extra[:, 2], extra[:, 7], extra[:, 8:]])
    return hashed(words.astype(np.uint32, copy=False))


def _content(data: npt.NDArray[np.uint8], inline: Mask) -> Hashes:
    """Hash what of the content is in the inode: a link's target, or inline data."""
    head = np.ascontiguousarray(data[:, 40:100]).view(np.uint32)
    rest = np.where(inline[:, None], _extra(data)[:, 8:], 0)
    return hashed(np.column_stack([head, rest]).astype(np.uint32, copy=False))
