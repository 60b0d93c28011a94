"""Reading many scattered ranges of an image at once."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np

from .extents import Extents, Offsets, clip, cut_at, runs
from .layer import Source
from .reader import GuestReader, Readable
from .units import MIB

_WINDOW = 64 * MIB
_WINDOWS = 64


class RangeReader:
    """Reads ranges, in a few calls for many; safe to be used by several threads.

    Scattered ranges would have their extents looked up again and again, so those of the windows
    that were asked for last are kept.
    """

    def __init__(self, image: Readable) -> None:
        self._image = image
        self._kept: OrderedDict[int, Extents] = OrderedDict()
        self._lock = threading.Lock()

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
        parts = [self._window(number) for number in range(start // _WINDOW, -(-stop // _WINDOW))]
        return clip(parts[0] if len(parts) == 1 else np.concatenate(parts), start, stop)

    def _window(self, number: int) -> Extents:
        with self._lock:
            rows = self._kept.get(number)
            if rows is not None:
                self._kept.move_to_end(number)
                return rows
        start = number * _WINDOW
        rows = self._image.extents(start, min(start + _WINDOW, self._image.size))
        with self._lock:
            self._kept[number] = rows
            while len(self._kept) > _WINDOWS:
                self._kept.popitem(last=False)
        return rows

    def read_into(self, start: int, buffer: memoryview) -> None:
        """Fill a buffer from ``start`` on; beyond the end of the disk are zeros."""
        GuestReader(self).read_into(start, buffer)

    def read(self, start: Offsets, length: Offsets) -> memoryview:
        """Read ranges inside the disk, in any order.

        Returns:
            Their content, one behind the other.

        Raises:
            CorruptImageError: content cannot be read.
        """
        if not start.size:
            return memoryview(b"")
        if (start[1:] >= (start + length)[:-1]).all():
            return self._read_apart(start, length)
        order = np.argsort(start, kind="stable")
        first, stop = start[order], (start + length)[order]
        reach = np.maximum.accumulate(stop)
        merged = np.flatnonzero(np.append(True, first[1:] > reach[:-1]))
        begin, end = first[merged], reach[np.append(merged[1:], first.size) - 1]
        content = self._read_apart(begin, end - begin)
        places = np.cumsum(end - begin) - (end - begin)
        row = np.searchsorted(begin, start, side="right") - 1
        pieces = (places[row] + start - begin[row]).tolist()
        ends = (places[row] + start - begin[row] + length).tolist()
        return memoryview(b"".join([content[i:j] for i, j in zip(pieces, ends, strict=True)]))

    def _read_apart(self, start: Offsets, length: Offsets) -> memoryview:
        """Read ranges that are sorted and apart."""
        buffer = memoryview(bytearray(int(length.sum())))
        begins = np.cumsum(length) - length
        groups, counts = runs(start // _WINDOW)
        reader = GuestReader(self)
        for i, n in zip(groups.tolist(), counts.tolist(), strict=True):
            j = i + n
            self._read_near(reader, start[i:j], length[i:j], begins[i:j], buffer)
        return buffer

    def _read_near(
        self,
        reader: GuestReader,
        start: Offsets,
        length: Offsets,
        begins: Offsets,
        buffer: memoryview,
    ) -> None:
        stop = start + length
        rows = self.extents(int(start[0]), int(stop[-1]))
        rows = cut_at(rows, np.concatenate([start, stop]))
        into = np.searchsorted(start, rows["start"], side="right") - 1
        inside = rows["start"] < stop[into]
        rows, into = rows[inside], into[inside]
        reader.read_extents(rows, buffer, begins[into] + rows["start"] - start[into])
