"""The files of one file system and of a later state of it, matched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from blake3 import blake3

from ..extents import Mask, Offsets, spread
from ..units import MIB
from .files import FileTable, Hashes, Type, hashed
from .space import Index
from .volume import Volume

_BLOCK = 4096
_CHUNK = MIB
_AT_ONCE = 16 * MIB
_NAMES_AT_ONCE = 1 << 16
_MAX_NAME = 1024


@dataclass
class Matching:
    """Which file of OLD each file of NEW was.

    Attributes:
        old: for each row of NEW the row of OLD, or -1.
        moved: whether its path is another in OLD.
        name: for each row of NEW the index of the name that it is shown by, or -1.
        old_name: for each row of OLD the same.
        laid: whether a file under the same path has the same content at another place.
        differs: whether a file under the same path has other content, as far as its map tells.
    """

    old: Index
    moved: Mask
    name: Index
    old_name: Index
    laid: Mask = field(default_factory=lambda: np.empty(0, bool))
    differs: Mask = field(default_factory=lambda: np.empty(0, bool))


def unmatched(new: FileTable) -> Matching:
    """Return a matching for files all of which are new."""
    none = np.full(new.count, -1, np.intp)
    no = np.zeros(new.count, bool)
    return Matching(none, no, new.first_names().copy(), np.empty(0, np.intp), no.copy(), no.copy())


def identical(files: FileTable) -> Matching:
    """Return the matching of files with themselves."""
    found = unmatched(files)
    found.old = np.arange(files.count)
    found.old_name = found.name
    return found


def match(old: FileTable, new: FileTable, old_volume: Volume, new_volume: Volume) -> Matching:
    """Match files: by their path, by their inode, and by their content.

    Raises:
        CorruptImageError: an image cannot be read.
    """
    found = _match_paths(old, new)
    _match_root(old, new, found)
    _match_inodes(old, new, found)
    _match_content(old, new, found, old_volume, new_volume)
    _look_at_content(old, new, found, old_volume, new_volume)
    return found


# --- by path ------------------------------------------------------------------------------------


def _match_paths(old: FileTable, new: FileTable) -> Matching:
    """Match by path; a file with several names by the first that leads to a file not yet taken."""
    found = unmatched(new)
    found.old_name = old.first_names().copy()
    new_index, old_index = _same_paths(old, new)
    new_row, old_row = new.names["file"][new_index], old.names["file"][old_index]
    once = np.unique(new_row, return_index=True)[1]
    once = once[np.unique(old_row[once], return_index=True)[1]]
    new_index, old_index = new_index[once], old_index[once]
    found.old[new_row[once]] = old_row[once]
    found.name[new_row[once]] = new_index
    found.old_name[old_row[once]] = old_index
    return found


def _same_paths(old: FileTable, new: FileTable) -> tuple[Index, Index]:
    """Return the indices of names that are the end of the same path."""
    of_old, of_new = _path_hashes(old), _path_hashes(new)
    order = np.argsort(of_old, kind="stable")
    at = np.searchsorted(of_old[order], of_new)
    at = np.minimum(at, max(order.size - 1, 0))
    if not order.size:
        return np.empty(0, np.intp), np.empty(0, np.intp)
    candidate = order[at]
    new_index = np.flatnonzero(of_old[candidate] == of_new)
    old_index = candidate[new_index]
    same = _same_names(old, old_index, new, new_index)
    return new_index[same], old_index[same]


def _same_names(old: FileTable, i: Index, new: FileTable, j: Index) -> Mask:
    """Tell which names are the same bytes; hashes alone are no proof."""
    a, b = old.names[i], new.names[j]
    same: Mask = a["length"] == b["length"]
    rows = np.flatnonzero(same)
    length = a["length"][rows]
    which, left = spread(a["start"][rows], length)
    _, right = spread(b["start"][rows], length)
    one, other = (np.frombuffer(t.buffer, np.uint8) for t in (old, new))
    same[rows[which[one[left] != other[right]]]] = False
    return same


def _path_hashes(table: FileTable) -> Hashes:
    """Hash the path that each name is the end of, level by level."""
    names = table.names
    own = _name_hashes(table)
    out = np.zeros(names.size, np.uint64)
    of_directory = np.zeros(max(table.count, 1), np.uint64)
    at = 0
    for count in table.levels:
        rows = slice(at, at + count)
        out[rows] = _mix(of_directory[names["parent"][rows]] * np.uint64(3) + own[rows])
        of_directory[names["file"][rows]] = out[rows]
        at += count
    return out


def _mix(value: Hashes) -> Hashes:
    """Scramble 64-bit words: the last step of splitmix64."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@cache
