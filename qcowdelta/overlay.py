"""A delta as a native qcow2 overlay: backing file = base, clusters = what differs."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from .delta import ChangeKind, Changes, ChangeWindow, Delta, Progress, Summary
from .errors import CorruptImageError, OptionError
from .extents import Extents, Kind, Offsets, coalesce, cut_at, runs
from .identity import BaseIdentity
from .layer import Source
from .output import AtomicOutput
from .qcow2.codec import deflate, payload_length
from .qcow2.geometry import ALL_ZERO, COPIED, SUBCLUSTERS, Entries, Geometry
from .qcow2.layout import CompressionType, ExtensionType
from .qcow2.writer import Backing, Qcow2Writer
from .reader import GuestReader, Readable
from .units import MIB, usable_cpus

Compress: TypeAlias = Literal["keep", "none", "zlib", "zstd"]

_COPY_BATCH = 8 * MIB
_COMPRESS_BATCH = MIB
_TASKS_AHEAD = 32
_STRETCH = 1 << 14  # payloads, well below the highest refcount
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class OverlayOptions:
    """How an overlay is written.

    Attributes:
        backing: what it records as its backing file.
        cluster_size: bytes.
        subclusters: use extended L2 entries, so that changes cost a 32nd of a cluster each.
        compress: ``keep`` leaves compressed what is compressed in the target, and the rest
            plain; the others store all data plain or compressed.
    """

    backing: Backing
    cluster_size: int = 64 << 10
    subclusters: bool = False
    compress: Compress = "keep"

    @property
    def geometry(self) -> Geometry:
        """The geometry of the overlay.

        Raises:
            OptionError: the cluster size is not a power of two, 512 to 2 MiB.
        """
        bits = self.cluster_size.bit_length() - 1
        if not 9 <= bits <= 21 or self.cluster_size != 1 << bits:
            raise OptionError(
                f"a cluster size of {self.cluster_size} is not a power of 2, 512 to 2 MiB"
            )
        if self.subclusters and bits < 14:
            raise OptionError("sub-clusters need clusters of 16 KiB or more")
        return Geometry(bits, self.subclusters)


@dataclass(frozen=True)
class OverlayReport:
    """What was written.

    Attributes:
        summary: the delta in figures.
        file_size: the overlay's length, bytes.
        copied_clusters: compressed clusters copied as they were.
        compressed_clusters: clusters compressed anew.
    """

    summary: Summary
    file_size: int
    copied_clusters: int
    compressed_clusters: int


def write_overlay(
    delta: Delta,
    output: AtomicOutput,
    options: OverlayOptions,
    identity: BaseIdentity,
    progress: Progress | None = None,
) -> OverlayReport:
    """Write a delta as an overlay. The output's owner decides when it gets its name.

    Args:
        delta: what to write; its granularity must be the overlay's cluster or sub-cluster.
        output: where to.
        options: how.
        identity: what the base is, recorded in the overlay.
        progress: called after each window.

    Raises:
        OptionError: options do not go together, or not with the disk's size.
        CorruptImageError: content that has to be read cannot be.
        OSError: reading or writing failed.
    """
    geometry = options.geometry
    if delta.granularity != geometry.unit:
        raise OptionError(
            f"a delta in steps of {delta.granularity} bytes does not make clusters of "
            f"{geometry.unit}"
        )
    codec = _codec(delta.target, options.compress)
    writer = Qcow2Writer(output, delta.target.size, geometry, codec, options.backing)
    summary = Summary(delta.target.size, delta.granularity)
    with _Jobs() as jobs:
        clusters = _Clusters(delta.target, output, writer, geometry, codec, options.compress, jobs)
        for window in delta.windows():
            summary.add(window.changes)
            clusters.add(window)
            if progress is not None:
                progress(window.stop, delta.target.size)
    writer.add_extension(ExtensionType.DELTA, identity.build(summary))
    size = writer.finish()
    os.ftruncate(output.fd, size)
    return OverlayReport(summary, size, clusters.copied, clusters.compressed)


def _codec(target: Readable, compress: Compress) -> CompressionType:
    if compress in ("zlib", "zstd"):
        return CompressionType[compress.upper()]
    return target.sources[0].codec if compress == "keep" else CompressionType.ZLIB


class _Jobs:
    """Work handed to threads, bounded in number; the first error comes out here.

    One thread writes: two would only wait for each other on the output's lock in the kernel.
    """

    def __init__(self) -> None:
        self.encoders = ThreadPoolExecutor(usable_cpus(), "qcowdelta-encode")
        self._writer = ThreadPoolExecutor(1, "qcowdelta-write")
        self._pending: deque[Future[None]] = deque()

    def __enter__(self) -> _Jobs:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            while self._pending and kind is None:
                self._pending.popleft().result()
        finally:
            for pool in (self.encoders, self._writer):
                pool.shutdown(cancel_futures=True)

    def write(self, function: Callable[..., None], *args: object) -> None:
        """Have the writing thread call a function."""
        self._pending.append(self._writer.submit(function, *args))
        while len(self._pending) > _TASKS_AHEAD:
            self._pending.popleft().result()


@dataclass
class _Entries:
    """L2 entries for some guest clusters, in any order of calls."""

    words: int
    clusters: list[Offsets] = field(default_factory=list)
    entries: list[Entries] = field(default_factory=list)

    def add(self, clusters: Offsets, entries: Entries) -> None:
        self.clusters.append(clusters)
        self.entries.append(entries.reshape(clusters.size, self.words))


class _Clusters:
    """Turns windows of changes into clusters of the overlay."""

    def __init__(
        self,
        target: Readable,
        output: AtomicOutput,
        writer: Qcow2Writer,
        geometry: Geometry,
        codec: CompressionType,
        compress: Compress,
        jobs: _Jobs,
    ) -> None:
        self._target, self._output, self._writer = target, output, writer
        self._geometry, self._codec, self._compress = geometry, codec, compress
        self._jobs = jobs
        self.copied = self.compressed = 0

    def add(self, window: ChangeWindow) -> None:
        """Allocate, map and write what changed in a window."""
        if not window.changes.size:
            return
        bits = _Bits(window.changes, self._geometry)
        rows = _changed_rows(window)
        verbatim, encode = self._choose(bits, rows)
        found = _Entries(self._geometry.entry_words)
        # Plain clusters first, so that they lie in one block and the payloads in another.
        self._add_plain(bits, rows, ~(verbatim | encode), found)
        self._add_verbatim(bits.clusters[verbatim], rows, found)
        self._add_encoded(bits.clusters[encode], rows, found)
        clusters = np.concatenate(found.clusters)
        order = np.argsort(clusters)
        self._writer.set_entries(clusters[order], np.concatenate(found.entries)[order])

    def _choose(
        self, bits: _Bits, rows: Extents
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Tell which clusters are copied compressed as they are, and which compressed anew."""
        none = np.zeros(bits.clusters.size, bool)
        compressed = rows[rows["kind"] == Kind.COMPRESSED]
        if self._compress == "none" or (self._compress == "keep" and not compressed.size):
            return none, none
        whole = bits.whole(self._target.size)
        if self._compress == "keep":
            first = np.searchsorted(compressed["start"], bits.start, side="left")
            last = np.searchsorted(compressed["start"], bits.start + bits.size, side="left")
            before = np.maximum(first - 1, 0)
            reaches = compressed["start"][before] + compressed["length"][before] > bits.start
            wanted = whole & ((last > first) | (reaches & (first > 0)))
        else:
            wanted = whole
        verbatim = whole & np.isin(bits.clusters, self._copyable(compressed))
        return verbatim, wanted & ~verbatim

    def _copyable(self, compressed: Extents) -> npt.NDArray[np.int64]:
        """Return the guest clusters that are one compressed cluster of our size and codec."""
        size = self._geometry.cluster_size
        sources = self._target.sources
        fits = np.array([s.cluster_size == size and s.codec == self._codec for s in sources])
        stop = np.minimum(compressed["start"] + size, self._target.size)
        mask = fits[compressed["source"]] & (compressed["within"] == 0)
        mask &= (compressed["start"] & (size - 1)) == 0
        mask &= compressed["start"] + compressed["length"] == stop
        clusters: npt.NDArray[np.int64] = compressed["start"][mask] >> self._geometry.cluster_bits
        return clusters

    def _add_plain(
        self, bits: _Bits, rows: Extents, mask: npt.NDArray[np.bool_], found: _Entries
    ) -> None:
        clusters, data, zero = bits.clusters[mask], bits.data[mask], bits.zero[mask]
        placed = data != 0
        count = int(placed.sum())
        size = self._geometry.cluster_size
        begin = self._writer.allocate(count) if count else 0
        host = np.zeros(clusters.size, np.int64)
        host[placed] = begin + np.arange(count) * size
        entries = np.where(placed, host.astype(np.uint64) | np.uint64(COPIED), np.uint64(0))
        if self._geometry.extended_l2:
            bitmap = data | (zero << np.uint64(SUBCLUSTERS))
            found.add(clusters, np.stack([entries, bitmap], axis=1))
        else:
            found.add(clusters, np.where(zero != 0, np.uint64(ALL_ZERO), entries))
        if count:
            self._copy_plain(rows, clusters[placed], host[placed])

    def _copy_plain(self, rows: Extents, clusters: Offsets, host: Offsets) -> None:
        """Copy what lies in these clusters; zeros are left as holes."""
        first, counts = runs(clusters - np.arange(clusters.size))
        start = clusters[first] << self._geometry.cluster_bits
        stop = start + (counts << self._geometry.cluster_bits)
        rows = rows[rows["kind"] != Kind.ZERO]
        cut = cut_at(rows, np.concatenate([start, stop]))
        run = np.searchsorted(start, cut["start"], side="right") - 1
        inside = (run >= 0) & (cut["start"] < stop[run])
        cut, run = cut[inside], run[inside]
        place = host[first][run] + cut["start"] - start[run]
        for i, j in _by_bytes(cut["length"], _COPY_BATCH):
            self._jobs.write(_copy_rows, self._target, cut[i:j], place[i:j], self._output)

    def _add_verbatim(self, clusters: Offsets, rows: Extents, found: _Entries) -> None:
        """Copy compressed clusters as they are, in stretches that follow each other in NEW."""
        if not clusters.size:
            return
        mask = (rows["kind"] == Kind.COMPRESSED) & np.isin(
            rows["start"], clusters << self._geometry.cluster_bits
        )
        rows = rows[mask]
        host = np.zeros(rows.size, np.int64)
        bound = rows["bound"].astype(np.int64)
        spans: list[tuple[Source, int, int, int]] = []
        for i, j in _stretches(rows):
            source = self._target.sources[rows["source"][i]]
            bound[j - 1] = _exact_length(source, rows[j - 1])
            offsets = rows["host"][i:j] - rows["host"][i]
            begin = self._writer.pack(bound[i:j].tolist(), offsets.tolist())
            host[i:j] = begin + offsets
            length = int((offsets + bound[i:j]).max())
            spans.append((source, int(rows["host"][i]), begin, length))
        for first, last in _by_bytes(np.array([length for *_, length in spans]), _COPY_BATCH):
            self._jobs.write(_copy_spans, spans[first:last], self._output)
        self.copied += rows.size
        self._add_compressed(rows["start"] >> self._geometry.cluster_bits, host, bound, found)

    def _add_compressed(
        self, clusters: Offsets, host: Offsets, length: Offsets, found: _Entries
    ) -> None:
        entries = self._geometry.compressed_entries(host, length)
        if self._geometry.extended_l2:
            entries = np.stack([entries, np.zeros_like(entries)], axis=1)
        found.add(clusters, entries)

    def _add_encoded(self, clusters: Offsets, rows: Extents, found: _Entries) -> None:
        """Compress clusters; one that does not become smaller is stored plain."""
        if not clusters.size:
            return
        done, host, length = [], [], []
        plain = []
        for batch, payloads in self._payloads(clusters, rows):
            for cluster, payload in zip(batch.tolist(), payloads, strict=True):
                if payload is None:
                    plain.append(cluster)
                    continue
                done.append(cluster)
                host.append(self._writer.pack([len(payload)]))
                length.append(len(payload))
                self._output.write_at(payload, host[-1])
        self.compressed += len(done)
        arrays = [np.array(column, np.int64) for column in (done, host, length)]
        self._add_compressed(arrays[0], arrays[1], arrays[2], found)
        if plain:
            bits = _Bits.of_clusters(np.array(plain, np.int64), self._geometry)
            self._add_plain(bits, rows, np.ones(len(plain), bool), found)

    def _payloads(
        self, clusters: Offsets, rows: Extents
    ) -> Iterator[tuple[Offsets, list[bytes | None]]]:
        """Compress clusters in threads, a bounded number ahead, and yield them in order."""
        step = max(1, _COMPRESS_BATCH >> self._geometry.cluster_bits)
        pending: deque[tuple[Offsets, Future[list[bytes | None]]]] = deque()
        for i in range(0, clusters.size, step):
            batch = clusters[i : i + step]
            job = self._jobs.encoders.submit(
                _encode, self._target, rows, batch, self._geometry, self._codec
            )
            pending.append((batch, job))
            if len(pending) > _TASKS_AHEAD:
                first, oldest = pending.popleft()
                yield first, oldest.result()
        for batch, job in pending:
            yield batch, job.result()


