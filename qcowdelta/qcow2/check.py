"""Checking structure and refcounts, as ``qemu-img check`` does, without QEMU.

Every reference to a host cluster is counted and compared with the refcount that is stored. Host
space is gone through in windows, so memory does not grow with the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..extents import Offsets
from ..hostfile import HostFile
from ..units import ceil_div
from . import layout
from .bitmaps import read_bitmaps
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
from .tables import ClusterMap, read_l1, read_words

MESSAGES = 20
_WINDOW = 1 << 24
_SHOWN_EACH = 3


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
class _Map:
    """One L1 table: the active one, or a snapshot's."""

    name: str
    offset: int
    size: int
    active: bool
    map: ClusterMap


class _Check:
    def __init__(self, file: HostFile, header: Header) -> None:
        self._file, self._header = file, header
        self._geometry: Geometry = header.geometry
        self._report = CheckReport()
        self._clusters = self._geometry.clusters(file.size)
        self._table = self._refcount_table()
        self._maps = list(self._read_maps())
        self._fixed = np.array(list(self._metadata()), np.int64).reshape(-1, 2)

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
        bad &= words != 0
        if bad.any():
            index = int(np.argmax(bad))
            self._report.corrupt(
                f"refcount table entry {index}: block at {int(words[index]):#x} is unaligned or "
                "beyond the end of the file",
                int(bad.sum()),
            )
            offsets[bad] = 0
        return offsets

    def _read_maps(self) -> Iterator[_Map]:
        header = self._header
        states = [("active", header.l1_table_offset, header.l1_size, True)]
        states += [
            (f"snapshot {i}", s.l1_table_offset, s.l1_size, False)
            for i, s in enumerate(read_snapshots(self._file, header))
        ]
        for name, offset, size, active in states:
            l1 = read_l1(self._file, self._geometry, offset, size)
            # The data file's length is not looked at: only this file's clusters are counted.
            yield _Map(
                name,
                offset,
                size,
                active,
                ClusterMap(self._file, self._file, self._geometry, header.version, l1),
            )

    def _metadata(self) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of everything but L2 tables and data."""
        header, size = self._header, self._geometry.cluster_size
        yield 0, size
        yield header.refcount_table_offset, header.refcount_table_clusters * size
        for offset in self._table[self._table != 0].tolist():
            yield offset, size
        for one in self._maps:
            yield one.offset, one.size * 8
        if header.nb_snapshots:
            length = sum(s.entry_size for s in read_snapshots(self._file, header))
            yield header.snapshots_offset, length
        yield from self._bitmap_clusters()
        luks = header.extension(ExtensionType.FULL_DISK_ENCRYPTION)
        if luks is not None:
            fields = layout.parse(
                layout.EncryptionExtension,
                luks.data,
                path=self._file.path,
                offset=luks.offset,
                name="encryption header",
            )
            yield fields.offset, fields.length

    def _bitmap_clusters(self) -> Iterator[tuple[int, int]]:
        header, size = self._header, self._geometry.cluster_size
        if not header.has_autoclear(Autoclear.BITMAPS):
            return
        info = read_bitmaps_info(header, self._file.path)
        if info is None:
            return
        yield info.directory_offset, info.directory_size
        for bitmap in read_bitmaps(self._file, header):
            yield bitmap.table_offset, bitmap.table_size * 8
            words = read_words(self._file, bitmap.table_offset, bitmap.table_size, "bitmap table")
            offsets = words & np.uint64(OFFSET_MASK)
            for offset in offsets[offsets != 0].tolist():
                yield offset, size

    def _windows(self) -> list[int]:
        """Return where windows of host clusters begin, leaving out those nothing refers to."""
        per_block = self._geometry.refcount_block_entries(self._header.refcount_order)
        counted = np.flatnonzero(self._table) * per_block
        used = {w for first in counted.tolist() for w in _spanned(first, per_block)}
        if self._clusters <= _WINDOW:
            used = {0}
        else:
            for touched in self._references():
                used.update(np.unique(touched[:, 0] // _WINDOW).tolist())
                used.update(np.unique(touched[:, 1] // _WINDOW).tolist())
        return [w * _WINDOW for w in sorted(used) if w * _WINDOW < self._clusters]

    def _references(self) -> Iterator[Offsets]:
        """Yield [first, last] host clusters of every reference, in arrays of shape (n, 2)."""
        bits = self._geometry.cluster_bits
        some = self._fixed[self._fixed[:, 1] > 0]
        yield np.stack([some[:, 0] >> bits, (some[:, 0] + some[:, 1] - 1) >> bits], axis=1)
        for one in self._maps:
            tables = one.map.l1[one.map.l1 != 0] >> bits
            yield np.stack([tables, tables], axis=1)
            for _, entries in self._entries(one):
                yield self._of_entries(entries[:, 0])

    def _entries(self, one: _Map) -> Iterator[tuple[int, Entries]]:
        """Yield the first guest cluster and L2 entries of each mapped stretch, VM state too."""
        return one.map.stretches(one.size * self._geometry.l2_entries)

    def _of_entries(self, words: Entries) -> Offsets:
        geometry = self._geometry
        compressed = (words & np.uint64(COMPRESSED)) != 0
        packed = words[compressed]
        begin = geometry.compressed_host(packed)
        stop = begin + geometry.compressed_bound(packed) - 1
        rows = [np.stack([begin, stop], axis=1) >> geometry.cluster_bits]
        if not self._header.has(Incompatible.EXTERNAL_DATA_FILE):
            plain = (words[~compressed] & np.uint64(OFFSET_MASK)).astype(np.int64)
            plain = plain[plain != 0] >> geometry.cluster_bits
            rows.append(np.stack([plain, plain], axis=1))
        return np.concatenate(rows)

    def _check_window(self, first: int, stop: int) -> None:
        """Compare references and stored refcounts of host clusters ``[first, stop)``."""
        counted = np.zeros(stop - first, np.int32)
        outside = 0
        for touched in self._references():
            _count(counted, touched, first)
            outside += int((touched[:, 1] >= self._clusters).sum())
        if outside and not first:
            self._report.corrupt(f"{outside} references beyond the end of the file", outside)
        stored = self._stored(first, stop)
        self._compare(counted, stored, first)
        if first == 0 or self._clusters > _WINDOW:
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
        for one in self._maps:
            if not one.active or self._header.has(Incompatible.EXTERNAL_DATA_FILE):
                continue
            for guest, entries in self._entries(one):
                words = entries[:, 0]
                plain = (words & np.uint64(COMPRESSED)) == 0
                host = (words & np.uint64(OFFSET_MASK)).astype(np.int64)
                cluster = (host >> self._geometry.cluster_bits) - first
                inside = plain & (host != 0) & (cluster >= 0) & (cluster < stored.size)
                flagged = (words[inside] & np.uint64(COPIED)) != 0
                wrong = flagged != (stored[cluster[inside]] == 1)
                if wrong.any():
                    at = guest + int(np.flatnonzero(inside)[np.argmax(wrong)])
                    self._report.corrupt(
                        "COPIED flag disagrees with the refcount at guest offset "
                        f"{self._geometry.guest_of(at):#x}",
                        int(wrong.sum()),
                    )


def _spanned(first: int, count: int) -> range:
    return range(first // _WINDOW, (first + count - 1) // _WINDOW + 1)


def _count(counted: npt.NDArray[np.int32], touched: Offsets, first: int) -> None:
    """Count references [first, last] into a window; few span more than two clusters."""
    low = np.clip(touched[:, 0] - first, 0, counted.size)
    high = np.clip(touched[:, 1] + 1 - first, 0, counted.size)
    one = high - low == 1
    np.add.at(counted, low[one], 1)
    for i, j in zip(low[~one].tolist(), high[~one].tolist(), strict=True):
        counted[i:j] += 1


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
