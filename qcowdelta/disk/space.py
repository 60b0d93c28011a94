"""Records of what ranges are used for, as arrays: all functions are vectorised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..extents import Offsets, spread

SPACE = np.dtype(
    [
        ("start", np.int64),  # bytes
        ("length", np.int64),  # bytes
        ("owner", np.int32),  # the row of a file, or NOBODY
        ("kind", np.uint8),  # a SpaceKind
    ]
)
NOBODY = -1

Spaces: TypeAlias = npt.NDArray[np.void]
Index: TypeAlias = npt.NDArray[np.intp]


def spaces(start: Any, length: Any, kind: Any, owner: Any = NOBODY) -> Spaces:
    """Return records of ranges; each argument is an array or the same for all."""
    columns = np.broadcast_arrays(start, length, owner, kind)
    out = np.empty(columns[0].size, SPACE)
    for name, column in zip(SPACE.names or (), columns, strict=True):
        out[name] = column.reshape(-1)
    return out


def nothing() -> Spaces:
    """Return no records."""
    return np.empty(0, SPACE)


def stops(rows: Spaces) -> Offsets:
    """Return where each record ends."""
    result: Offsets = rows["start"] + rows["length"]
    return result


def apart(rows: Spaces, limit: int) -> tuple[Spaces, int]:
    """Sort records and take from each what one that begins before it has, or an earlier equal.

    Args:
        rows: records in any order, which may overlap and go beyond the limit.
        limit: where the space that they lie in ends.

    Returns:
        The records sorted and apart, inside ``[0, limit)``; and how many bytes were claimed twice.
    """
    rows = rows[np.argsort(rows["start"], kind="stable")]
    start = np.clip(rows["start"], 0, limit)
    stop = np.clip(stops(rows), start, limit)
    reach = np.maximum.accumulate(stop)
    begin = start.copy()
    begin[1:] = np.minimum(np.maximum(start[1:], reach[:-1]), stop[1:])
    twice = int((begin - start).sum())
    rows["start"], rows["length"] = begin, stop - begin
    return rows[rows["length"] > 0], twice


def cut(rows: Spaces, points: Offsets) -> Spaces:
    """Cut records that are sorted and apart at the given points."""
    if not rows.size:
        return rows
    row = np.searchsorted(rows["start"], points, side="right") - 1
    inside = (row >= 0) & (points > rows["start"][row]) & (points < stops(rows)[row])
    starts = np.union1d(rows["start"], points[inside])
    index = np.searchsorted(rows["start"], starts, side="right") - 1
    out = rows[index]
    ends = np.minimum(stops(out), np.append(starts[1:], stops(out)[-1:]))
    out["start"], out["length"] = starts, ends - starts
    return out


def over(top: Spaces, below: Spaces) -> Spaces:
    """Return ``top``, and of ``below`` what ``top`` does not cover; each is sorted and apart."""
    if not top.size or not below.size:
        return np.concatenate([top, below])
    rest = cut(below, np.concatenate([top["start"], stops(top)]))
    row = np.searchsorted(top["start"], rest["start"], side="right") - 1
    covered = (row >= 0) & (rest["start"] < stops(top)[row])
    out = np.concatenate([top, rest[~covered]])
    return out[np.argsort(out["start"], kind="stable")]


def tile(rows: Spaces, length: int, kind: int, keep: Sequence[int] = ()) -> Spaces:
    """Fill what records, sorted and apart, leave of ``[0, length)`` with one kind.

    Neighbours of the same owner and kind are joined, except at the points to keep.
    """
    start = np.concatenate([[0], stops(rows)])
    stop = np.concatenate([rows["start"], [length]])
    gaps = spaces(start, stop - start, kind)
    out = np.concatenate([rows, gaps[gaps["length"] > 0]])
    out = out[np.argsort(out["start"], kind="stable")]
    if out.size < 2:
        return out
    new = (out["owner"][1:] != out["owner"][:-1]) | (out["kind"][1:] != out["kind"][:-1])
    new |= np.isin(out["start"][1:], keep)
    first = np.flatnonzero(np.append(True, new))
    joined = out[first]
    joined["length"] = np.add.reduceat(out["length"], first)
    return joined


def pieces(start: Offsets, length: Offsets, rows: Spaces) -> tuple[Index, Index, Offsets, Offsets]:
    """Return what of ranges lies in each record; the records tile all that the ranges touch.

    Returns:
        For each piece, in order: the range and the record it is of, its start, its length.
    """
    stop = start + length
    first = np.searchsorted(rows["start"], start, side="right") - 1
    last = np.searchsorted(rows["start"], stop, side="left")
    which, row = spread(first, last - first)
    begin = np.maximum(start[which], rows["start"][row])
    end = np.minimum(stop[which], stops(rows)[row])
    return which, row, begin, end - begin
