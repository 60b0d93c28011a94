"""Inspecting a delta: what changed, in figures, as a map and as the longest extents."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .delta import ChangeKind, Changes, ChangeSource, DeltaStats, Progress, Summary
from .units import ceil_div


@dataclass(frozen=True)
class Extent:
    """A run of changed granules of one kind. Offsets and lengths are bytes."""

    start: int
    length: int
    kind: ChangeKind


@dataclass(frozen=True)
class Inspection:
    """What changed.

    Attributes:
        summary: counts and bytes by kind.
        stats: how it was found.
        longest: the longest extents, longest first.
        cells: the disk in equal ranges: changed bytes in each, by kind, shape (kinds, cells).
        cell_size: bytes a cell.
    """

    summary: Summary
    stats: DeltaStats
    longest: tuple[Extent, ...]
    cells: npt.NDArray[np.int64]
    cell_size: int


def inspect_delta(
    delta: ChangeSource,
    *,
    cells: int = 1024,
    longest: int = 10,
    each: Callable[[Extent], None] | None = None,
    progress: Progress | None = None,
) -> Inspection:
    """Go through a delta and sum it up.

    Args:
        delta: what to inspect.
        cells: into how many ranges the map divides the disk, at most.
        longest: how many of the longest extents to keep.
        each: called with every extent, in order.
        progress: called after each window.

    Raises:
        CorruptImageError: something that has to be read cannot be.
    """
    size = delta.size
    granules = ceil_div(size, delta.granularity)
    cell_size = max(1, ceil_div(granules, cells)) * delta.granularity
    grid = np.zeros((len(ChangeKind), max(1, ceil_div(size, cell_size))), np.int64)
    summary = Summary(size, delta.granularity)
    top: list[tuple[int, int, int]] = []
    for window in delta.windows():
        summary.add(window.changes)
        _fill(grid, window.changes, cell_size)
        rows = zip(*(window.changes[n].tolist() for n in ("start", "length", "kind")), strict=True)
        for start, length, kind in rows:
            if each is not None:
                each(Extent(start, length, ChangeKind(kind)))
            if len(top) < longest:
                heapq.heappush(top, (length, -start, kind))
            elif longest:
                heapq.heappushpop(top, (length, -start, kind))
        if progress is not None:
            progress(window.stop, size)
    found = tuple(Extent(-s, n, ChangeKind(k)) for n, s, k in sorted(top, reverse=True))
    return Inspection(summary, delta.stats, found, grid, cell_size)


def _fill(grid: npt.NDArray[np.int64], changes: Changes, cell_size: int) -> None:
    """Add changed bytes to the cells that they lie in."""
    start, length = changes["start"], changes["length"]
    first, last = start // cell_size, (start + length - 1) // cell_size
    counts = last - first + 1
    index = np.repeat(np.arange(changes.size), counts)
    cell = first[index] + np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    low = np.maximum(start[index], cell * cell_size)
    high = np.minimum((start + length)[index], (cell + 1) * cell_size)
    np.add.at(grid, (changes["kind"][index].astype(np.int64) - 1, cell), high - low)
