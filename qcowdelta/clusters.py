"""Changes as clusters of a new qcow2 image: placed, mapped, and given to be copied."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from .choosing import Bits, Chooser, Compress, changed_rows
from .copying import TASKS_AHEAD, Jobs, Span, encode
from .delta import ChangeWindow
from .extents import Extents, Kind, Mask, Offsets, cut_at, runs
from .layer import Source
from .output import AtomicOutput
from .qcow2.codec import payload_length
from .qcow2.geometry import ALL_ZERO, COPIED, SUBCLUSTERS, Entries, Geometry
from .qcow2.layout import CompressionType
from .qcow2.writer import Qcow2Writer
from .reader import Readable
from .threads import in_order
from .units import MIB

_COMPRESS_BATCH = MIB
_STRETCH = 1 << 14  # payloads, well below the highest refcount

Batch: TypeAlias = tuple[Offsets, list[bytes | None]]
"""Guest clusters and their payloads; None for one that is not smaller compressed."""


@dataclass
class _Entries:
    """L2 entries for some guest clusters, in any order of calls."""

    words: int
    clusters: list[Offsets] = field(default_factory=list)
    entries: list[Entries] = field(default_factory=list)

    def add(self, clusters: Offsets, entries: Entries) -> None:
        self.clusters.append(clusters)
        self.entries.append(entries.reshape(clusters.size, self.words))


class ClusterSink:
    """Turns windows of changes into clusters of an image.

    Args:
        target: what the changes lead to.
        output: where the clusters' content goes.
        writer: allocates and maps them.
        geometry, codec: the writer's.
        compress: which clusters are compressed.
        jobs: the threads that copy and compress.

    Attributes:
        copied: compressed clusters copied as they were, so far.
        compressed: clusters compressed anew.
    """

    def __init__(
        self,
        target: Readable,
        output: AtomicOutput,
        writer: Qcow2Writer,
        geometry: Geometry,
        codec: CompressionType,
        compress: Compress,
        jobs: Jobs,
    ) -> None:
        self._target, self._output, self._writer = target, output, writer
        self._geometry, self._codec = geometry, codec
        self._chooser = Chooser(target, geometry, codec, compress)
        self._jobs = jobs
        self._last: tuple[_Entries, Extents, Iterator[Batch]] | None = None
        self.copied = self.compressed = 0

    def add(self, window: ChangeWindow) -> None:
        """Allocate and write what changed in a window, and map what the one before had.

        So the threads have something to do while the last clusters of a window are compressed.
        """
        if not window.changes.size:
            return
        bits = Bits(window.changes, self._geometry)
        rows = changed_rows(window)
        verbatim, anew = self._chooser.choose(bits, rows)
        found = _Entries(self._geometry.entry_words)
        # Plain clusters first, so that they lie in one block and the payloads in another.
        self._add_plain(bits, rows, ~(verbatim | anew), found)
        self._add_verbatim(bits.clusters[verbatim], rows, found)
        batches = self._encode(bits.clusters[anew], rows)
        self.finish()
        self._last = found, rows, batches

    def finish(self) -> None:
        """Map the window that was added last."""
        if self._last is None:
            return
        found, rows, batches = self._last
        self._add_encoded(batches, rows, found)
        clusters = np.concatenate(found.clusters)
        order = np.argsort(clusters)
        self._writer.set_entries(clusters[order], np.concatenate(found.entries)[order])
        self._last = None

    def _add_plain(self, bits: Bits, rows: Extents, mask: Mask, found: _Entries) -> None:
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
        self._jobs.copy(self._target, cut, place, self._output)

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
        spans: list[Span] = []
        for i, j in _stretches(rows):
            source = self._target.sources[rows["source"][i]]
            bound[j - 1] = _exact_length(source, rows[j - 1])
            offsets = rows["host"][i:j] - rows["host"][i]
            origin = int(rows["host"][i])
            begin = self._writer.pack(bound[i:j].tolist(), offsets.tolist(), origin)
            host[i:j] = begin + offsets
            length = int((offsets + bound[i:j]).max())
            spans.append((source.file, int(rows["host"][i]), begin, length))
        self._jobs.copy_spans(spans, self._output)
        self.copied += rows.size
        self._add_compressed(rows["start"] >> self._geometry.cluster_bits, host, bound, found)

    def _add_compressed(
        self, clusters: Offsets, host: Offsets, length: Offsets, found: _Entries
    ) -> None:
        entries = self._geometry.compressed_entries(host, length)
        if self._geometry.extended_l2:
            entries = np.stack([entries, np.zeros_like(entries)], axis=1)
        found.add(clusters, entries)

    def _encode(self, clusters: Offsets, rows: Extents) -> Iterator[Batch]:
        """Begin to compress clusters in threads, a bounded number ahead."""
        step = max(1, _COMPRESS_BATCH >> self._geometry.cluster_bits)
        batches = (clusters[i : i + step] for i in range(0, clusters.size, step))

        def payloads(batch: Offsets) -> Batch:
            return batch, encode(self._target, rows, batch, self._geometry, self._codec)

        return in_order(self._jobs.encoders, payloads, batches, TASKS_AHEAD)

    def _add_encoded(self, batches: Iterator[Batch], rows: Extents, found: _Entries) -> None:
        """Write compressed clusters; one that did not become smaller is stored plain."""
        done, host, length = [], [], []
        plain = []
        for batch, payloads in batches:
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
            bits = Bits.of_clusters(np.array(plain, np.int64), self._geometry)
            self._add_plain(bits, rows, np.ones(len(plain), bool), found)


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
