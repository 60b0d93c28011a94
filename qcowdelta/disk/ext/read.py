"""An ext2, ext3 or ext4 file system, told apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...extents import Mask, Offsets, spread
from ...units import align_down
from ..contents import Contents
from ..files import PART, FileTable, Parts, Type, hashed, reachable
from ..kinds import SpaceKind, VolumeState
from ..space import NOBODY, Spaces, apart, over, spaces, tile
from ..volume import Volume
from .allocation import free_space, inodes_in_use, structures, whole_clusters
from .directories import Directories, read_directories
from .groups import Geometry, Groups, read_geometry, read_groups, state_of
from .inodes import Inodes, inode_limit, read_inodes
from .layout import KNOWN_READ_ONLY, Incompatible, InodeFlag, ReadOnly, SpecialInode
from .mapping import Mapping, Runs, map_inodes

_FIRST_INODE = 11
_MAX_ATTRIBUTE_BLOCKS = 1 << 18
_ATTRIBUTES_AT_ONCE = 1 << 12
_ATTRIBUTES_HEADER = 32


@dataclass
class _Parts:
    """All that was read of a file system."""

    shape: Geometry
    groups: Groups
    inodes: Inodes
    mapping: Mapping
    directories: Directories


def read_ext(volume: Volume) -> Contents:
    """Tell whose each block of a file system is.

    What contradicts itself is told in notes, and its space is UNKNOWN.

    Raises:
        UnreadableError: it is damaged from the start or not understood.
        CorruptImageError: the image cannot be read.
    """
    shape = read_geometry(volume)
    parts = _read(volume, shape)
    notes = _Notes()
    files = _file_claims(parts)
    rows = _resolve(volume, parts, files, notes)
    notes.add_damage(volume, parts)
    if not shape.superblock.feature_incompat & Incompatible.RECOVER:
        notes.hold_inodes(parts)
    state = state_of(shape.superblock)
    sound = not notes.found and state is VolumeState.CLEAN
    if notes.found and state is VolumeState.CLEAN:
        state = VolumeState.DAMAGED
    return Contents(rows, _files(volume, parts), state, read=True, notes=notes.all, sound=sound)


def _read(volume: Volume, shape: Geometry) -> _Parts:
    groups = read_groups(volume, shape)
    limit = inode_limit(shape)
    number = inodes_in_use(volume, shape, groups, limit)
    inodes = read_inodes(volume, shape, groups, number)
    mapping = map_inodes(volume, shape, inodes)
    mapping.complete &= number.size < limit
    row, block = _directory_blocks(shape, inodes, mapping.runs)
    directories = read_directories(volume, shape, inodes, row, block)
    return _Parts(shape, groups, inodes, mapping, directories)


class _Notes:
    """What is wrong with a file system."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.remarks: list[str] = []

    @property
    def all(self) -> list[str]:
        return self.found + self.remarks

    def add(self, wrong: bool | int, text: str) -> None:
        """Note something, if it is so."""
        if wrong:
            self.found.append(text)

    def add_damage(self, volume: Volume, parts: _Parts) -> None:
        """Note what the readers met."""
        shape, mapping, names = parts.shape, parts.mapping, parts.directories
        self.add(shape.told > shape.blocks, "it is larger than its partition")
        self.add(mapping.damaged, "block maps of some files are damaged")
        self.add(names.damaged, "some directories are damaged")
        self.add(not (mapping.complete and names.complete), "it has more files than are read")
        unknown = shape.superblock.feature_ro_compat & ~int(KNOWN_READ_ONLY)
        self.add(unknown, f"it has a feature that is not known here ({unknown:#x})")
        if shape.has(Incompatible.RECOVER):
            self.remarks.append("its journal was not replayed: what it tells may be out of date")
        if parts.inodes.flag(InodeFlag.ENCRYPT).any():
            self.remarks.append("names in encrypted directories are shown as they are stored")

    def hold_inodes(self, parts: _Parts) -> None:
        """Compare how many inodes are in use with what the groups say."""
        groups = parts.groups
        sb = parts.shape.superblock
        reserved = sb.first_ino if sb.rev_level else _FIRST_INODE
        free = int(groups.free_inodes.sum())
        used = parts.shape.inodes_per_group * parts.shape.groups - free
        some = parts.inodes.number.size
        # Reserved inodes are in use whether or not there is anything in them.
        self.add(
            parts.mapping.complete and not used - reserved <= some <= used,
            "inodes in use are not as many as its groups say",
        )


