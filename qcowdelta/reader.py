"""Reading guest content through extents."""

from __future__ import annotations

import threading
from collections import OrderedDict
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


class Inflated:
    """The content of compressed clusters that were used last; safe to be used by several threads.

    Args:
        room: how many bytes of them are kept; one cluster always is.
    """

    def __init__(self, room: int = 0) -> None:
        self._room = room
        self._kept: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, place: tuple[int, int]) -> bytes | None:
        """Return the cluster at a place (which source, the payload's offset), or None."""
        with self._lock:
            data = self._kept.get(place)
            if data is not None:
                self._kept.move_to_end(place)
            return data

    def put(self, place: tuple[int, int], data: bytes) -> None:
        """Keep a cluster."""
        with self._lock:
            if place not in self._kept:
                self._kept[place] = data
                self._room -= len(data)
            while self._room < 0 and len(self._kept) > 1:
                self._room += len(self._kept.popitem(last=False)[1])


class GuestReader:
    """Reads an image's guest content. Not for use by two threads at a time.

    Args:
        image: the image.
        inflated: the clusters of it that are inflated already, which others may use too.
    """

    def __init__(self, image: Readable, inflated: Inflated | None = None) -> None:
        self._image = image
        self._inflated = inflated or Inflated()

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
        columns = (extents["source"], extents["host"], extents["within"], extents["length"])
        rows = zip(*(column.tolist() for column in (*columns, begins)), strict=True)
        missing = []
        for k, (number, host, within, length, begin) in enumerate(rows):
            data = self._inflated.get((number, host))
            if data is None:
                missing.append(k)
            else:
                buffer[begin : begin + length] = data[within : within + length]
        if missing:
            self._inflate(extents[missing], begins[missing], buffer)

    def _inflate(self, extents: Extents, begins: Offsets, buffer: memoryview) -> None:
        """Inflate clusters; several extents in a row may lie in the same one."""
        names = ("host", "bound", "start", "within", "length")
        rows = list(zip(*(extents[name].tolist() for name in names), begins.tolist(), strict=True))
        data, of = b"", (-1, -1)
        for i, j in payload_spans(extents):
            number = int(extents["source"][i])
            source = self._image.sources[number]
            first = rows[i][0]
            payloads = memoryview(bytearray(rows[j - 1][0] + rows[j - 1][1] - first))
            source.file.read_into(payloads, first)
            for host, bound, start, within, length, begin in rows[i:j]:
                if of != (number, host):
                    of = number, host
                    payload = payloads[host - first : host - first + bound]
                    data = source.inflate(payload, host, start)
                    self._inflated.put(of, data)
                buffer[begin : begin + length] = data[within : within + length]


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
