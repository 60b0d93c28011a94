"""A part of a disk as an address space of its own."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..extents import Offsets
from ..ranges import RangeReader
from ..reader import Readable


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
            CorruptImageError: the image cannot be read there.
        """
        out = np.zeros((offsets.size, length), np.uint8)
        inside = (offsets >= 0) & (offsets <= self.length - length)
        if inside.any():
            rows = np.flatnonzero(inside)
            rows = rows[np.argsort(offsets[rows], kind="stable")]
            data = self._reader.read(
                self.start + offsets[rows], np.full(rows.size, length, np.int64)
            )
            out[rows] = np.frombuffer(data, np.uint8).reshape(-1, length)
        for row in np.flatnonzero(~inside & (offsets >= 0) & (offsets < self.length)).tolist():
            out[row] = np.frombuffer(self.read(int(offsets[row]), length), np.uint8)
        return out

    def read_ranges(self, offsets: Offsets, lengths: Offsets) -> memoryview:
        """Return the content of ranges, one behind the other.

        Raises:
            CorruptImageError: the image cannot be read.
        """
        if not offsets.size or int((offsets + lengths).max()) <= self.length:
            return self._reader.read(self.start + offsets, lengths)
        pairs = zip(offsets.tolist(), lengths.tolist(), strict=True)
        return memoryview(b"".join(self.read(at, length) for at, length in pairs))
