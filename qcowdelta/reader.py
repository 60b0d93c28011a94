"""Reading guest content through extents."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from .extents import Extents, Kind, Offsets
from .layer import Source

# Compressed clusters whose payloads are no further apart than this are read in one go.
_PAYLOAD_GAP = 4096
_PAYLOADS_AT_ONCE = 1 << 21
# A small payload can be a large cluster.
_INFLATED_AT_ONCE = 1 << 21


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
        for number in set(extents["source"].tolist()):
            mine = extents["source"] == number
            self._read_clusters(self._image.sources[number], extents[mine], begins[mine], buffer)

    def _read_clusters(
        self, source: Source, extents: Extents, begins: Offsets, buffer: memoryview
    ) -> None:
        """Read compressed clusters of one source."""
        if source.kept is not None:
            columns = (extents["host"], extents["within"], extents["length"], begins)
            parts = list(zip(*(column.tolist() for column in columns), strict=True))
            missing = source.kept.read(id(source), parts, buffer)
            extents, begins = extents[missing], begins[missing]
        names = ("host", "bound", "start", "within", "length")
        rows = list(zip(*(extents[name].tolist() for name in names), begins.tolist(), strict=True))
        for i, j in payload_spans(extents):
            _inflate(source, rows[i:j], buffer)


def _inflate(source: Source, rows: list[tuple[int, ...]], buffer: memoryview) -> None:
    """Inflate clusters that follow each other; several rows may lie in the same one."""
    first, (last, bound, *_) = rows[0][0], rows[-1]
    payloads = memoryview(bytearray(last + bound - first))
    source.file.read_into(payloads, first)
    most = max(1, _INFLATED_AT_ONCE // source.cluster_size)
    inflated: list[tuple[int, bytes]] = []
    of, data = -1, b""
    for host, bound, start, within, length, begin in rows:
        if of != host:
            payload = payloads[host - first : host - first + bound]
            of, data = host, source.inflate(payload, host, start)
            inflated.append((host, data))
        buffer[begin : begin + length] = data[within : within + length]
        if len(inflated) >= most:
            _keep(source, inflated)
    _keep(source, inflated)


def _keep(source: Source, inflated: list[tuple[int, bytes]]) -> None:
    """Keep clusters if that is wanted, and empty the list."""
    if source.kept is not None and inflated:
        source.kept.keep(id(source), inflated)
    inflated.clear()


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