class _Bits:
    """The changed clusters of a window, and in each which units became data or zeros.

    Without sub-clusters, a cluster has one unit. Bit i of ``data`` and ``zero`` is unit i.
    """

    def __init__(self, changes: Changes, geometry: Geometry) -> None:
        unit, per = geometry.unit, geometry.cluster_size // geometry.unit
        counts = -(-changes["length"] // unit)
        first = np.cumsum(counts) - counts
        units = np.repeat(changes["start"] // unit - first, counts) + np.arange(counts.sum())
        zeroed = np.repeat(changes["kind"] == ChangeKind.ZEROED, counts)
        bit = np.uint64(1) << (units % per).astype(np.uint64)
        cluster = units // per
        begin, _ = runs(cluster)
        self.size = geometry.cluster_size
        self.clusters: Offsets = cluster[begin]
        self.data = np.bitwise_or.reduceat(np.where(zeroed, np.uint64(0), bit), begin)
        self.zero = np.bitwise_or.reduceat(np.where(zeroed, bit, np.uint64(0)), begin)
        self._per, self._unit = per, unit

    @classmethod
    def of_clusters(cls, clusters: Offsets, geometry: Geometry) -> _Bits:
        """Return whole clusters of data."""
        changes = np.zeros(clusters.size, [("start", "i8"), ("length", "i8"), ("kind", "u1")])
        changes["start"] = clusters << geometry.cluster_bits
        changes["length"] = geometry.cluster_size
        changes["kind"] = ChangeKind.MODIFIED
        return cls(changes, geometry)

    @property
    def start(self) -> Offsets:
        """Where each cluster begins, guest offset."""
        return self.clusters * self.size

    def whole(self, disk: int) -> npt.NDArray[np.bool_]:
        """Tell which clusters changed whole and have data, as far as the disk goes."""
        units = np.minimum(-(-(disk - self.start) // self._unit), self._per)
        full = (np.uint64(1) << units.astype(np.uint64)) - np.uint64(1)
        whole: npt.NDArray[np.bool_] = ((self.data | self.zero) == full) & (self.data != 0)
        return whole


def _changed_rows(window: ChangeWindow) -> Extents:
    """Return the target's extents in the changed ranges that are data, joined and apart."""
    changes = window.changes[window.changes["kind"] != ChangeKind.ZEROED]
    stops = changes["start"] + changes["length"]
    rows = cut_at(window.extents, np.concatenate([changes["start"], stops]))
    at = np.searchsorted(changes["start"], rows["start"], side="right") - 1
    inside = (at >= 0) & (rows["start"] < stops[at]) if changes.size else np.zeros(rows.size, bool)
    return coalesce(rows[inside])


def _by_bytes(lengths: Offsets, limit: int) -> list[tuple[int, int]]:
    """Group rows, in order, so that each group's bytes are about the limit."""
    if not lengths.size:
        return []
    first, counts = runs((np.cumsum(lengths) - lengths) // limit)
    return list(zip(first.tolist(), (first + counts).tolist(), strict=True))


def _stretches(rows: Extents) -> list[tuple[int, int]]:
    """Group compressed clusters whose payloads, taken to their bounds, touch on the host.

    What is copied from a stretch keeps all distances, so every payload in it stays whole even
    where its real length is not known.
    """
    host, stop = rows["host"], rows["host"] + rows["bound"]
    touch = (host[1:] > host[:-1]) & (host[1:] <= stop[:-1])
    touch &= (rows["source"][1:] == rows["source"][:-1]) & (stop[1:] >= stop[:-1])
    first = np.flatnonzero(np.append(True, ~touch)).tolist()
    return [
        (k, min(k + _STRETCH, j))
        for i, j in zip(first, [*first[1:], rows.size], strict=True)
        for k in range(i, j, _STRETCH)
    ]


def _exact_length(source: Source, row: np.void) -> int:
    """Return how long a payload is, or its bound where that cannot be told."""
    bound = int(row["bound"])
    payload = memoryview(bytearray(bound))
    source.file.read_into(payload, int(row["host"]))
    return payload_length(source.codec, payload, source.cluster_size) or bound


def _encode(
    target: Readable, rows: Extents, clusters: Offsets, geometry: Geometry, codec: CompressionType
) -> list[bytes | None]:
    """Compress clusters that changed whole; None for each that does not become smaller."""
    size = geometry.cluster_size
    start = clusters << geometry.cluster_bits
    rows = cut_at(rows, np.concatenate([start, start + size]))
    rows = rows[np.isin(rows["start"] >> geometry.cluster_bits, clusters)]
    # Rows are what is data: zero sub-clusters, and what lies beyond the disk's end, stay zeros.
    buffer = bytearray(clusters.size * size)
    number = np.searchsorted(clusters, rows["start"] >> geometry.cluster_bits)
    places = number * size + (rows["start"] & (size - 1))
    view = memoryview(buffer)
    GuestReader(target).read_extents(rows, view, places)
    return [deflate(codec, view[i : i + size]) for i in range(0, len(buffer), size)]


def _copy_rows(target: Readable, rows: Extents, place: Offsets, output: AtomicOutput) -> None:
    """Write the content of extents to the given offsets of the output."""
    data = rows["kind"] == Kind.DATA
    begin, end = place.min(), (place + rows["length"]).max()
    for row, offset in zip(rows[data], place[data].tolist(), strict=True):
        source = target.sources[row["source"]]
        _copy_range(source, int(row["host"]), offset, int(row["length"]), output)
    rest, place = rows[~data], place[~data]
    reader = GuestReader(target)
    for i, j in _by_bytes(rest["length"], _COMPRESS_BATCH):
        buffer = memoryview(bytearray(int(rest["length"][i:j].sum())))
        reader.read_extents(rest[i:j], buffer)
        position = 0
        for length, offset in zip(rest["length"][i:j].tolist(), place[i:j].tolist(), strict=True):
            output.write_at(buffer[position : position + length], offset)
            position += length
    output.start_writeback(int(begin), int(end - begin))


def _copy_spans(spans: list[tuple[Source, int, int, int]], output: AtomicOutput) -> None:
    """Copy spans of host files: (source, offset there, offset in the output, length)."""
    for source, begin, place, length in spans:
        _copy_range(source, begin, place, length, output)
    first, (_, _, last, length) = spans[0][2], spans[-1]
    output.start_writeback(first, last + length - first)


def _copy_range(source: Source, begin: int, place: int, length: int, output: AtomicOutput) -> None:
    """Copy bytes of a host file; in the kernel where it can, which shares blocks where it can."""
    file = source.file
    length = min(length, file.size - begin)  # the file's last cluster may be short: zeros
    done = 0
    while done < length:
        try:
            count = os.copy_file_range(
                file.fileno(), output.fd, length - done, begin + done, place + done
            )
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise
            # Not between these files, or an error of one of them: copying tells which.
            count = _copy_buffer(source, begin + done, place + done, length - done, output)
        if not count:
            raise CorruptImageError(
                "became shorter while it was read", path=file.path, offset=begin + done
            )
        done += count


def _copy_buffer(source: Source, begin: int, place: int, length: int, output: AtomicOutput) -> int:
    buffer = memoryview(bytearray(min(length, MIB)))
    source.file.read_into(buffer, begin)
    output.write_at(buffer, place)
    return len(buffer)
