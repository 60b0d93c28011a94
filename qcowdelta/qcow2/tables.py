"""L1 and L2 tables: from entries in a file to extents of guest space.

Tables are read a window at a time and decoded as arrays; nothing loops over clusters.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CorruptImageError
from ..extents import EXTENT, Extents, Kind, Offsets, clip, coalesce
from ..hostfile import HostFile
from ..units import ceil_div
from . import layout
from .geometry import (
    ALL_SUBCLUSTERS,
    ALL_ZERO,
    COMPRESSED,
    COPIED,
    L1_RESERVED,
    L2_RESERVED,
    OFFSET_MASK,
    SUBCLUSTERS,
    Entries,
    Geometry,
)
from .header import Header
from .layout import Incompatible

_READ_AT_ONCE = 1 << 20
_ENTRIES_AT_ONCE = 1 << 16


def read_words(file: HostFile, offset: int, count: int, name: str) -> Entries:
    """Read ``count`` 64-bit words of a table.

    Raises:
        CorruptImageError: the table lies beyond the end of the file.
    """
    try:
        data = file.read(offset, count * 8)
    except CorruptImageError as error:
        raise CorruptImageError(
            f"{name} of {count * 8} bytes lies beyond the end of the file, {file.size:#x}",
            path=file.path,
            offset=offset,
            field=name,
        ) from error
    words: Entries = layout.parse(
        layout.Words(count), data, path=file.path, offset=offset, name=name
    )
    return words


def read_l1(file: HostFile, geometry: Geometry, offset: int, count: int) -> Offsets:
    """Read an L1 table: the host offset of each L2 table, 0 where there is none.

    Raises:
        CorruptImageError: reserved bits are set, an L2 table is unaligned, lies beyond the end of
            the file or over the header, or is used twice.
    """
    entries = read_words(file, offset, count, "L1 table")
    _refuse_where((entries & np.uint64(L1_RESERVED)) != 0, "reserved bits set", file, offset)
    tables = (entries & np.uint64(OFFSET_MASK)).astype(np.int64)
    used = tables != 0
    size = geometry.cluster_size
    _refuse_where(tables & (size - 1) != 0, "unaligned L2 table", file, offset)
    _refuse_where(tables > file.size - size, "L2 table beyond the end of the file", file, offset)
    for start, stop, name in ((0, size, "the header"), (offset, offset + count * 8, "the L1")):
        over = used & (tables < stop) & (tables + size > start)
        _refuse_where(over, f"L2 table lies over {name}", file, offset)
    where = np.flatnonzero(used)
    order = where[np.argsort(tables[where], kind="stable")]
    twice = np.zeros(tables.shape, bool)
    twice[order[1:]] = tables[order][1:] == tables[order][:-1]
    _refuse_where(twice, "L2 table used twice", file, offset)
    return tables


def _refuse_where(bad: npt.NDArray[Any], what: str, file: HostFile, table: int) -> None:
    if bad.any():
        index = int(np.argmax(bad))
        raise CorruptImageError(
            what, path=file.path, offset=table + index * 8, field=f"L1 entry {index}"
        )


class ClusterMap:
    """The guest-to-host map of one L1 table: of an image's active state, or of a snapshot.

    Args:
        file: the qcow2 file, which holds the tables.
        header: its header.
        l1_offset, l1_entries: where the L1 table lies, and how much of it is read.
        data: the external data file; None where there is none, or it is not opened.

    Raises:
        CorruptImageError: the L1 table is damaged, see :func:`read_l1`.
    """

    def __init__(
        self,
        file: HostFile,
        header: Header,
        l1_offset: int,
        l1_entries: int,
        data: HostFile | None = None,
    ) -> None:
        self._file = file
        self._data = data or file
        self._external = header.has(Incompatible.EXTERNAL_DATA_FILE)
        self._geometry = header.geometry
        self._version = header.version
        self._l1 = read_l1(file, header.geometry, l1_offset, l1_entries)
        self._mapped = np.flatnonzero(self._l1)

    @property
    def l1(self) -> Offsets:
        """The host offset of each L2 table, 0 where there is none."""
        return self._l1

    def next_mapped(self, start: int) -> int | None:
        """Return where the first L2 table's reach at or after ``start`` begins, or None."""
        reach = self._geometry.l2_reach
        at = np.searchsorted(self._mapped, start // reach)
        return None if at == self._mapped.size else max(start, int(self._mapped[at]) * reach)

    def entries(self, first: int, count: int) -> Entries:
        """Return the L2 entries of guest clusters, shape (count, words an entry).

        Where there is no L2 table, entries are 0.
        """
        words, per_table = self._geometry.entry_words, self._geometry.l2_entries
        out = np.zeros((count, words), np.uint64)
        tables = np.arange(first // per_table, ceil_div(first + count, per_table))
        low = np.maximum(tables * per_table, first)
        high = np.minimum((tables + 1) * per_table, first + count)
        hosts = self._l1[tables]
        keep = hosts != 0
        low, high = low[keep], high[keep]
        begin = hosts[keep] + (low % per_table) * words * 8
        length = (high - low) * words * 8
        for i, j in _contiguous(begin, length):
            total = int(length[i:j].sum())
            data = read_words(self._file, int(begin[i]), total // 8, "L2 table")
            place = low[i] - first
            # Tables that follow each other on the host need not do so in guest space.
            if low[j - 1] - low[i] == (high[i:j] - low[i:j])[:-1].sum():
                out[place : place + total // 8 // words] = data.reshape(-1, words)
            else:
                self._scatter(out, data.reshape(-1, words), low[i:j] - first, high[i:j] - first)
        return out

    def stretches(self, clusters: int) -> Iterator[tuple[int, Entries]]:
        """Yield the L2 entries of the first ``clusters`` guest clusters, a stretch at a time.

        Each comes with the index of its first cluster; what no L2 table maps is left out.
        """
        position = self.next_mapped(0)
        while position is not None and self._geometry.cluster_of(position) < clusters:
            first = self._geometry.cluster_of(position)
            count = min(_ENTRIES_AT_ONCE, clusters - first)
            yield first, self.entries(first, count)
            position = self.next_mapped(self._geometry.guest_of(first + count))

    @staticmethod
    def _scatter(out: Entries, data: Entries, low: Offsets, high: Offsets) -> None:
        position = 0
        for start, stop in zip(low.tolist(), high.tolist(), strict=True):
            out[start:stop] = data[position : position + stop - start]
            position += stop - start

    def extents(self, start: int, stop: int) -> Extents:
        """Return the extents of ``[start, stop)``, which need not be aligned.

        Raises:
            CorruptImageError: an entry is invalid, or points beyond the end of the file.
        """
        geometry = self._geometry
        first = geometry.cluster_of(start)
        count = geometry.clusters(stop) - first
        entries = self.entries(first, count)
        if not entries.any():
            from_entries = np.zeros(1, EXTENT)
            from_entries["start"] = geometry.guest_of(first)
            from_entries["length"] = count * geometry.cluster_size
        elif geometry.extended_l2:
            from_entries = self._extended(entries, first)
        else:
            from_entries = self._standard(entries[:, 0], first)
        extents = clip(from_entries, start, stop)
        self._check_end(extents)
        return extents

    def validate(self, entries: Entries, first: int) -> None:
        """Refuse invalid L2 entries of guest clusters from ``first`` on.

        Raises:
            CorruptImageError: one is; the message tells which.
        """
        if self._geometry.extended_l2:
            self._extended(entries, first)
        else:
            self._standard(entries[:, 0], first)

    def _standard(self, entries: Entries, first: int) -> Extents:
        geometry = self._geometry
        compressed = (entries & np.uint64(COMPRESSED)) != 0
        zero = ~compressed & ((entries & np.uint64(ALL_ZERO)) != 0)
        plain = (entries & np.uint64(OFFSET_MASK)).astype(np.int64)
        self._check_entries(entries, compressed, zero, plain, first)
        out = np.zeros(entries.size, EXTENT)
        out["kind"] = np.where(self._allocated(entries, plain), Kind.DATA, Kind.UNALLOCATED)
        out["kind"][zero] = Kind.ZERO
        out["start"] = geometry.guest_of(first) + np.arange(entries.size) * geometry.cluster_size
        out["length"] = geometry.cluster_size
        out["host"] = plain
        self._set_compressed(out, entries, compressed)
        return coalesce(out)

    def _allocated(self, entries: Entries, plain: Offsets) -> npt.NDArray[np.bool_]:
        """Tell which standard descriptors point at data; offset 0 can, in a data file."""
        allocated: npt.NDArray[np.bool_] = plain != 0
        if self._external:
            allocated |= (entries & np.uint64(COPIED)) != 0
        return allocated

    def _set_compressed(
        self, out: Extents, entries: Entries, compressed: npt.NDArray[np.bool_]
    ) -> None:
        if compressed.any():
            out["kind"][compressed] = Kind.COMPRESSED
            out["host"][compressed] = self._geometry.compressed_host(entries[compressed])
            out["bound"][compressed] = self._geometry.compressed_bound(entries[compressed])

    def _extended(self, entries: Entries, first: int) -> Extents:
        """Decode 16-byte entries: one extent a sub-cluster, then joined."""
        geometry = self._geometry
        words, bitmap = entries[:, 0], entries[:, 1]
        compressed = (words & np.uint64(COMPRESSED)) != 0
        plain = (words & np.uint64(OFFSET_MASK)).astype(np.int64)
        zero_flag = ~compressed & ((words & np.uint64(ALL_ZERO)) != 0)
        self._check_entries(words, compressed, zero_flag, plain, first)
        self._check_bitmaps(words, bitmap, compressed, plain, first)
        shifts = np.arange(SUBCLUSTERS, dtype=np.uint64)
        data = (bitmap[:, None] >> shifts) & np.uint64(1) != 0
        zero = (bitmap[:, None] >> (shifts + np.uint64(SUBCLUSTERS))) & np.uint64(1) != 0
        out = np.zeros((words.size, SUBCLUSTERS), EXTENT)
        out["kind"] = np.where(data, Kind.DATA, np.where(zero, Kind.ZERO, Kind.UNALLOCATED))
        inside = np.arange(SUBCLUSTERS) * geometry.unit
        out["host"] = plain[:, None] + inside
        out["length"] = geometry.unit
        guest = geometry.guest_of(first) + np.arange(words.size) * geometry.cluster_size
        out["start"] = guest[:, None] + inside
        if compressed.any():
            rows = out[compressed]
            rows["kind"] = Kind.COMPRESSED
            rows["host"] = geometry.compressed_host(words[compressed])[:, None]
            rows["bound"] = geometry.compressed_bound(words[compressed])[:, None]
            rows["within"] = inside
            out[compressed] = rows
        return coalesce(out.reshape(-1))

    def _check_entries(
        self,
        entries: Entries,
        compressed: npt.NDArray[np.bool_],
        zero: npt.NDArray[np.bool_],
        plain: Offsets,
        first: int,
    ) -> None:
        """Refuse what QEMU answers with an I/O error, and reserved bits, which it ignores."""
        geometry = self._geometry
        self._refuse(
            ~compressed & ((entries & np.uint64(L2_RESERVED)) != 0), "reserved bits set", first
        )
        if zero.any():
            if self._version < 3:
                self._refuse(zero, "zero cluster in a version 2 image", first)
            if geometry.extended_l2:
                self._refuse(zero, "reserved bit 0 set with extended L2 entries", first)
        self._refuse(
            ~compressed & (plain & (geometry.cluster_size - 1) != 0),
            "unaligned host cluster offset",
            first,
        )
        if not self._external:
            self._refuse(
                ~compressed & (plain != 0) & (plain < geometry.cluster_size),
                "data over the header",
                first,
            )
        else:
            self._refuse(compressed, "compressed cluster with an external data file", first)
        both = compressed & ((entries & np.uint64(COPIED)) != 0)
        self._refuse(both, "compressed cluster marked COPIED", first)

    def _check_bitmaps(
        self,
        words: Entries,
        bitmap: Entries,
        compressed: npt.NDArray[np.bool_],
        plain: Offsets,
        first: int,
    ) -> None:
        low = bitmap & np.uint64(ALL_SUBCLUSTERS)
        both = (low & (bitmap >> np.uint64(SUBCLUSTERS))) != 0
        self._refuse(~compressed & both, "sub-cluster both allocated and zero", first)
        self._refuse(compressed & (bitmap != 0), "compressed cluster with a bitmap", first)
        unplaced = ~compressed & ~self._allocated(words, plain) & (low != 0)
        self._refuse(unplaced, "allocated sub-cluster without a host cluster", first)

    def _refuse(self, bad: npt.NDArray[Any], what: str, first: int) -> None:
        if bad.any():
            cluster = first + int(np.argmax(bad))
            raise CorruptImageError(
                f"{what} (guest offset {self._geometry.guest_of(cluster):#x})",
                path=self._file.path,
                offset=self._entry_offset(cluster),
                field="L2 entry",
            )

    def _entry_offset(self, cluster: int) -> int:
        table, index = divmod(cluster, self._geometry.l2_entries)
        return int(self._l1[table]) + index * 8 * self._geometry.entry_words

    def _check_end(self, extents: Extents) -> None:
        """Refuse data beyond the end of its file; only the file's last cluster may be short."""
        kind, host, size = extents["kind"], extents["host"], self._data.size
        cluster = self._geometry.cluster_size
        last = host + extents["length"] - 1
        begins = last & ~np.int64(cluster - 1)
        bad = (kind == Kind.DATA) & (begins >= size) & (last >= size)
        bad |= (kind == Kind.COMPRESSED) & (host >= size)
        if bad.any():
            row = extents[int(np.argmax(bad))]
            raise CorruptImageError(
                f"guest offset {int(row['start']):#x} is mapped beyond the end of the file, "
                f"{size:#x}",
                path=self._data.path,
                offset=int(row["host"]),
            )


def _contiguous(begin: Offsets, length: Offsets) -> list[tuple[int, int]]:
    """Group reads that touch on the host into spans of rows, each of bounded length."""
    if not begin.size:
        return []
    breaks = np.append(True, begin[1:] != begin[:-1] + length[:-1])
    starts = np.flatnonzero(breaks).tolist()
    spans = []
    for i, j in zip(starts, [*starts[1:], begin.size], strict=True):
        step = max(1, _READ_AT_ONCE // int(length[i:j].max()))
        spans += [(k, min(k + step, j)) for k in range(i, j, step)]
    return spans
