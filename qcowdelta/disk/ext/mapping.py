"""Where the content of all inodes lies: trees of extents and of indirect blocks, level by level.

Each level of all trees is read at once. A block can be part of one tree only, so what is read
is bounded by the file system's blocks, whatever the trees say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ...extents import Mask, Offsets, spread
from ...units import MIB
from ..space import Index
from ..volume import Volume
from . import layout
from .groups import Geometry
from .inodes import Inodes
from .layout import InodeFlag

_AT_ONCE = 16 * MIB
_MAX_NODES = 1 << 20
_MAX_RUNS = 1 << 25
_HEADER = 12
_DIRECT = 12

RUN = np.dtype(
    [
        ("row", np.int32),  # of the inode
        ("logical", np.int64),  # block of the file
        ("count", np.int64),  # blocks
        ("block", np.int64),  # block of the file system
        ("unwritten", np.bool_),  # allocated, and reads as zeros
    ]
)
Runs: TypeAlias = npt.NDArray[np.void]
_Part: TypeAlias = tuple[Index, npt.NDArray[np.uint8], Index]
_Columns: TypeAlias = tuple[Index, Offsets, Index]


@dataclass
class Mapping:
    """Where content lies.

    Attributes:
        runs: of :data:`RUN`, in no order.
        nodes: the blocks of the trees, behind the row of the inode each belongs to.
        damaged: how many nodes of trees make no sense, and were left out.
        complete: whether all was read, and not only as much as a limit allows.
    """

    runs: Runs
    nodes: list[tuple[Index, Offsets]] = field(default_factory=list)
    damaged: int = 0
    complete: bool = True


class _Mapper:
    def __init__(self, volume: Volume, shape: Geometry) -> None:
        self._volume = volume
        self._shape = shape
        self._runs: list[Runs] = []
        self._total = 0
        self._visited = 0
        self.mapping = Mapping(np.empty(0, RUN))

    def finish(self) -> Mapping:
        """Return what was found."""
        if self._runs:
            self.mapping.runs = np.concatenate(self._runs)
        return self.mapping

    def _add(self, runs: Runs) -> None:
        good = (runs["count"] > 0) & (runs["block"] > 0) & (runs["block"] < self._shape.blocks)
        good &= runs["block"] + runs["count"] <= self._shape.blocks
        self.mapping.damaged += int(runs.size - good.sum())
        if self._total + runs.size > _MAX_RUNS:
            self.mapping.complete = False
            return
        self._total += runs.size
        self._runs.append(runs[good])

    def _claim(self, row: Index, block: Offsets, seen: Offsets) -> tuple[Mask, Offsets]:
        """Tell which nodes are read: inside the file system, and nobody's yet."""
        good = (block > 0) & (block < self._shape.blocks)
        first = np.zeros(block.size, bool)
        first[np.unique(block, return_index=True)[1]] = True
        new = first & ~np.isin(block, seen, assume_unique=False)
        self.mapping.damaged += int(block.size - (good & new).sum())
        good &= new
        left = max(0, _MAX_NODES - self._visited)
        if int(good.sum()) > left:
            good[np.flatnonzero(good)[left:]] = False
            self.mapping.complete = False
        self._visited += int(good.sum())
        self.mapping.nodes.append((row[good], block[good]))
        return good, np.concatenate([seen, block[good]])

    # --- extents --------------------------------------------------------------------------------

    def extents(self, row: Index, block: npt.NDArray[np.uint8]) -> None:
        """Follow trees of extents whose roots are in inodes: ``block`` has 60 bytes a row."""
        seen = np.empty(0, np.int64)
        expected = np.full(row.size, -1)
        level: Iterable[_Part] = [(row, block, expected)]
        for _ in range(layout.MAX_DEPTH + 1):
            below = [self._nodes(*part) for part in level]
            row, node, expected = _joined(below)
            if not row.size:
                return
            good, seen = self._claim(row, node, seen)
            row, node, expected = row[good], node[good], expected[good]
            level = self._read(row, node, expected)
        self.mapping.damaged += row.size

    def _read(self, row: Index, node: Offsets, other: Index) -> Iterator[_Part]:
        """Read nodes a few at a time: yield rows, content, and what else was given."""
        size = self._shape.block_size
        step = _AT_ONCE // size
        for at in range(0, row.size, step):
            some = slice(at, at + step)
            yield row[some], self._volume.read_many(node[some] * size, size), other[some]

    def _nodes(
        self, row: Index, data: npt.NDArray[np.uint8], expected: Index
    ) -> tuple[Index, Offsets, Index]:
        """Take the extents of leaves, and return the children of the other nodes."""
        head = np.ascontiguousarray(data[:, :8]).view("<u2")
        magic, entries, depth = head[:, 0], head[:, 1].astype(np.int64), head[:, 3].astype(np.int64)
        room = (data.shape[1] - _HEADER) // 12
        good = (magic == layout.EXTENT_MAGIC) & (entries <= room) & (depth <= layout.MAX_DEPTH)
        good &= (expected < 0) | (depth == expected)
        self.mapping.damaged += int(good.size - good.sum())
        entries = np.where(good, entries, 0)
        words = np.ascontiguousarray(data[:, _HEADER : _HEADER + room * 12]).view("<u4")
        words = words.reshape(-1, 3)
        which, index = spread(np.arange(row.size) * room, entries)
        entry = words[index].astype(np.int64)
        leaf = depth[which] == 0
        self._add(_leaves(row[which[leaf]], entry[leaf]))
        inner = entry[~leaf]
        child = inner[:, 1] | ((inner[:, 2] & 0xFFFF) << 32)
        return row[which[~leaf]], child, depth[which[~leaf]] - 1

    # --- indirect blocks ------------------------------------------------------------------------

    def indirect(self, row: Index, block: npt.NDArray[np.uint8]) -> None:
        """Follow the block pointers of inodes without extents."""
        pointers = block.view("<u4").astype(np.int64)
        logical = np.broadcast_to(np.arange(_DIRECT), (row.size, _DIRECT))
        self._pointers(np.repeat(row, _DIRECT), logical.reshape(-1), pointers[:, :_DIRECT])
        per_block = self._shape.block_size // 4
        seen = np.empty(0, np.int64)
        base = _DIRECT
        for depth in (1, 2, 3):
            seen = self._tree(row, base, pointers[:, _DIRECT + depth - 1], depth, seen)
            base += per_block**depth

    def _tree(self, row: Index, base: int, node: Offsets, depth: int, seen: Offsets) -> Offsets:
        """Follow single, double or triple indirect blocks, of all inodes at once."""
        per_block = self._shape.block_size // 4
        logical = np.full(row.size, base, np.int64)
        for level in range(depth, 0, -1):
            used = node != 0
            row, logical, node = row[used], logical[used], node[used]
            good, seen = self._claim(row, node, seen)
            row, logical, node = row[good], logical[good], node[good]
            if not row.size:
                break
            step = per_block ** (level - 1)
            row, logical, node = self._children(row, logical, node, step, leaf=level == 1)
        return seen

    def _children(
        self, row: Index, logical: Offsets, node: Offsets, step: int, *, leaf: bool
    ) -> tuple[Index, Offsets, Offsets]:
        """Return what indirect blocks point at; or take it, where that is the content itself."""
        found: list[_Columns] = []
        within = np.arange(self._shape.block_size // 4, dtype=np.int64) * step
        for rows, data, first in self._read(row, node, logical):
            pointers = data.view("<u4").astype(np.int64)
            index, column = np.nonzero(pointers)
            part = rows[index], first[index] + within[column], pointers[index, column]
            if leaf:
                self._pointers(*part)
            else:
                found.append(part)
        return _joined(found)

    def _pointers(self, row: Index, logical: Offsets, block: Offsets) -> None:
        """Take pointers to content, joined to runs where they follow each other."""
        block = block.reshape(-1)
        used = block != 0
        row, logical, block = row[used], logical[used], block[used]
        if not row.size:
            return
        follows = (np.diff(row) == 0) & (np.diff(logical) == 1) & (np.diff(block) == 1)
        first = np.flatnonzero(np.append(True, ~follows))
        runs = np.zeros(first.size, RUN)
        runs["row"], runs["logical"], runs["block"] = row[first], logical[first], block[first]
        runs["count"] = np.diff(np.append(first, row.size))
        self._add(runs)


def _joined(parts: list[_Columns]) -> _Columns:
    if not parts:
        empty = np.empty(0, np.int64)
        return empty, empty, empty
    row, second, third = (np.concatenate(column) for column in zip(*parts, strict=True))
    return row, second, third


def _leaves(row: Index, entry: npt.NDArray[np.int64]) -> Runs:
    runs = np.zeros(row.size, RUN)
    length = entry[:, 1] & 0xFFFF
    unwritten = length > layout.UNWRITTEN
    runs["row"] = row
    runs["logical"] = entry[:, 0]
    runs["count"] = np.where(unwritten, length - layout.UNWRITTEN, length)
    runs["block"] = entry[:, 2] | ((entry[:, 1] >> 16) << 32)
    runs["unwritten"] = unwritten
    return runs


def map_inodes(volume: Volume, shape: Geometry, inodes: Inodes) -> Mapping:
    """Return where the content of inodes lies.

    Raises:
        CorruptImageError: the image cannot be read.
    """
    mapper = _Mapper(volume, shape)
    mapped, extents = inodes.mapped, inodes.flag(InodeFlag.EXTENTS)
    row = np.flatnonzero(mapped & extents)
    mapper.extents(row, inodes.block[row])
    row = np.flatnonzero(mapped & ~extents)
    mapper.indirect(row, np.ascontiguousarray(inodes.block[row]))
    return mapper.finish()