# --- whose each block is ------------------------------------------------------------------------


def _resolve(volume: Volume, parts: _Parts, files: Spaces, notes: _Notes) -> Spaces:
    """Put together what the groups take, what files take, and what is free; the rest is UNKNOWN."""
    shape = parts.shape
    limit = min(shape.blocks * shape.block_size, align_down(volume.length, shape.block_size))
    fixed, _ = apart(structures(shape, parts.groups), limit)
    files, twice = apart(files, limit)
    both = over(fixed, files)
    reserved, _ = apart(_claims(parts, _reserved(parts)), limit)
    shared = shape.has(ReadOnly.SHARED_BLOCKS) or shape.ratio > 1
    notes.add(twice and not shared, "some blocks belong to more than one file")
    clash = _overlap(fixed, files)
    notes.add(clash and shape.ratio == 1, "some files have blocks that are not theirs")
    free, agreed = free_space(volume, shape, parts.groups)
    free, _ = apart(free, limit)
    both = over(both, reserved)
    whole = over(both, free)
    # Where a group's bitmap was never written, its structures lie in what counts as free.
    lost = _overlap(both, free) - _overlap(fixed, free)
    notes.add(lost, "blocks in use count as free in its bitmaps")
    notes.add(
        not agreed and not shape.has(Incompatible.RECOVER),
        "bitmaps and groups do not agree on what is free",
    )
    return tile(whole, volume.length, SpaceKind.UNKNOWN)


def _length(rows: Spaces) -> int:
    return int(rows["length"].sum())


def _overlap(top: Spaces, below: Spaces) -> int:
    """Return how many bytes are in both, each being sorted and apart."""
    return _length(top) + _length(below) - _length(over(top, below))


def _reserved(parts: _Parts) -> Mask:
    """Tell the inode that has the space reserved for descriptors, which groups take anyway."""
    result: Mask = parts.inodes.number == SpecialInode.RESIZE
    return result


def _file_claims(parts: _Parts) -> Spaces:
    """Return what inodes say is theirs: content, trees of extents, attributes; in bytes."""
    shape, inodes = parts.shape, parts.inodes
    attributes = np.unique(inodes.attribute_block)
    attributes = attributes[(attributes > 0) & (attributes < shape.blocks)] * shape.block_size
    rows = spaces(attributes, shape.block_size, SpaceKind.METADATA)
    return np.concatenate([_claims(parts, ~_reserved(parts)), whole_clusters(rows, shape)])


def _claims(parts: _Parts, wanted: Mask) -> Spaces:
    """Return the content and the trees of those inodes that are wanted."""
    shape, mapping = parts.shape, parts.mapping
    kind, owner = _kinds(parts)
    runs = mapping.runs[wanted[mapping.runs["row"]]]
    row = runs["row"]
    rows = [spaces(runs["block"], runs["count"], kind[row], owner[row])]
    rows += [spaces(block[wanted[row]], 1, SpaceKind.METADATA) for row, block in mapping.nodes]
    found = np.concatenate(rows)
    found["start"] *= shape.block_size
    found["length"] *= shape.block_size
    return whole_clusters(found, shape)


