"""Reading many scattered ranges of an image at once."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np

from .extents import Extents, Kind, Offsets, clip, join, runs, spread, trim
from .layer import Source, keep_inflated
from .reader import GuestReader, Readable
from .units import MIB

_WINDOW = 64 * MIB
_WINDOWS = 64


class RangeReader:
    """Reads ranges, in a few calls for many; safe to be used by several threads.

    Scattered ranges would have their extents looked up and their clusters inflated again and
    again, so the extents of the windows that were asked for last, and the clusters, are kept.
    """

    def __init__(self, image: Readable) -> None:
        self._image = image
        self._kept: OrderedDict[int, tuple[Extents, Offsets]] = OrderedDict()
        self._lock = threading.Lock()
        keep_inflated(image.sources)

    @property
    def size(self) -> int:
        """The virtual size, bytes."""
        return self._image.size

    @property
    def sources(self) -> tuple[Source, ...]:
        """The sources that extents refer to."""
        return self._image.sources

    def extents(self, start: int, stop: int) -> Extents:
        """Return what ``[start, stop)`` is, as :meth:`.Image.extents` does."""
        parts = [self._window(number)[0] for number in range(start // _WINDOW, -(-stop // _WINDOW))]
        return clip(join(parts), start, stop)

    def _window(self, number: int) -> tuple[Extents, Offsets]:
        """Return a window's extents, and where they begin as an array to search in."""
        with self._lock:
            kept = self._kept.get(number)
            if kept is not None:
                self._kept.move_to_end(number)
                return kept
        start = number * _WINDOW
        rows = self._image.extents(start, min(start + _WINDOW, self._image.size))
        kept = rows, np.ascontiguousarray(rows["start"])
        with self._lock:
            self._kept[number] = kept
            while len(self._kept) > _WINDOWS:
                self._kept.popitem(last=False)
        return kept

    def read_into(self, start: int, buffer: memoryview) -> None:
        """Fill a buffer from ``start`` on; beyond the end of the disk are zeros."""
        GuestReader(self).read_into(start, buffer)

    def read(self, start: Offsets, length: Offsets) -> memoryview:
        """Return the content of ranges, as :meth:`read_ranges` reads it."""
        buffer = np.empty(int(length.sum()), np.uint8).data
        self.read_ranges(start, length, buffer)
        return buffer

    def read_ranges(self, start: Offsets, length: Offsets, buffer: memoryview) -> None:
        """Fill a buffer with ranges inside the disk, in any order, one behind the other.

        Raises:
            CorruptImageError: content cannot be read.
        """
        if start.size:
            rows, places = self._pieces(start, length)
            GuestReader(self).read_extents(rows, buffer, places)

    def _pieces(self, start: Offsets, length: Offsets) -> tuple[Extents, Offsets]:
        """Return what ranges consist of, in the disk's order, and where each piece belongs."""
        last = (start + length - 1) // _WINDOW
        row, window = spread(start // _WINDOW, last - start // _WINDOW + 1)
        begin = np.maximum(start[row], window * _WINDOW)
        stop = np.minimum(start[row] + length[row], (window + 1) * _WINDOW)
        places = (np.cumsum(length) - length)[row] + begin - start[row]
        order = np.argsort(begin, kind="stable")
        begin, stop, places, window = begin[order], stop[order], places[order], window[order]
        found, of = [], []
        for i, n in zip(*(column.tolist() for column in runs(window)), strict=True):
            rows, part = self._within(int(window[i]), begin[i : i + n], stop[i : i + n])
            found.append(rows)
            of.append(part + i)
        part = np.concatenate(of)
        rows = join(found)
        rows = trim(rows, begin[part], stop[part])
        places = places[part] + rows["start"] - begin[part]
        if (rows["kind"] == Kind.COMPRESSED).any():
            # Where ranges overlap, a cluster that both need is then inflated once.
            order = np.argsort(rows["start"], kind="stable")
            rows, places = rows[order], places[order]
        return rows, places

    def _within(self, window: int, begin: Offsets, stop: Offsets) -> tuple[Extents, Offsets]:
        """Return the extents of a window that ranges in it touch, and which range each is of."""
        rows, starts = self._window(window)
        first = np.searchsorted(starts, begin, side="right") - 1
        part, index = spread(first, np.searchsorted(starts, stop, side="left") - first)
        return rows[index], part
