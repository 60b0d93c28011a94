"""Checking structure and refcounts, as ``qemu-img check`` does, without QEMU.

Every reference to a host cluster is counted and compared with the refcount that is stored. Host
space is gone through in windows, so memory does not grow with the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..errors import CorruptImageError
from ..extents import Offsets
from ..hostfile import HostFile
from ..units import ceil_div
from . import layout
from .bitmaps import Bitmap, read_bitmaps
from .geometry import (
    COMPRESSED,
    COPIED,
    OFFSET_MASK,
    REFTABLE_RESERVED,
    Entries,
    Geometry,
)
from .header import Header, read_bitmaps_info
from .layout import Autoclear, ExtensionType, Incompatible
from .snapshots import read_snapshots
from .tables import ClusterMap, read_words

MESSAGES = 20
_WINDOW = 1 << 24
_SHOWN_EACH = 3
_ENTRIES_AT_ONCE = 1 << 16


@dataclass
class CheckReport:
    """What a check found.

    Attributes:
        corruptions: how many refcounts are too low, flags wrong or tables damaged.
        leaks: how many clusters have a refcount above their references: space lost, no more.
        messages: the first of them in words.
    """

    corruptions: int = 0
    leaks: int = 0
    messages: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not self.corruptions and not self.leaks

    def _tell(self, text: str) -> None:
        if len(self.messages) < MESSAGES:
            self.messages.append(text)

    def corrupt(self, text: str, count: int = 1) -> None:
        """Record corruptions."""
        self.corruptions += count
        self._tell(text)

    def leak(self, text: str, count: int) -> None:
        """Record leaked clusters."""
        self.leaks += count
        self._tell(text)


def check_refcounts(file: HostFile, header: Header) -> CheckReport:
    """Check an image's tables and refcounts. Its data and backing files are not opened.

    Raises:
        FormatError, CorruptImageError: the tables are so damaged that they cannot be walked.
    """
    return _Check(file, header).run()


@dataclass(frozen=True)
class _State:
    """An L1 table: of so many entries, and of so many snapshots (or of the active state)."""

    offset: int
    size: int
    count: int
    name: str


class _Check:
    def __init__(self, file: HostFile, header: Header) -> None:
        self._file, self._header = file, header
        self._geometry: Geometry = header.geometry
        self._report = CheckReport()
        self._clusters = self._geometry.clusters(file.size)
        self._table = self._refcount_table()
        self._states = self._read_states()
        self._bitmaps = self._read_bitmaps()
        self._fixed = self._inside(self._metadata())

    def run(self) -> CheckReport:
        for window in self._windows():
            self._check_window(window, min(window + _WINDOW, self._clusters))
        return self._report

    def _refcount_table(self) -> Offsets:
        header = self._header
        count = header.refcount_table_clusters * self._geometry.cluster_size // 8
        words = read_words(self._file, header.refcount_table_offset, count, "refcount table")
        offsets = words.astype(np.int64)
        bad = (words & np.uint64(REFTABLE_RESERVED)) != 0
        bad |= (words & np.uint64(self._geometry.cluster_size - 1)) != 0
        bad |= words > np.uint64(max(0, self._file.size - self._geometry.cluster_size))
        first = np.unique(words, return_index=True)[1]
        bad |= ~np.isin(np.arange(words.size), first)  # one block cannot count two ranges
        bad &= words != 0
        if bad.any():
            index = int(np.argmax(bad))
            self._report.corrupt(
                f"refcount table entry {index}: block at {int(words[index]):#x} is unaligned, "
                "beyond the end of the file, or used twice",
                int(bad.sum()),
            )
            offsets[bad] = 0
        return offsets

    def _read_states(self) -> list[_State]:
        header = self._header
        self._snapshots = read_snapshots(self._file, header)
        tables = Counter((s.l1_table_offset, s.l1_size) for s in self._snapshots)
        return [_State(header.l1_table_offset, header.l1_size, 1, "active")] + [
            _State(offset, size, count, "snapshot") for (offset, size), count in tables.items()
        ]

    def _map(self, state: _State) -> ClusterMap:
        """Read one L1 table. They are read anew for each use: there can be many snapshots."""
        # The data file's length is not looked at: only this file's clusters are counted.
        return ClusterMap(self._file, self._header, state.offset, state.size)

    def _read_bitmaps(self) -> tuple[Bitmap, ...]:
        if not self._header.has_autoclear(Autoclear.BITMAPS):
            return ()
        return read_bitmaps(self._file, self._header)

    def _inside(self, ranges: Iterator[tuple[str, int, int]]) -> Offsets:
        """Return (offset, length) of what lies inside the file; the rest is corrupt."""
        kept = []
        for name, offset, length in ranges:
            if offset + length > self._clusters << self._geometry.cluster_bits:
                self._report.corrupt(f"{name} at {offset:#x} lies beyond the end of the file")
            elif length:
                kept.append((offset, length))
        return np.array(kept, np.int64).reshape(-1, 2)

    def _metadata(self) -> Iterator[tuple[str, int, int]]:
        """Yield name, offset and length of everything but L2 tables and what they map."""
        header, size = self._header, self._geometry.cluster_size
        yield "header", 0, size
        refcounts = header.refcount_table_clusters * size
        yield "refcount table", header.refcount_table_offset, refcounts
        for state in self._states:
            for _ in range(state.count):
                yield f"L1 table ({state.name})", state.offset, state.size * 8
        if self._snapshots:
            length = sum(snapshot.entry_size for snapshot in self._snapshots)
            yield "snapshot table", header.snapshots_offset, length
        info = read_bitmaps_info(header, self._file.path) if self._bitmaps else None
        if info is not None:
            yield "bitmap directory", info.directory_offset, info.directory_size
        for number, bitmap in enumerate(self._bitmaps):
            yield f"bitmap {number}", bitmap.table_offset, bitmap.table_size * 8
        luks = header.extension(ExtensionType.FULL_DISK_ENCRYPTION)
        if luks is not None:
            fields = layout.parse(
                layout.EncryptionExtension,
                luks.data,
                path=self._file.path,
                offset=luks.offset,
                name="encryption header",
            )
            yield "encryption header", fields.offset, fields.length

    def _bitmap_clusters(self) -> Iterator[tuple[Offsets, int]]:
        """Yield host clusters of bitmaps' data, a part of a table at a time, and how often."""
        tables = Counter((bitmap.table_offset, bitmap.table_size) for bitmap in self._bitmaps)
        for (table, size), count in tables.items():
            for begin in range(0, size, _ENTRIES_AT_ONCE):
                length = min(_ENTRIES_AT_ONCE, size - begin)
                words = read_words(self._file, table + begin * 8, length, "bitmap table")
                offsets = (words & np.uint64(OFFSET_MASK)).astype(np.int64)
                yield offsets[offsets != 0] >> self._geometry.cluster_bits, count

    def _windows(self) -> list[int]:
        """Return where windows of host clusters begin, leaving out those nothing refers to."""
        per_block = self._geometry.refcount_block_entries(self._header.refcount_order)
        counted = np.flatnonzero(self._table) * per_block
        used = {w for first in counted.tolist() for w in _spanned(first, per_block)}
        if self._clusters <= _WINDOW:
            used = {0}
        else:
            for touched, _ in self._references():
                used.update(np.unique(touched[:, 0] // _WINDOW).tolist())
                used.update(np.unique(touched[:, 1] // _WINDOW).tolist())
        return [w * _WINDOW for w in sorted(used) if w * _WINDOW < self._clusters]

    def _references(self) -> Iterator[tuple[Offsets, int]]:
        """Yield [first, last] host clusters of references, shape (n, 2), and how often each."""
        bits = self._geometry.cluster_bits
        first, length = self._fixed[:, 0], self._fixed[:, 1]
        yield np.stack([first >> bits, (first + length - 1) >> bits], axis=1), 1
        yield _single(self._table[self._table != 0] >> bits), 1
        for clusters, count in self._bitmap_clusters():
            yield _single(clusters), count
        for state in self._states:
            one = self._map(state)
            yield _single(one.l1[one.l1 != 0] >> bits), state.count
            for _, entries in self._entries(state, one):
                yield self._of_entries(entries[:, 0]), state.count

    def _entries(self, state: _State, one: ClusterMap) -> Iterator[tuple[int, Entries]]:
        """Yield the first guest cluster and L2 entries of each mapped stretch, VM state too."""
        return one.stretches(state.size * self._geometry.l2_entries)

    def _of_entries(self, words: Entries) -> Offsets:
        geometry = self._geometry
        compressed = (words & np.uint64(COMPRESSED)) != 0
        packed = words[compressed]
        begin = geometry.compressed_host(packed)
        stop = begin + geometry.compressed_bound(packed) - 1
        rows = [np.stack([begin, stop], axis=1) >> geometry.cluster_bits]
        if not self._header.has(Incompatible.EXTERNAL_DATA_FILE):
            plain = (words[~compressed] & np.uint64(OFFSET_MASK)).astype(np.int64)
            rows.append(_single(plain[plain != 0] >> geometry.cluster_bits))
        return np.concatenate(rows)

    def _check_window(self, first: int, stop: int) -> None:
        """Compare references and stored refcounts of host clusters ``[first, stop)``."""
        counted = np.zeros(stop - first, np.int32)
        outside = 0
        for touched, count in self._references():
            _count(counted, touched, first, count)
            outside += int((touched[:, 1] >= self._clusters).sum())
        if outside and not first:
            self._report.corrupt(f"{outside} references beyond the end of the file", outside)
        stored = self._stored(first, stop)
        self._compare(counted, stored, first)
        self._check_copied(stored, first)

    def _compare(
        self, counted: npt.NDArray[np.int32], stored: npt.NDArray[np.uint64], first: int
    ) -> None:
        low, high = stored < counted.astype(np.uint64), stored > counted.astype(np.uint64)
        for mask, record in ((low, self._report.corrupt), (high, self._report.leak)):
            found = np.flatnonzero(mask)
            for index in found[:_SHOWN_EACH].tolist():
                record(self._mismatch(first + index, int(counted[index]), int(stored[index])), 1)
            if found.size > _SHOWN_EACH:
                rest = found.size - _SHOWN_EACH
                record(f"{rest} more clusters like the last one", rest)

    def _mismatch(self, cluster: int, counted: int, stored: int) -> str:
        what = "leaked cluster" if stored > counted else "refcount too low"
        return (
            f"{what}: host offset {cluster << self._geometry.cluster_bits:#x} has refcount "
            f"{stored} and {counted} references"
        )

    def _stored(self, first: int, stop: int) -> npt.NDArray[np.uint64]:
        """Return the refcounts that are stored for host clusters ``[first, stop)``."""
        per_block = self._geometry.refcount_block_entries(self._header.refcount_order)
        counts = np.zeros(stop - first, np.uint64)
        for block in range(first // per_block, min(ceil_div(stop, per_block), self._table.size)):
            offset = int(self._table[block])
            if not offset:
                continue
            data = self._file.read(offset, self._geometry.cluster_size)
            values = unpack_refcounts(data, self._header.refcount_order)
            low, high = max(first, block * per_block), min(stop, (block + 1) * per_block)
            counts[low - first : high - first] = values[
                low - block * per_block : high - block * per_block
            ]
        return counts

    def _check_copied(self, stored: npt.NDArray[np.uint64], first: int) -> None:
        """Check that COPIED is set exactly where the refcount is 1, in the active tables."""
        state = self._states[0]
        one = self._map(state)
        l1 = read_words(self._file, state.offset, state.size, "L1 table")
        self._compare_copied(l1, stored, first, "L1 entry", 1)
        external = self._header.has(Incompatible.EXTERNAL_DATA_FILE)
        for guest, entries in self._entries(state, one):
            if not first:
                self._validate(one, entries, guest)
            if not external:
                where = self._geometry.cluster_size
                self._compare_copied(entries[:, 0], stored, first, "guest offset", where, guest)

    def _validate(self, one: ClusterMap, entries: Entries, first: int) -> None:
        try:
            one.validate(entries, first)
        except CorruptImageError as error:
            self._report.corrupt(str(error))

    def _compare_copied(
        self,
        words: Entries,
        stored: npt.NDArray[np.uint64],
        first: int,
        what: str,
        unit: int,
        begin: int = 0,
    ) -> None:
        plain = (words & np.uint64(COMPRESSED)) == 0
        host = (words & np.uint64(OFFSET_MASK)).astype(np.int64)
        cluster = (host >> self._geometry.cluster_bits) - first
        inside = np.flatnonzero(plain & (host != 0) & (cluster >= 0) & (cluster < stored.size))
        flagged = (words[inside] & np.uint64(COPIED)) != 0
        wrong = inside[flagged != (stored[cluster[inside]] == 1)]
        if wrong.size:
            self._report.corrupt(
                f"COPIED flag disagrees with the refcount at {what} "
                f"{(begin + int(wrong[0])) * unit:#x}",
                wrong.size,
            )


def _single(clusters: Offsets) -> Offsets:
    return np.stack([clusters, clusters], axis=1)


def _spanned(first: int, count: int) -> range:
    return range(first // _WINDOW, (first + count - 1) // _WINDOW + 1)


def _count(counted: npt.NDArray[np.int32], touched: Offsets, first: int, count: int) -> None:
    """Count references [first, last] into a window; few span more than two clusters."""
    low = np.clip(touched[:, 0] - first, 0, counted.size)
    high = np.clip(touched[:, 1] + 1 - first, 0, counted.size)
    one = high - low == 1
    np.add.at(counted, low[one], count)
    more = high - low > 1
    for i, j in zip(low[more].tolist(), high[more].tolist(), strict=True):
        counted[i:j] += count


def unpack_refcounts(data: bytes, order: int) -> npt.NDArray[np.uint64]:
    """Return the entries of a refcount block of 2^order bits each.

    Entries of less than a byte are stored least significant first (spec section "Refcounts").
    """
    if order >= 3:
        return np.frombuffer(data, f">u{1 << (order - 3)}").astype(np.uint64)
    width = 1 << order
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little").reshape(-1, width)
    values: npt.NDArray[np.uint64] = (bits << np.arange(width)).sum(axis=1).astype(np.uint64)
    return values
