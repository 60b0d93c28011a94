"""Which clusters changed, and how each is stored: plain, compressed as it was, or anew."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np

from .delta import ChangeKind, Changes, ChangeWindow
from .extents import Extents, Kind, Mask, Offsets, coalesce, cut_at, runs, spread
from .qcow2.geometry import Geometry
from .qcow2.layout import CompressionType
from .reader import Readable

Compress: TypeAlias = Literal["keep", "none", "zlib", "zstd"]


def choose_codec(target: Readable, compress: Compress) -> CompressionType:
    """Return what an image's compressed clusters are coded with."""
    if compress in ("zlib", "zstd"):
        return CompressionType[compress.upper()]
    return target.sources[0].codec if compress == "keep" else CompressionType.ZLIB


class Bits:
    """The changed clusters of a window, and in each which units became data or zeros.

    Without sub-clusters, a cluster has one unit. Bit i of ``data`` and ``zero`` is unit i.
    """

    def __init__(self, changes: Changes, geometry: Geometry) -> None:
        unit, per = geometry.unit, geometry.cluster_size // geometry.unit
        counts = -(-changes["length"] // unit)
        row, units = spread(changes["start"] // unit, counts)
        zeroed = (changes["kind"] == ChangeKind.ZEROED)[row]
        bit = np.uint64(1) << (units % per).astype(np.uint64)
        cluster = units // per
        begin, _ = runs(cluster)
        self.size = geometry.cluster_size
        self.clusters: Offsets = cluster[begin]
        self.data = np.bitwise_or.reduceat(np.where(zeroed, np.uint64(0), bit), begin)
        self.zero = np.bitwise_or.reduceat(np.where(zeroed, bit, np.uint64(0)), begin)
        self._per, self._unit = per, unit

    @classmethod
    def of_clusters(cls, clusters: Offsets, geometry: Geometry) -> Bits:
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

    def whole(self, disk: int) -> Mask:
        """Tell which clusters changed whole and have data, as far as the disk goes."""
        units = np.minimum(-(-(disk - self.start) // self._unit), self._per)
        full = (np.uint64(1) << units.astype(np.uint64)) - np.uint64(1)
        whole: Mask = ((self.data | self.zero) == full) & (self.data != 0)
        return whole


def changed_rows(window: ChangeWindow) -> Extents:
    """Return the target's extents in the changed ranges that are data, joined and apart."""
    changes = window.changes[window.changes["kind"] != ChangeKind.ZEROED]
    stops = changes["start"] + changes["length"]
    rows = cut_at(window.extents, np.concatenate([changes["start"], stops]))
    at = np.searchsorted(changes["start"], rows["start"], side="right") - 1
    inside = (at >= 0) & (rows["start"] < stops[at]) if changes.size else np.zeros(rows.size, bool)
    return coalesce(rows[inside])


class Chooser:
    """Chooses how changed clusters are stored.

    Args:
        target: what they are read from.
        geometry: their size.
        codec: what compressed ones are coded with.
        compress: which are compressed.
    """

    def __init__(
        self, target: Readable, geometry: Geometry, codec: CompressionType, compress: Compress
    ) -> None:
        self._target, self._geometry = target, geometry
        self._codec, self._compress = codec, compress

    def choose(self, bits: Bits, rows: Extents) -> tuple[Mask, Mask]:
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

    def _copyable(self, compressed: Extents) -> Offsets:
        """Return the guest clusters that are one compressed cluster of our size and codec."""
        size = self._geometry.cluster_size
        sources = self._target.sources
        fits = np.array([s.cluster_size == size and s.codec == self._codec for s in sources])
        stop = np.minimum(compressed["start"] + size, self._target.size)
        mask = fits[compressed["source"]] & (compressed["within"] == 0)
        mask &= (compressed["start"] & (size - 1)) == 0
        mask &= compressed["start"] + compressed["length"] == stop
        clusters: Offsets = compressed["start"][mask] >> self._geometry.cluster_bits
        return clusters