def _kinds(parts: _Parts) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """Return what the blocks of each inode are, and whose: those of its own use are nobody's."""
    inodes, sb = parts.inodes, parts.shape.superblock
    kind = np.full(inodes.number.size, SpaceKind.FILE_DATA, np.uint8)
    kind[inodes.type == Type.DIRECTORY] = SpaceKind.DIRECTORY
    kind[_special(parts) | inodes.flag(InodeFlag.EA_INODE)] = SpaceKind.METADATA
    kind[inodes.number == (sb.journal_inum or SpecialInode.JOURNAL)] = SpaceKind.JOURNAL
    owner = np.arange(inodes.number.size, dtype=np.int32)
    owned = (kind == SpaceKind.FILE_DATA) | (kind == SpaceKind.DIRECTORY)
    return kind, np.where(owned, owner, NOBODY).astype(np.int32)


def _special(parts: _Parts) -> Mask:
    number, sb = parts.inodes.number, parts.shape.superblock
    first = sb.first_ino if sb.rev_level else _FIRST_INODE
    special: Mask = (number < first) & (number != SpecialInode.ROOT)
    named = (sb.usr_quota_inum, sb.grp_quota_inum, sb.prj_quota_inum, sb.orphan_file_inum)
    special |= np.isin(number, [n for n in named if n])
    return special


def _directory_blocks(
    shape: Geometry, inodes: Inodes, runs: Runs
) -> tuple[npt.NDArray[np.int64], Offsets]:
    """Return the blocks of directories, each once, behind the row of the directory."""
    directory = (inodes.type == Type.DIRECTORY)[runs["row"]]
    runs = runs[directory & ~runs["unwritten"]]
    size = -(-inodes.size[runs["row"]] // shape.block_size)
    count = np.clip(size - runs["logical"], 0, runs["count"])
    rows, _ = apart(spaces(runs["block"], count, SpaceKind.DIRECTORY, runs["row"]), shape.blocks)
    which, block = spread(rows["start"], rows["length"])
    return rows["owner"][which].astype(np.int64), block


# --- files --------------------------------------------------------------------------------------


def _files(volume: Volume, parts: _Parts) -> FileTable:
    inodes, shape = parts.inodes, parts.shape
    root = int(inodes.row_of(np.array([SpecialInode.ROOT]))[0])
    types = inodes.type
    if root >= 0 and types[root] != Type.DIRECTORY:
        root = -1
    names, levels = reachable(parts.directories.names, types, root)
    return FileTable(
        inodes.number,
        types,
        inodes.size,
        inodes.identity,
        inodes.metadata + _attributes(volume, shape, inodes),
        inodes.inline,
        root,
        names,
        levels,
        parts.directories.buffer,
        _content(parts.mapping.runs, shape, types),
        np.zeros(types.size, bool),
    )


def _content(runs: Runs, shape: Geometry, types: npt.NDArray[np.uint8]) -> Parts:
    """Return where the content of files lies; what is not written yet is zeros, so left out."""
    runs = runs[(types[runs["row"]] != Type.DIRECTORY) & ~runs["unwritten"]]
    runs = runs[np.lexsort((runs["logical"], runs["row"]))]
    out = np.empty(runs.size, PART)
    out["file"] = runs["row"]
    for name, column in (("logical", "logical"), ("length", "count"), ("physical", "block")):
        out[name] = runs[column] * shape.block_size
    return out


def _attributes(volume: Volume, shape: Geometry, inodes: Inodes) -> npt.NDArray[np.uint64]:
    """Return a hash of the attributes that each inode has in a block of their own; 0: none."""
    out = np.zeros(inodes.number.size, np.uint64)
    place = inodes.attribute_block
    row = np.flatnonzero((place > 0) & (place < shape.blocks))
    blocks, which = np.unique(place[row], return_inverse=True)
    if not blocks.size or blocks.size > _MAX_ATTRIBUTE_BLOCKS:
        return out
    found = np.zeros(blocks.size, np.uint64)
    for at in range(0, blocks.size, _ATTRIBUTES_AT_ONCE):
        some = slice(at, at + _ATTRIBUTES_AT_ONCE)
        data = volume.read_many(blocks[some] * shape.block_size, shape.block_size)
        # The header holds a count of users and a checksum, which say nothing of the attributes.
        found[some] = hashed(data.view(np.uint32)[:, _ATTRIBUTES_HEADER // 4 :])
    out[row] = found[which]
    return out
