"""Extents: what a range of guest space is, without reading it.

An extent array is a numpy array of :data:`EXTENT` records that *tiles* a guest range: sorted,
each beginning where the one before ends, none empty. All functions here are vectorised, and
return a new array; those that say so also take extents with gaps between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt


class Kind(IntEnum):
    """How an extent's content is stored."""

    UNALLOCATED = 0
    """Not in this layer: the backing file decides, or zeros where there is none."""
    ZERO = 1
    """Reads as zeros, by metadata alone."""
    DATA = 2
    """Stored as it is, at ``host``."""
    COMPRESSED = 3
    """Within one compressed cluster, whose payload begins at ``host``."""


EXTENT = np.dtype(
    [
        ("start", np.int64),  # guest offset, bytes
        ("length", np.int64),  # bytes
        ("host", np.int64),  # DATA: offset of the first byte; COMPRESSED: of the payload
        ("bound", np.int32),  # COMPRESSED: an upper bound of the payload's length, bytes
        ("within", np.int32),  # COMPRESSED: where in the inflated cluster the extent begins
        ("source", np.int32),  # which of the image's sources (its layers, top first)
        ("kind", np.uint8),
    ]
)

Extents: TypeAlias = npt.NDArray[np.void]
Offsets: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]


def single(start: int, stop: int, kind: Kind, *, host: int = 0, source: int = 0) -> Extents:
    """Return one extent over ``[start, stop)``, or none where that is empty."""
    if stop <= start:
        return np.empty(0, EXTENT)
    return np.array([(start, stop - start, host, 0, 0, source, kind)], EXTENT)


def join(parts: Sequence[Extents]) -> Extents:
    """Return extents one behind the other, as a new array."""
    # As opaque records: numpy would work out a common type of two that have fields, in Python.
    opaque = f"V{EXTENT.itemsize}"
    views = [np.empty(0, opaque), *(part.view(opaque) for part in parts)]
    return np.concatenate(views).view(EXTENT)


def ends(extents: Extents) -> Offsets:
    """Return the guest offset at which each extent ends."""
    result: Offsets = extents["start"] + extents["length"]
    return result


def cut_index(extents: Extents, points: Offsets) -> tuple[Offsets, npt.NDArray[np.intp]]:
    """Return where pieces begin when extents are cut, and which extent each lies in.

    The extents must be sorted but may have gaps; points in no extent do nothing.
    """
    starts = extents["start"]
    if not starts.size:
        return starts, np.empty(0, np.intp)
    points = np.unique(points)
    row = np.searchsorted(starts, points, side="right") - 1
    points = points[(row >= 0) & (points < ends(extents)[row])]
    cut = np.union1d(starts, points)
    return cut, np.searchsorted(starts, cut, side="right") - 1


def trim(extents: Extents, start: Offsets, stop: Offsets) -> Extents:
    """Cut each extent, in place, to a range of its own, in which it must lie in part."""
    start = np.maximum(start, extents["start"])
    stop = np.minimum(stop, ends(extents))
    skipped = start - extents["start"]
    extents["start"], extents["length"] = start, stop - start
    extents["host"] += np.where(extents["kind"] == Kind.DATA, skipped, 0)
    extents["within"] += np.where(extents["kind"] == Kind.COMPRESSED, skipped, 0).astype(np.int32)
    return extents


def pick(extents: Extents, starts: Offsets, index: npt.NDArray[np.intp]) -> Extents:
    """Return the pieces that begin at ``starts``, piece ``i`` lying in ``extents[index[i]]``."""
    if not starts.size:
        return extents[:0]
    return trim(extents[index], starts, np.append(starts[1:], ends(extents)[-1]))


def cut_at(extents: Extents, points: Offsets) -> Extents:
    """Split extents at the given guest offsets, in any order; those in no extent do nothing."""
    return pick(extents, *cut_index(extents, points))


def clip(extents: Extents, start: int, stop: int) -> Extents:
    """Return the part of extents that lies in ``[start, stop)``."""
    cut = cut_at(extents, np.array([start, stop], np.int64))
    kept: Extents = cut[(cut["start"] >= start) & (cut["start"] < stop)]
    return kept


def stack(top: Extents, below: Extents) -> Extents:
    """Return ``top``, with what it leaves unallocated taken from ``below``.

    ``below`` must tile a part of the range of ``top``, from the first unallocated extent to the
    end of the last; elsewhere it is not looked at.
    """
    hole = top["kind"] == Kind.UNALLOCATED
    if not hole.any():
        return top
    top = cut_at(top, np.append(below["start"], ends(below)[-1:]))
    hole = top["kind"] == Kind.UNALLOCATED
    cut = cut_at(below, top["start"])
    top[hole] = cut[np.searchsorted(cut["start"], top["start"][hole])]
    return top


def coalesce(extents: Extents) -> Extents:
    """Join neighbours that are one run, in guest space and, for data, in host space."""
    if extents.size < 2:
        return extents
    kind = extents["kind"]
    same = (kind[1:] == kind[:-1]) & (extents["start"][1:] == ends(extents)[:-1])
    moves = extents["host"][1:] - extents["host"][:-1]
    data = (moves == extents["length"][:-1]) & (extents["source"][1:] == extents["source"][:-1])
    part = (
        (moves == 0)
        & (extents["source"][1:] == extents["source"][:-1])
        & (extents["within"][1:] == extents["within"][:-1] + extents["length"][:-1])
    )
    joined = np.where(
        kind[1:] == Kind.DATA, data, np.where(kind[1:] == Kind.COMPRESSED, part, True)
    )
    first = np.flatnonzero(np.append(True, ~(same & joined)))
    out = extents[first]
    out["length"] = np.add.reduceat(extents["length"], first)
    return out


def guest_points(extents: Extents, mask: Mask, host_points: Offsets) -> Offsets:
    """Return the guest offsets at which the masked DATA extents meet the given host offsets.

    ``host_points`` must be sorted. Only points strictly inside an extent are returned.
    """
    rows = extents[mask]
    low = np.searchsorted(host_points, rows["host"], side="right")
    high = np.searchsorted(host_points, rows["host"] + rows["length"], side="left")
    row, point = spread(low, np.maximum(high - low, 0))
    result: Offsets = rows["start"][row] + (host_points[point] - rows["host"][row])
    return result


def spread(first: Any, counts: Any) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Count from each ``first`` on: return the numbers, behind the index each belongs to."""
    which = np.repeat(np.arange(counts.size), counts)
    return which, (first - (np.cumsum(counts) - counts))[which] + np.arange(which.size)


def runs(flags: npt.NDArray[Any]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return where each run of equal values begins, and how many values it has."""
    if not flags.size:
        empty = np.empty(0, np.intp)
        return empty, empty
    first = np.flatnonzero(np.append(True, flags[1:] != flags[:-1]))
    return first, np.diff(np.append(first, flags.size))


def inside(points: Offsets, ranges: Offsets) -> Mask:
    """Tell which points lie in ranges [start, stop), rows of an array, sorted and apart."""
    if not ranges.size:
        return np.zeros(points.size, bool)
    row = np.searchsorted(ranges[:, 0], points, side="right") - 1
    found: Mask = (row >= 0) & (points < ranges[row, 1])
    return found


def multiples_inside(start: Offsets, length: Offsets, unit: int) -> Offsets:
    """Return the multiples of ``unit`` that lie strictly inside of ranges."""
    first = start // unit + 1
    _, number = spread(first, np.maximum((start + length - 1) // unit - first + 1, 0))
    return number * unit
