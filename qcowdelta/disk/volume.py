"""A part of a disk as an address space of its own."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..extents import Offsets
from ..ranges import RangeReader
from ..reader import Readable

_GAP = 12 << 10
"""Ranges no further apart are read in one go: a call costs more than to copy so much."""


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
        content, place = self._read_together(offsets, np.full(offsets.size, length, np.int64))
        if not content.size:
            content = np.zeros(length, np.uint8)
        # All stretches of that length, as a view; taking rows of it copies each piece in one go.
        found = np.lib.stride_tricks.sliding_window_view(content, length)[np.maximum(place, 0)]
        for row in np.flatnonzero(place < 0).tolist():
            found[row] = np.frombuffer(self._read_across(int(offsets[row]), length), np.uint8)
        return found

    def read_pieces(self, offsets: Offsets, lengths: Offsets) -> list[memoryview]:
        """Return the content of many ranges, in few long reads: what lies between is read along.

        Raises:
            CorruptImageError: the image cannot be read.
        """
        content, place = self._read_together(offsets, lengths)
        data = content.data
        found = [
            data[begin:stop]
            for begin, stop in zip(place.tolist(), (place + lengths).tolist(), strict=True)
        ]
        for row in np.flatnonzero(place < 0).tolist():
            found[row] = memoryview(self._read_across(int(offsets[row]), int(lengths[row])))
        return found

    def _read_across(self, offset: int, length: int) -> bytes:
        """Read what does not lie inside the volume as a whole; before it are zeros only."""
        return self.read(offset, length) if offset >= 0 else bytes(length)

    def _read_together(
        self, offsets: Offsets, lengths: Offsets
    ) -> tuple[npt.NDArray[np.uint8], Offsets]:
        """Read those of many ranges that lie inside the volume.

        Returns:
            What was read; and where in it each range begins, -1 for one that does not lie inside.
        """
        place = np.full(offsets.size, -1, np.int64)
        stops = offsets + lengths
        rows = np.flatnonzero((offsets >= 0) & (offsets <= self.length - lengths))
        if not rows.size:
            return np.empty(0, np.uint8), place
        rows = rows[np.argsort(offsets[rows], kind="stable")]
        begin, reach = offsets[rows], np.maximum.accumulate(stops[rows])
        new = np.append(True, begin[1:] > reach[:-1] + _GAP)
        first = np.flatnonzero(new)
        start, stop = begin[first], reach[np.append(first[1:], rows.size) - 1]
        data = self._reader.read(self.start + start, stop - start)
        moved = np.cumsum(stop - start) - (stop - start) - start
        place[rows] = begin + moved[np.cumsum(new) - 1]
        return np.frombuffer(data, np.uint8), place
