"""A part of a disk as an address space of its own."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..extents import Offsets
from ..ranges import RangeReader
from ..reader import Readable

_GAP = 12 << 10
"""Ranges no further apart are read in one go: a call costs more than to copy so much."""
_NOTHING = memoryview(b"")


class Volume:
    """A range of a disk, whose offsets begin at 0. What lies beyond its end reads as zeros.

    Args:
        reader: reads the disk.
        path: what the image is called, for messages.
        start, length: the range, bytes, inside the disk.
    """

    def __init__(self, reader: RangeReader, path: str, start: int, length: int) -> None:
        self._reader = reader
        self.path = path
        self.start = start
        self.length = length

    @classmethod
    def of(cls, image: Readable, path: str) -> Volume:
        """Return all of an image's disk."""
        return cls(RangeReader(image), path, 0, image.size)

    def part(self, start: int, length: int) -> Volume:
        """Return a part of the volume, cut off at its end."""
        start = min(start, self.length)
        return Volume(self._reader, self.path, self.start + start, min(length, self.length - start))

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset`` on.

        Raises:
            CorruptImageError: the image cannot be read there.
        """
        inside = max(0, min(length, self.length - offset))
        buffer = bytearray(length)
        if inside:
            self._reader.read_into(self.start + offset, memoryview(buffer)[:inside])
        return bytes(buffer)

    def read_many(self, offsets: Offsets, length: int) -> npt.NDArray[np.uint8]:
        """Return ``length`` bytes from each of many offsets: an array of shape (count, length).

        Raises:
            CorruptImageError: the image cannot be read.
        """
        pieces = self.read_pieces(offsets, np.full(offsets.size, length, np.int64))
        return np.frombuffer(bytearray().join(pieces), np.uint8).reshape(-1, length)

    def read_pieces(self, offsets: Offsets, lengths: Offsets) -> list[memoryview]:
        """Return the content of many ranges, in few long reads: what lies between is read along.

        Raises:
            CorruptImageError: the image cannot be read.
        """
        found = [_NOTHING] * offsets.size
        stops = offsets + lengths
        inside = (offsets >= 0) & (offsets <= self.length - lengths)
        for row in np.flatnonzero(~inside).tolist():
            at, length = int(offsets[row]), int(lengths[row])
            found[row] = memoryview(self.read(at, length) if at >= 0 else bytes(length))
        rows = np.flatnonzero(inside)
        if not rows.size:
            return found
        rows = rows[np.argsort(offsets[rows], kind="stable")]
        begin, reach = offsets[rows], np.maximum.accumulate(stops[rows])
        first = np.flatnonzero(np.append(True, begin[1:] > reach[:-1] + _GAP))
        start, stop = begin[first], reach[np.append(first[1:], rows.size) - 1]
        data = self._reader.read(self.start + start, stop - start)
        places = np.cumsum(stop - start) - (stop - start) - start
        which = np.searchsorted(first, np.arange(rows.size), side="right") - 1
        place = places[which] + begin
        ends = place + lengths[rows]
        for row, i, j in zip(rows.tolist(), place.tolist(), ends.tolist(), strict=True):
            found[row] = data[i:j]
        return found
