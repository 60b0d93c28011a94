"""Reading guest content through extents."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from .extents import Extents, Kind, Offsets
from .layer import Source

# Compressed clusters whose payloads are no further apart than this are read in one go.
_PAYLOAD_GAP = 4096
_PAYLOADS_AT_ONCE = 1 << 21


class Readable(Protocol):
    """What a reader needs to know of an image."""

    @property
    def size(self) -> int:
        """The virtual size, bytes."""

    @property
    def sources(self) -> tuple[Source, ...]:
        """The sources that extents refer to."""

    def extents(self, start: int, stop: int) -> Extents:
        """Return what ``[start, stop)`` is."""


class GuestReader:
    """Reads an image's guest content. Not for use by two threads at a time."""

    def __init__(self, image: Readable) -> None:
        self._image = image
        self._inflated: tuple[int, int, bytes] | None = None

    def read(self, start: int, length: int) -> bytes:
        """Return ``length`` bytes of guest content; beyond the end of the disk are zeros."""
        buffer = bytearray(length)
        self.read_into(start, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, start: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with guest content from ``start``.

        Raises:
            CorruptImageError: what should be there cannot be read.
        """
        stop = min(start + len(buffer), self._image.size)
        inside = max(0, stop - start)
        if inside:
            self.read_extents(self._image.extents(start, stop), buffer[:inside])
        if inside < len(buffer):
            buffer[inside:] = bytes(len(buffer) - inside)

    def read_extents(
        self, extents: Extents, buffer: memoryview, begins: Offsets | None = None
    ) -> None:
        """Read the content of extents, which need not be neighbours.

        Args:
            extents: what to read.
            buffer: where to.
            begins: where in the buffer each goes; by default one behind the other.
        """
        array = np.frombuffer(buffer, np.uint8)
        if begins is None:
            begins = np.cumsum(extents["length"]) - extents["length"]
        stops = begins + extents["length"]
        compressed = extents["kind"] == Kind.COMPRESSED
        columns = (extents["kind"], extents["source"], extents["host"], begins, stops)
        rows = zip(*(column[~compressed].tolist() for column in columns), strict=True)
        for kind, number, host, begin, stop in rows:
            if kind == Kind.DATA:
                self._image.sources[number].file.read_into(buffer[begin:stop], host)
            else:
                array[begin:stop] = 0
        if compressed.any():
            self._read_compressed(extents[compressed], begins[compressed], buffer)

    def _read_compressed(self, extents: Extents, begins: Offsets, buffer: memoryview) -> None:
        for i, j in payload_spans(extents):
            host = int(extents["host"][i])
            length = int(extents["host"][j - 1] + extents["bound"][j - 1]) - host
            payloads = memoryview(bytearray(length))
            source = self._image.sources[extents["source"][i]]
            source.file.read_into(payloads, host)
            for k in range(i, j):
                row = extents[k]
                data = self._inflate(source, row, payloads[int(row["host"]) - host :])
                begin, within, size = int(begins[k]), int(row["within"]), int(row["length"])
                buffer[begin : begin + size] = data[within : within + size]

    def _inflate(self, source: Source, row: np.void, payload: memoryview) -> bytes:
        """Inflate one cluster; several extents in a row may lie in the same one."""
        number, host = int(row["source"]), int(row["host"])
        if self._inflated is not None and self._inflated[:2] == (number, host):
            return self._inflated[2]
        data = source.inflate(payload[: int(row["bound"])], host, int(row["start"]))
        self._inflated = (number, host, data)
        return data


def payload_spans(extents: Extents) -> list[tuple[int, int]]:
    """Group compressed extents whose payloads follow each other closely on the host.

    Returns pairs (first, last + 1). Each group reads forward and is bounded in length.
    """
    if not extents.size:
        return []
    host = extents["host"]
    limit = host + extents["bound"]
    moves = host[1:] - host[:-1]
    near = (moves >= 0) & (host[1:] - limit[:-1] <= _PAYLOAD_GAP)
    near &= limit[1:] >= limit[:-1]
    near &= extents["source"][1:] == extents["source"][:-1]
    starts = np.flatnonzero(np.append(True, ~near)).tolist()
    spans = []
    for i, j in zip(starts, [*starts[1:], extents.size], strict=True):
        while i < j:
            stop = int(np.searchsorted(limit[i:j], host[i] + _PAYLOADS_AT_ONCE, side="right"))
            stop = max(i + stop, i + 1)
            spans.append((i, stop))
            i = stop
    return spans
