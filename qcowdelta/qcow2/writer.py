"""Writing a qcow2 image front to back: header, L1, then data and L2 tables as they come.

Refcounts are known only when everything else has its place, so they come last, and the header
after them. The image is version 3, with 16-bit refcounts.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..errors import OptionError
from ..units import ceil_div
from . import layout
from .geometry import COMPRESSED_SECTOR, COPIED, Entries, Geometry
from .header import (
    MAX_BACKING_FORMAT,
    MAX_BACKING_NAME,
    MAX_L1_BYTES,
    MAX_REFCOUNT_TABLE_BYTES,
    MIN_EXTENDED_L2_BITS,
)
from .layout import CompressionType, ExtensionType, Incompatible

_HEADER_LENGTH = 112
_REFCOUNT_ORDER = 4
_MAX_REFCOUNT = 0xFFFF
_FEATURES = (
    (0, 0, b"dirty bit"),
    (0, 1, b"corrupt bit"),
    (0, 2, b"external data file"),
    (0, 3, b"compression type"),
    (0, 4, b"extended L2 entries"),
    (1, 0, b"lazy refcounts"),
    (2, 0, b"bitmaps"),
    (2, 1, b"raw external data"),
)


class Output(Protocol):
    """Where an image is written to."""

    def write_at(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of ``data`` at ``offset``."""


@dataclass(frozen=True)
class Backing:
    """What an overlay records of its backing file."""

    name: bytes
    format: str