def _factors() -> Hashes:
    return np.frombuffer(os.urandom(8 * (_MAX_NAME + 1)), np.uint64)


def _name_hashes(table: FileTable) -> Hashes:
    """Hash names by a sum over their bytes, each times a random factor of its place."""
    names, source = table.names, np.frombuffer(table.buffer, np.uint8)
    out = np.zeros(names.size, np.uint64)
    for at in range(0, names.size, _NAMES_AT_ONCE):
        some = names[at : at + _NAMES_AT_ONCE]
        length = np.minimum(some["length"], _MAX_NAME).astype(np.int64)
        _, place = spread(some["start"], length)
        first = np.cumsum(length) - length
        within = np.arange(place.size) - np.repeat(first, length)
        terms = (source[place].astype(np.uint64) + np.uint64(1)) * _factors()[within]
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
        out[at : at + some.size] = sums[first + length] - sums[first]
    return out


def _match_root(old: FileTable, new: FileTable, found: Matching) -> None:
    if old.root >= 0 and new.root >= 0:
        found.old[new.root] = old.root


# --- by inode -----------------------------------------------------------------------------------


def _left(table: FileTable, matched: Index) -> Index:
    """Return the rows that are no other's yet; the root is never moved."""
    free = np.ones(table.count, bool)
    free[matched[matched >= 0]] = False
    if table.root >= 0:
        free[table.root] = False
    return np.flatnonzero(free)


def _match_inodes(old: FileTable, new: FileTable, found: Matching) -> None:
    """Match what is left by inode, where that is surely the same file still."""
    ours = _left(new, np.flatnonzero(found.old >= 0))
    theirs = _left(old, found.old)
    theirs = theirs[np.argsort(old.inode[theirs], kind="stable")]
    if not ours.size or not theirs.size:
        return
    at = np.minimum(np.searchsorted(old.inode[theirs], new.inode[ours]), theirs.size - 1)
    other = theirs[at]
    same = (old.inode[other] == new.inode[ours]) & (old.type[other] == new.type[ours])
    same &= (old.identity[other] == new.identity[ours]) & (new.identity[ours] != 0)
    same &= (found.name[ours] >= 0) & (found.old_name[other] >= 0)
    _take(found, ours[same], other[same], moved=True)


def _take(found: Matching, ours: Index, theirs: Index, *, moved: bool) -> None:
    theirs, once = np.unique(theirs, return_index=True)
    found.old[ours[once]] = theirs
    found.moved[ours[once]] = moved


# --- by content ---------------------------------------------------------------------------------


