"""The files of a file system, as columns of arrays."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..extents import spread
from .space import Index

MAX_DEPTH = 512
MAX_PATH = 4096
"""Files further down, or with longer paths, are taken as having no name."""

NAME = np.dtype(
    [
        ("file", np.int32),  # the row of the file that is called so
        ("parent", np.int32),  # the row of the directory that the name is in
        ("start", np.int64),  # where in the buffer of names it begins
        ("length", np.int32),
    ]
)
PART = np.dtype(
    [
        ("file", np.int32),  # the row of the file
        ("logical", np.int64),  # where in the file it is, bytes
        ("length", np.int64),  # bytes
        ("physical", np.int64),  # where in the volume, bytes; ZEROS: nowhere
    ]
)
ZEROS = -1

Hashes: TypeAlias = npt.NDArray[np.uint64]
Names: TypeAlias = npt.NDArray[np.void]
Parts: TypeAlias = npt.NDArray[np.void]


class Type(IntEnum):
    """What a file is."""

    FILE = 0
    DIRECTORY = 1
    SYMLINK = 2
    OTHER = 3


@dataclass
class FileTable:
    """The files of one file system: a row each.

    Attributes:
        inode: the number of its inode or entry.
        type: a :class:`Type`.
        size: its length, bytes.
        identity: what tells the file from another that has its inode later; 0: not known.
        metadata: a hash of times, rights, owner, and attributes, equal where these are.
        inline: a hash of the content that is not in blocks of its own; 0: there is none.
        root: the row of the root directory, or -1.
        names: every name that is reached from the root, of :data:`NAME`, by their depth;
            directories have one.
        levels: how many names there are of each depth.
        buffer: the bytes of all names.
        parts: where the content of regular files lies, of :data:`PART`; the rest is zeros.
        opaque: whether ``parts`` are not its content as it is read: compressed or encrypted.
    """

    inode: npt.NDArray[np.int64]
    type: npt.NDArray[np.uint8]
    size: npt.NDArray[np.int64]
    identity: Hashes
    metadata: Hashes
    inline: Hashes
    root: int
    names: Names
    levels: tuple[int, ...]
    buffer: bytes
    parts: Parts
    opaque: npt.NDArray[np.bool_]
    _paths: dict[int, bytes] = field(default_factory=dict, repr=False)
    _first: Index | None = field(default=None, repr=False)

    @property
    def count(self) -> int:
        """How many files there are."""
        return int(self.inode.size)

    @classmethod
    def empty(cls) -> FileTable:
        """Return a table without files."""
        number, hashes = np.empty(0, np.int64), np.empty(0, np.uint64)
        return cls(
            number, np.empty(0, np.uint8), number, hashes, hashes, hashes, -1,
            np.empty(0, NAME), (), b"", np.empty(0, PART), np.empty(0, bool),
        )  # fmt: skip

    def name(self, index: int) -> bytes:
        """Return a name: the last part of a path."""
        row = self.names[index]
        start = int(row["start"])
        return self.buffer[start : start + int(row["length"])]

    def first_names(self) -> Index:
        """Return for each file the index of its first name, or -1."""
        if self._first is None:
            found = np.full(self.count, -1, np.intp)
            # The last assignment to a row is the one that stays.
            found[self.names["file"][::-1]] = np.arange(self.names.size)[::-1]
            self._first = found
        return self._first

    def path(self, index: int) -> bytes:
        """Return the path that ends with a name, from ``/`` on."""
        return self._directory(int(self.names["parent"][index])) + self.name(index)

    def paths(self, index: Index) -> list[bytes]:
        """Return the paths that end with some names, as :meth:`path` does, in fewer steps."""
        rows = self.names[index]
        folders = {row: self._directory(row) for row in np.unique(rows["parent"]).tolist()}
        columns = (rows["parent"], rows["start"], rows["start"] + rows["length"])
        return [
            folders[parent] + self.buffer[start:stop]
            for parent, start, stop in zip(*(column.tolist() for column in columns), strict=True)
        ]

    def paths_of(self, rows: Index) -> list[bytes]:
        """Return the paths of files by their first names, as :meth:`path_of` does."""
        index = np.where(rows == self.root, -1, self.first_names()[rows])
        paths = iter(self.paths(index[index >= 0]))
        return [
            b"/" if row == self.root else next(paths) if name >= 0 else b""
            for row, name in zip(rows.tolist(), index.tolist(), strict=True)
        ]

    def path_of(self, row: int) -> bytes:
        """Return a file's path by its first name; empty where it has none."""
        if row == self.root:
            return b"/"
        index = int(self.first_names()[row])
        return b"" if index < 0 else self.path(index)

    def _directory(self, row: int) -> bytes:
        """Return a directory's path, ending in ``/``."""
        way: list[int] = []
        while row != self.root and row not in self._paths:
            way.append(row)
            row = int(self.names["parent"][self.first_names()[row]])
        path = b"/" if row == self.root else self._paths[row]
        for row in reversed(way):
            path += self.name(int(self.first_names()[row])) + b"/"
            self._paths[row] = path
        return path


def reachable(
    names: Names, types: npt.NDArray[np.uint8], root: int
) -> tuple[Names, tuple[int, ...]]:
    """Return the names that are reached from the root, each directory through its first one.

    Loops, and what lies too deep, are left out: every path ends at the root and is bounded.

    Returns:
        The names by their depth, and how many there are of each.
    """
    if root < 0 or not names.size:
        return names[:0], ()
    names = names[np.argsort(names["parent"], kind="stable")]
    seen = np.zeros(types.size, bool)
    seen[root] = True
    length = np.zeros(types.size, np.int64)
    kept: list[Names] = []
    frontier = np.array([root])
    for _ in range(MAX_DEPTH):
        first = np.searchsorted(names["parent"], frontier, side="left")
        last = np.searchsorted(names["parent"], frontier, side="right")
        which, index = spread(first, last - first)
        found = names[index]
        total = length[frontier][which] + 1 + found["length"]
        directory = types[found["file"]] == Type.DIRECTORY
        once = np.zeros(found.size, bool)
        once[np.unique(found["file"], return_index=True)[1]] = True
        good = (total <= MAX_PATH) & (~directory | (once & ~seen[found["file"]]))
        found, total, directory = found[good], total[good], directory[good]
        kept.append(found)
        frontier = found["file"][directory].astype(np.int64)
        seen[frontier] = True
        length[frontier] = total[directory]
        if not frontier.size:
            break
    return np.concatenate(kept), tuple(part.size for part in kept)


def gather(source: npt.NDArray[np.uint8], start: Any, length: Any) -> tuple[bytes, Any]:
    """Copy byte strings out of a buffer to one buffer; return it, and where in it each begins."""
    _, index = spread(start, length)
    return source[index].tobytes(), np.cumsum(length) - length


@cache
def _multipliers(count: int) -> Hashes:
    return np.frombuffer(os.urandom(8 * count), np.uint64)


def hashed(words: npt.NDArray[np.uint32]) -> Hashes:
    """Hash each row of an array of 32-bit words: a multilinear hash with a key of this process.

    For telling whether rows are equal, with a chance of 2**-32 to be wrong; never 0.
    """
    factors = _multipliers(words.shape[1] + 1)
    total = np.full(words.shape[0], factors[-1], np.uint64)
    for column in range(words.shape[1]):
        total += words[:, column].astype(np.uint64) * factors[column]
    return total | np.uint64(1)