class Qcow2Writer:
    """Allocates host clusters, and writes the metadata of a new image.

    Guest clusters must be set in ascending order. What the clusters hold is written by the
    caller, to the offsets that are allocated here.

    Args:
        output: where to write.
        size: the virtual size, bytes.
        geometry: cluster size and kind of L2 entries.
        codec: what compressed clusters are coded with.
        backing: the backing file, or None.

    Raises:
        OptionError: the disk is too large for the cluster size, or a name too long for it.
    """

    def __init__(
        self,
        output: Output,
        size: int,
        geometry: Geometry,
        codec: CompressionType,
        backing: Backing | None,
    ) -> None:
        self._output, self._size, self._geometry = output, size, geometry
        self._codec, self._backing = codec, backing
        self._extensions: list[tuple[int, bytes]] = []
        self._check()
        self._l1 = np.zeros(geometry.l1_entries(size), np.uint64)
        self._table = np.zeros((geometry.l2_entries, geometry.entry_words), np.uint64)
        self._table_index = -1
        self._shared: list[tuple[int, array[int]]] = []
        self._packing = False
        self._end = geometry.cluster_size
        self._l1_offset = self.allocate(geometry.clusters(self._l1.nbytes))

    def _check(self) -> None:
        geometry, backing = self._geometry, self._backing
        if geometry.extended_l2 and geometry.cluster_bits < MIN_EXTENDED_L2_BITS:
            raise OptionError("sub-clusters need clusters of 16 KiB or more")
        if geometry.l1_entries(self._size) * 8 > MAX_L1_BYTES:
            raise OptionError(
                f"clusters of {geometry.cluster_size} bytes are too small for a disk of "
                f"{self._size} bytes; give a larger --cluster-size"
            )
        if backing and len(backing.name) > MAX_BACKING_NAME:
            raise OptionError(
                f"the backing file's name of {len(backing.name)} bytes is above {MAX_BACKING_NAME}"
            )
        if backing and len(backing.format) > MAX_BACKING_FORMAT:
            raise OptionError(f"the backing format {backing.format!r} is too long")

    @property
    def end(self) -> int:
        """Where the file ends so far, bytes."""
        return self._end

    def add_extension(self, kind: int, data: bytes) -> None:
        """Add a header extension."""
        self._extensions.append((kind, data))

    def allocate(self, clusters: int) -> int:
        """Return the host offset of that many new clusters in a row."""
        self._align()
        offset = self._end
        self._end += clusters << self._geometry.cluster_bits
        return offset

    def _align(self) -> None:
        if self._packing:
            self._end = self._geometry.clusters(self._end) << self._geometry.cluster_bits
            self._packing = False

    def pack(
        self, lengths: Sequence[int], offsets: Sequence[int] = (0,), origin: int | None = None
    ) -> int:
        """Return the host offset of new compressed payloads, packed byte by byte.

        Args:
            lengths: each payload's length, bytes.
            offsets: where each begins, counted from the first one's begin; payloads may overlap,
                as their bounds do.
            origin: where the first one began in another image, whose descriptors could express
                all of these: it begins as far into a sector where it might not fit otherwise.
        """
        bits = self._geometry.cluster_bits
        if not self._packing:
            self._packing = True
            self._shared.append((self._end >> bits, array("H")))
        first, counts = self._shared[-1]
        if self._end & ((1 << bits) - 1) and counts[-1] + len(lengths) > _MAX_REFCOUNT:
            self._end = self._geometry.clusters(self._end) << bits
        if origin is not None and not self._geometry.compressed_fits_anywhere(max(lengths)):
            self._end += (origin - self._end) % COMPRESSED_SECTOR
        start = self._end
        for length, offset in zip(lengths, offsets, strict=True):
            begin, stop = start + offset, start + offset + length
            self._end = max(self._end, stop)
            last = (stop - 1 >> bits) - first
            counts.extend([0] * (last + 1 - len(counts)))
            for cluster in range((begin >> bits) - first, last + 1):
                counts[cluster] += 1
        return start

    def set_entries(self, clusters: npt.NDArray[np.int64], entries: Entries) -> None:
        """Map guest clusters.

        Args:
            clusters: their indices, ascending, and above all that were set before.
            entries: the L2 entries, shape (n, words an entry).
        """
        if not clusters.size:
            return
        tables = clusters // self._geometry.l2_entries
        first = np.flatnonzero(np.append(True, tables[1:] != tables[:-1])).tolist()
        for i, j in zip(first, [*first[1:], clusters.size], strict=True):
            if self._table_index != tables[i]:
                self._flush_table()
                self._table_index = int(tables[i])
            self._table[clusters[i:j] % self._geometry.l2_entries] = entries[i:j]

    def _flush_table(self) -> None:
        if self._table_index < 0:
            return
        offset = self.allocate(1)
        self._output.write_at(_words(self._table), offset)
        self._l1[self._table_index] = offset | COPIED
        self._table[:] = 0

    def finish(self) -> int:
        """Write all that is left; return the file's length in bytes."""
        self._flush_table()
        self._align()
        self._output.write_at(_words(self._l1), self._l1_offset)
        table, clusters = self._write_refcounts()
        self._output.write_at(self._header(table, clusters), 0)
        return self._end

    def _write_refcounts(self) -> tuple[int, int]:
        """Write refcount blocks and table; return the table's offset and clusters."""
        geometry = self._geometry
        per_block = geometry.refcount_block_entries(_REFCOUNT_ORDER)
        used = self._end >> geometry.cluster_bits
        blocks = tables = 0
        while True:
            total = used + blocks + tables
            need = ceil_div(total, per_block), geometry.clusters(ceil_div(total, per_block) * 8)
            if need == (blocks, tables):
                break
            blocks, tables = need
        if tables * geometry.cluster_size > MAX_REFCOUNT_TABLE_BYTES:
            raise OptionError("the overlay is too large for its cluster size; give a larger one")
        offset = self.allocate(blocks)
        table_offset = self.allocate(tables)
        for block in range(blocks):
            counts = self._refcounts(block * per_block, per_block, total)
            self._output.write_at(
                counts.astype(">u2").tobytes(), offset + block * geometry.cluster_size
            )
        table = np.zeros(tables * geometry.cluster_size // 8, np.uint64)
        table[:blocks] = offset + np.arange(blocks, dtype=np.uint64) * geometry.cluster_size
        self._output.write_at(_words(table), table_offset)
        return table_offset, tables

    def _refcounts(self, first: int, count: int, total: int) -> npt.NDArray[np.int64]:
        """Return the refcounts of host clusters: 1, but where payloads share clusters."""
        counts = (np.arange(first, first + count) < total).astype(np.int64)
        for begin, shared in self._shared:
            low, high = max(begin, first), min(begin + len(shared), first + count)
            if low < high:
                counts[low - first : high - first] = shared[low - begin : high - begin]
        return counts

    def _header(self, refcount_table: int, refcount_clusters: int) -> bytes:
        incompatible = Incompatible(0)
        if self._codec is not CompressionType.ZLIB:
            incompatible |= Incompatible.COMPRESSION_TYPE
        if self._geometry.extended_l2:
            incompatible |= Incompatible.EXTENDED_L2
        extensions = self._build_extensions()
        name = self._backing.name if self._backing else b""
        header: bytes = layout.Header.build(
            {
                "version": 3,
                "backing_file_offset": _HEADER_LENGTH + len(extensions) if name else 0,
                "backing_file_size": len(name),
                "cluster_bits": self._geometry.cluster_bits,
                "size": self._size,
                "crypt_method": 0,
                "l1_size": self._l1.size,
                "l1_table_offset": self._l1_offset,
                "refcount_table_offset": refcount_table,
                "refcount_table_clusters": refcount_clusters,
                "nb_snapshots": 0,
                "snapshots_offset": 0,
            }
        ) + layout.HeaderV3.build(
            {
                "incompatible_features": int(incompatible),
                "compatible_features": 0,
                "autoclear_features": 0,
                "refcount_order": _REFCOUNT_ORDER,
                "header_length": _HEADER_LENGTH,
                "additional": {"compression_type": int(self._codec)},
            }
        )
        header += extensions + name
        if len(header) > self._geometry.cluster_size:
            raise OptionError(
                f"header and backing name take {len(header)} bytes, more than a cluster; give a "
                "shorter --backing-name or a larger --cluster-size"
            )
        return header.ljust(self._geometry.cluster_size, b"\0")

    def _build_extensions(self) -> bytes:
        extensions = list(self._extensions)
        if self._backing:
            extensions.insert(
                0, (ExtensionType.BACKING_FORMAT, self._backing.format.encode("ascii"))
            )
        if self._geometry.cluster_size >= 4096:  # it is only for people, and takes 392 bytes
            names = [{"type": t, "bit": b, "name": n.ljust(46, b"\0")} for t, b, n in _FEATURES]
            extensions.append((ExtensionType.FEATURE_NAMES, layout.FeatureNames.build(names)))
        extensions.append((ExtensionType.END, b""))
        return b"".join(
            layout.Extension.build({"type": int(kind), "length": len(data), "data": data})
            for kind, data in extensions
        )


def _words(table: Entries) -> bytes:
    words: bytes = layout.Words(table.size).build(table.reshape(-1))
    return words