def _match_content(
    old: FileTable, new: FileTable, found: Matching, old_volume: Volume, new_volume: Volume
) -> None:
    """Match what is left and not empty by content: first by size, first block, then all of it."""
    ours = _comparable(new, _left(new, np.flatnonzero(found.old >= 0)))
    theirs = _comparable(old, _left(old, found.old))
    ours = ours[np.isin(new.size[ours], old.size[theirs])]
    theirs = theirs[np.isin(old.size[theirs], new.size[ours])]
    if not ours.size or not theirs.size:
        return
    first_new = _first_blocks(new, ours, new_volume) ^ new.size[ours].astype(np.uint64)
    first_old = _first_blocks(old, theirs, old_volume) ^ old.size[theirs].astype(np.uint64)
    ours, theirs = ours[np.isin(first_new, first_old)], theirs[np.isin(first_old, first_new)]
    ours = ours[_affordable(new, ours, new_volume)]
    theirs = theirs[_affordable(old, theirs, old_volume)]
    known: dict[bytes, list[int]] = {}
    for row, digest in zip(theirs.tolist(), digests(old, theirs, old_volume), strict=True):
        known.setdefault(digest, []).append(row)
    pairs = []
    for row, digest in zip(ours.tolist(), digests(new, ours, new_volume), strict=True):
        if known.get(digest):
            pairs.append((row, known[digest].pop(0)))
    if pairs:
        rows = np.array(pairs, np.intp)
        _take(found, rows[:, 0], rows[:, 1], moved=True)


def _comparable(table: FileTable, rows: Index) -> Index:
    """Return those rows whose content can be read and that have a name and content."""
    good = (table.type[rows] == Type.FILE) & (table.size[rows] > 0) & ~table.opaque[rows]
    good &= (table.first_names()[rows] >= 0) & (table.inline[rows] == 0)
    kept: Index = rows[good]
    return kept


