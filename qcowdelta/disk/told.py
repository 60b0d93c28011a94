"""What The Sleuth Kit told, held against limits and turned into arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .contents import UnreadableError
from .files import NAME, PART, FileTable, Parts, Type, hashed, reachable
from .kinds import SpaceKind
from .space import NOBODY, Spaces, nothing, over, spaces
from .tsk import Told

_TYPES = {1: Type.FILE, 2: Type.DIRECTORY, 6: Type.SYMLINK}
_VIRTUAL = 10
_SPARSE, _FILLER = 2, 1
_OPAQUE = 0x0004 | 0x0008 | 0x0010
"""Flags of an attribute: compressed, encrypted or sparse in a way that needs decoding."""
_LIMIT = 1 << 58


@dataclass
class Attributes:
    """The clusters of one attribute of one file.

    Attributes:
        inode: of the file.
        kind: the attribute's type.
        runs: where on the volume, and where in the attribute, in bytes: (start, length, offset).
    """

    inode: int
    row: int
    kind: int
    runs: list[tuple[int, int, int]] = field(default_factory=list)


@dataclass
class Heard:
    """Files as a table, and what clusters they have.

    Attributes:
        files: the table; ``parts`` are the clusters of content.
        attributes: every attribute with clusters.
    """

    files: FileTable
    attributes: list[Attributes]


def hear(told: Told, content: Callable[[int], bool]) -> Heard:
    """Turn what was told into arrays.

    Args:
        told: what was told.
        content: whether an attribute's type is that of a file's content.

    Raises:
        UnreadableError: it makes no sense.
    """
    try:
        return _hear(told, content)
    except (ValueError, KeyError, TypeError, OverflowError, AttributeError):
        raise UnreadableError("The Sleuth Kit told nonsense of it") from None


def _hear(told: Told, content: Callable[[int], bool]) -> Heard:
    records = told.files
    block = _bounded(told.facts["block_size"])
    number = np.array([_bounded(r["inode"]) for r in records], np.int64)
    row_of = {int(n): row for row, n in enumerate(number.tolist())}
    types = np.array([_TYPES.get(r["type"], Type.OTHER) for r in records], np.uint8)
    attributes = [a for row, r in enumerate(records) for a in _attributes(row, r, block)]
    parts = [
        (a.row, offset, length, start)
        for a in attributes
        if content(a.kind)
        for start, length, offset in a.runs
    ]
    own = [r.get("content", "") for r in records]
    names, buffer = _names(told, row_of)
    root = row_of.get(_bounded(told.facts["root"]), -1)
    reached, levels = reachable(names, types, root)
    files = FileTable(
        number, types, np.array([_bounded(r["size"]) for r in records], np.int64),
        _hashes(r["identity"] for r in records),
        _hashes([*r["metadata"], r["fraction"]] for r in records),
        np.array([int(text or "0", 16) for text in own], np.uint64),
        root, reached, levels, buffer, _parts(parts),
        np.array([_opaque(r) for r in records], bool),
    )  # fmt: skip
    return Heard(files, attributes)


def _bounded(value: Any) -> int:
    number = int(value)
    if not 0 <= number < _LIMIT:
        raise ValueError("out of bounds")
    return number


def _opaque(record: dict[str, Any]) -> bool:
    return any(int(flags) & _OPAQUE for _, flags, _, _ in record["attributes"])


def _attributes(row: int, record: dict[str, Any], block: int) -> list[Attributes]:
    found = []
    for kind, _, _, runs in record["attributes"]:
        one = Attributes(_bounded(record["inode"]), row, int(kind))
        for start, length, offset, flags in runs:
            if not int(flags) & (_SPARSE | _FILLER):
                values = (_bounded(n * block) for n in (start, length, offset))
                one.runs.append(tuple(values))  # type: ignore[arg-type] # three of them
        found.append(one)
    return found


def _names(told: Told, row_of: dict[int, int]) -> tuple[Any, bytes]:
    raw = list(dict.fromkeys(told.names))
    rows = [
        (row_of[inode], row_of[parent], name.encode("latin-1"))
        for parent, inode, name in raw
        if inode in row_of and parent in row_of and name
    ]
    out = np.empty(len(rows), NAME)
    out["file"] = [row for row, _, _ in rows]
    out["parent"] = [row for _, row, _ in rows]
    out["length"] = [len(name) for _, _, name in rows]
    out["start"] = np.cumsum(out["length"], dtype=np.int64) - out["length"]
    return out, b"".join(name for _, _, name in rows)


def _parts(rows: list[tuple[int, int, int, int]]) -> Parts:
    out = np.array(rows, PART) if rows else np.empty(0, PART)
    return out[np.lexsort((out["logical"], out["file"]))]


def _hashes(rows: Any) -> Any:
    values = np.array([[int(v) & 0xFFFFFFFF for v in row] for row in rows], np.uint32)
    if not values.size:
        return np.zeros(values.shape[0], np.uint64)
    return np.where(values.any(axis=1), hashed(values), np.uint64(0))


def claims(
    heard: Heard, kind_of: Callable[[int, int, int], tuple[SpaceKind, bool]], unit: int, base: int
) -> Spaces:
    """Return what files take, in bytes of the volume, rounded out to clusters.

    Args:
        heard: the files.
        kind_of: what an attribute's clusters are, by the file's inode, its type, and the
            attribute's; and whether they are the file's own.
        unit: the size of a cluster.
        base: where the first one begins.
    """
    rows = []
    for one in heard.attributes:
        kind, own = kind_of(one.inode, int(heard.files.type[one.row]), one.kind)
        rows += [(start, length, one.row if own else NOBODY, kind) for start, length, _ in one.runs]
    if not rows:
        return nothing()
    start, length, owner, kinds = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    inside = start >= base
    stop = np.where(inside, base + -(-(start + length - base) // unit) * unit, start + length)
    start = np.where(inside, base + (start - base) // unit * unit, start)
    return spaces(start, stop - start, kinds, owner)


def used_and_free(used: Spaces, free: Spaces, twice: int, where: str) -> tuple[Spaces, list[str]]:
    """Lay the clusters in use over those that count as free.

    Args:
        used: records that are sorted and apart.
        free: the same.
        twice: how many bytes are claimed by more than one file.
        where: what says which clusters are free, for the notes.

    Returns:
        The records of both, and what contradicts.
    """
    whole = over(used, free)
    notes = []
    if twice:
        notes.append("some clusters belong to more than one file")
    if int(used["length"].sum() + free["length"].sum() - whole["length"].sum()):
        notes.append(f"clusters in use count as free in its {where}")
    return whole, notes
