"""Inspecting a delta: what changed, in figures, as a map and as the longest extents."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .delta import (
    ChangeKind,
    Changes,
    ChangeSource,
    ChangeWindow,
    DeltaStats,
    Progress,
    Summary,
)
from .extents import spread
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


class WatchedDelta:
    """A delta that is summed up while something else goes through its windows, once.

    Args:
        delta: what to inspect.
        base_size: the base's virtual size, bytes, where it is known.
        cells: into how many ranges the map divides the disk, at most.
        longest: how many of the longest extents to keep.
        each: called with every extent, in order.
        progress: called after each window.
    """

    def __init__(
        self,
        delta: ChangeSource,
        *,
        base_size: int | None = None,
        cells: int = 1024,
        longest: int = 10,
        each: Callable[[Extent], None] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._delta = delta
        self._each = each
        self._progress = progress
        self._longest = longest
        self._top: list[tuple[int, int, int]] = []
        granules = ceil_div(delta.size, delta.granularity)
        self._cell_size = max(1, ceil_div(granules, cells)) * delta.granularity
        count = max(1, ceil_div(delta.size, self._cell_size))
        self._grid = np.zeros((len(ChangeKind), count), np.int64)
        self._summary = Summary(delta.size, delta.granularity, base_size=base_size)

    @property
    def size(self) -> int:
        """The target's virtual size, bytes."""
        return self._delta.size

    @property
    def granularity(self) -> int:
        """What changes are rounded to, bytes."""
        return self._delta.granularity

    @property
    def stats(self) -> DeltaStats:
        """How it was found; complete when the windows are."""
        return self._delta.stats

    def windows(self) -> Iterator[ChangeWindow]:
        """Yield the delta's windows, each summed up when the next is asked for.

        Raises:
            CorruptImageError: something that has to be read cannot be.
        """
        for window in self._delta.windows():
            yield window
            self._add(window.changes)
            if self._progress is not None:
                self._progress(window.stop, self.size)

    def _add(self, changes: Changes) -> None:
        self._summary.add(changes)
        _fill(self._grid, changes, self._cell_size)
        rows = zip(*(changes[n].tolist() for n in ("start", "length", "kind")), strict=True)
        for start, length, kind in rows:
            if self._each is not None:
                self._each(Extent(start, length, ChangeKind(kind)))
            if len(self._top) < self._longest:
                heapq.heappush(self._top, (length, -start, kind))
            elif self._longest:
                heapq.heappushpop(self._top, (length, -start, kind))

    def inspection(self) -> Inspection:
        """Return what was summed up, when the windows have been gone through."""
        top = sorted(self._top, reverse=True)
        found = tuple(Extent(-start, length, ChangeKind(kind)) for length, start, kind in top)
        return Inspection(self._summary, self.stats, found, self._grid, self._cell_size)


def inspect_delta(
    delta: ChangeSource,
    *,
    base_size: int | None = None,
    cells: int = 1024,
    longest: int = 10,
    each: Callable[[Extent], None] | None = None,
    progress: Progress | None = None,
) -> Inspection:
    """Go through a delta and sum it up, as :class:`WatchedDelta` does.

    Raises:
        CorruptImageError: something that has to be read cannot be.
    """
    watched = WatchedDelta(
        delta, base_size=base_size, cells=cells, longest=longest, each=each, progress=progress
    )
    for _ in watched.windows():
        pass
    return watched.inspection()


def _fill(grid: npt.NDArray[np.int64], changes: Changes, cell_size: int) -> None:
    """Add changed bytes to the cells that they lie in."""
    start, length = changes["start"], changes["length"]
    first, last = start // cell_size, (start + length - 1) // cell_size
    index, cell = spread(first, last - first + 1)
    low = np.maximum(start[index], cell * cell_size)
    high = np.minimum((start + length)[index], (cell + 1) * cell_size)
    np.add.at(grid, (changes["kind"][index].astype(np.int64) - 1, cell), high - low)