def _first_blocks(table: FileTable, rows: Index, volume: Volume) -> Hashes:
    """Return a hash of the first 4 KiB of files: not proof that they are the same."""
    parts = table.parts
    out = np.zeros(rows.size, np.uint64)
    if not parts.size:
        return out
    at = np.minimum(np.searchsorted(parts["file"], rows), parts.size - 1)
    first = parts[at]
    index = np.flatnonzero((first["file"] == rows) & (first["logical"] == 0))
    length = np.minimum(np.minimum(table.size[rows], _BLOCK), first["length"])
    step = _AT_ONCE // _BLOCK
    for begin in range(0, index.size, step):
        some = index[begin : begin + step]
        data = volume.read_many(first["physical"][some], _BLOCK)
        for row, stop in enumerate(length[some].tolist()):
            data[row, stop:] = 0
        out[some] = data.view(np.uint64) @ _factors()[: _BLOCK // 8]
    return out


def digests(table: FileTable, rows: Index, volume: Volume) -> list[bytes]:
    """Return a digest of the content of each file, holes being zeros.

    It is of the chunks of a file that are not all zeros, each with its place, so that neither
    holes nor how a file is cut into runs make a difference.

    Args:
        table: the files.
        rows: which, each once.
        volume: what they are in.

    Raises:
        CorruptImageError: the image cannot be read.
    """
    whole = _in_one_piece(table, rows)
    found = dict(zip(rows[whole].tolist(), _whole_digests(table, rows[whole], volume), strict=True))
    others = rows[~whole]
    hashers = {row: blake3(int(table.size[row]).to_bytes(8, "little")) for row in others.tolist()}
    chunk = _Chunk()
    for file, number, within, data in _pieces(table, others, volume):
        if chunk.key != (file, number):
            chunk.finish(hashers)
            chunk.begin(file, number, int(table.size[file]))
        chunk.buffer[within : within + len(data)] = data
    chunk.finish(hashers)
    found |= {row: hasher.digest() for row, hasher in hashers.items()}
    return [found[row] for row in rows.tolist()]


def _range_of_parts(table: FileTable, rows: Index) -> tuple[Index, Index]:
    """Return the index of each file's first part, and that behind its last."""
    file = table.parts["file"]
    return np.searchsorted(file, rows, side="left"), np.searchsorted(file, rows, side="right")


def _in_one_piece(table: FileTable, rows: Index) -> Mask:
    """Tell which files have all of their content in one part, and in one chunk: almost all do."""
    parts = table.parts
    if not parts.size:
        return np.zeros(rows.size, bool)
    first, last = _range_of_parts(table, rows)
    part = parts[np.minimum(first, parts.size - 1)]
    size = table.size[rows]
    whole: Mask = (last - first == 1) & (part["logical"] == 0) & (part["length"] >= size)
    return whole & (size > 0) & (size <= _CHUNK)


def _whole_digests(table: FileTable, rows: Index, volume: Volume) -> Iterator[bytes]:
    """Yield the digests of files, each in one piece: the same ones with less ado."""
    part = table.parts[np.searchsorted(table.parts["file"], rows)]
    size = table.size[rows]
    first = bytes(8)  # the chunk's number
    contents = _read_in_turns(volume, part["physical"], size)
    for length, data in zip(size.tolist(), contents, strict=True):
        head = length.to_bytes(8, "little")
        zeros = not data[0] and not np.frombuffer(data, np.uint8).any()
        yield blake3(head if zeros else b"".join((head, first, data))).digest()


class _Chunk:
    """A part of a file's content that is being put together."""

    def __init__(self) -> None:
        self.key = (-1, -1)
        self.buffer = bytearray()

    def begin(self, file: int, number: int, size: int) -> None:
        """Begin with zeros."""
        self.key = (file, number)
        self.buffer = bytearray(min(_CHUNK, size - number * _CHUNK))

    def finish(self, hashers: dict[int, Any]) -> None:
        """Hash it, unless it is zeros."""
        file, number = self.key
        if np.frombuffer(self.buffer, np.uint8).any():
            hashers[file].update(number.to_bytes(8, "little") + self.buffer)


def _pieces(
    table: FileTable, rows: Index, volume: Volume
) -> Iterator[tuple[int, int, int, memoryview]]:
    """Read files: yield the file, the chunk of it, where in that, and what is there."""
    first, last = _range_of_parts(table, rows)
    parts = table.parts[spread(first, last - first)[1]]
    begin = parts["logical"]
    stop = np.minimum(begin + parts["length"], table.size[parts["file"]])
    parts, begin, stop = (a[begin < stop] for a in (parts, begin, stop))
    count = (stop - 1) // _CHUNK - begin // _CHUNK + 1
    which, number = spread(begin // _CHUNK, count)
    low = np.maximum(begin[which], number * _CHUNK)
    length = np.minimum(stop[which], (number + 1) * _CHUNK) - low
    physical = parts["physical"][which] + low - begin[which]
    file = parts["file"][which]
    columns = (file, number, low - number * _CHUNK)
    data = _read_in_turns(volume, physical, length)
    yield from zip(*(column.tolist() for column in columns), data, strict=True)


def _read_in_turns(volume: Volume, offset: Offsets, length: Offsets) -> Iterator[memoryview]:
    """Yield the content of many ranges, of which only so much is held at a time."""
    total = np.cumsum(length)
    at = 0
    while at < length.size:
        reach = total[at] + _AT_ONCE - length[at]
        end = max(at + 1, int(np.searchsorted(total, reach, side="right")))
        yield from volume.read_pieces(offset[at:end], length[at:end])
        at = end


def _affordable(table: FileTable, rows: Index, volume: Volume) -> Mask:
    """Tell which files can be read without reading more than the volume holds, all in all."""
    first, last = _range_of_parts(table, rows)
    sums = np.concatenate([[0], np.cumsum(table.parts["length"])])
    result: Mask = np.cumsum(sums[last] - sums[first]) <= volume.length
    return result


# --- what became of those that are still in their place ------------------------------------------


def _look_at_content(
    old: FileTable, new: FileTable, found: Matching, old_volume: Volume, new_volume: Volume
) -> None:
    """Tell which files with the same path have the same content elsewhere on the disk.

    Of directories, only where the whole file system is elsewhere: where their blocks are is not
    known.
    """
    ours = np.flatnonzero((found.old >= 0) & ~found.moved)
    theirs = found.old[ours]
    entries = _entry_hashes(new)[ours] == _entry_hashes(old)[theirs]
    same_map = _map_hashes(new)[ours] == _map_hashes(old)[theirs]
    # Maps count from the volume's start: in one that moved, equal maps are other places.
    in_place = old_volume.start == new_volume.start
    same_map &= in_place
    differs = (new.size[ours] != old.size[theirs]) & (new.type[ours] != Type.DIRECTORY)
    differs |= new.type[ours] != old.type[theirs]
    differs |= new.inline[ours] != old.inline[theirs]
    differs |= ~entries
    found.differs[ours] = differs
    found.laid[ours] = ~differs & (new.type[ours] == Type.DIRECTORY) & (not in_place)
    open_ = ~differs & ~same_map & np.isin(new.type[ours], (Type.FILE, Type.SYMLINK))
    open_ &= ~new.opaque[ours] & ~old.opaque[theirs]
    ours, theirs = ours[open_], theirs[open_]
    # Most have the same content, so what is no longer than a block is better read only once.
    likely = new.size[ours] <= _BLOCK
    long = np.flatnonzero(~likely)
    heads = _first_blocks(new, ours[long], new_volume)
    likely[long] = heads == _first_blocks(old, theirs[long], old_volume)
    found.differs[ours[~likely]] = True
    ours, theirs = ours[likely], theirs[likely]
    _, same = _compared(old, new, theirs, ours, old_volume, new_volume)
    found.laid[ours[same]] = True
    found.differs[ours[~same]] = True


def rewritten(
    old: FileTable, new: FileTable, was: Index, rows: Index, old_volume: Volume, new_volume: Volume
) -> tuple[Mask, Mask]:
    """Tell which files have other content, by reading them.

    Args:
        old: the files of OLD.
        new: the files of NEW.
        was: rows of OLD, each once.
        rows: the row of NEW that goes with each.
        old_volume: what OLD's files are in.
        new_volume: what NEW's files are in.

    Returns:
        Which were compared, and which of those differ; each of shape (rows,). Not compared is
        what is not stored as it reads, or would take more reading than the volume is large.

    Raises:
        CorruptImageError: an image cannot be read.
    """
    read, differ = np.zeros(rows.size, bool), np.zeros(rows.size, bool)
    at = np.flatnonzero(~new.opaque[rows] & ~old.opaque[was])
    read[at], same = _compared(old, new, was[at], rows[at], old_volume, new_volume)
    differ[at] = read[at] & ~same
    return read, differ


def _compared(
    old: FileTable, new: FileTable, was: Index, rows: Index, old_volume: Volume, new_volume: Volume
) -> tuple[Mask, Mask]:
    """Tell which files were read, as far as that is affordable, and which of them are the same."""
    read = _affordable(new, rows, new_volume) & _affordable(old, was, old_volume)
    ours, theirs = rows[read], was[read]
    pairs = zip(digests(new, ours, new_volume), digests(old, theirs, old_volume), strict=True)
    same = np.zeros(rows.size, bool)
    same[read] = np.array([a == b for a, b in pairs], bool)
    return read, same


def _entry_hashes(table: FileTable) -> Hashes:
    """Return a hash of the names in each directory, and of what they lead to."""
    names = table.names
    child = table.inode[names["file"]].astype(np.uint64)
    out = np.zeros(table.count, np.uint64)
    np.add.at(out, names["parent"], _mix(_name_hashes(table) ^ _mix(child)))
    return out


def _map_hashes(table: FileTable) -> Hashes:
    """Return a hash of where the content of each file lies."""
    parts = table.parts
    words = np.empty((parts.size, 6), np.uint32)
    for column, name in enumerate(("logical", "length", "physical")):
        value = parts[name].astype(np.uint64)
        words[:, 2 * column] = value & np.uint64(0xFFFFFFFF)
        words[:, 2 * column + 1] = value >> np.uint64(32)
    out = np.zeros(table.count, np.uint64)
    np.add.at(out, parts["file"], hashed(words))
    return out
