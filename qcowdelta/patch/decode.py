"""Decoding segments of a patch with the base they were made from."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from blake3 import blake3

from ..errors import (
    BaseMismatchError,
    CorruptImageError,
    FormatError,
    ImageError,
    PathName,
    printable,
)
from ..ranges import RangeReader
from ..reader import Readable
from ..threads import in_order
from ..units import MIB, usable_cpus
from .codec import Buffer, CodecError, decode
from .container import PatchFile
from .layout import LEAF, OperationKind, Space
from .segment import Rows, Segment
from .spool import Spool

_CACHE = 32 * MIB


class SegmentDecoder:
    """Decodes segments and keeps those used last; safe to be used by several threads.

    What other segments refer to is also kept in a nameless temporary file, so that no segment is
    decoded again and again, however little memory there is.

    Args:
        patch: the patch.
        base: what it was made from.
        folder: where the temporary file is; None takes the system's folder for them.
    """

    def __init__(self, patch: PatchFile, base: Readable, folder: PathName | None = None) -> None:
        self._patch = patch
        self._base = RangeReader(base)
        self._kept: OrderedDict[int, Future[memoryview]] = OrderedDict()
        self._capacity = max(4, _CACHE // patch.header.segment_size)
        self._lock = threading.Lock()
        self._spool = Spool(patch.header.segment_bits, folder)
        self._spooled: set[int] = set()
        self._lists: dict[int, frozenset[int]] = {}
        self.verified = np.zeros(patch.entries.size, bool)

    def close(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self._spool.close()

    def content(self, at: int) -> memoryview:
        """Return the target's content in the range of the segment at a place of the index.

        Raises:
            CorruptImageError: the patch or the base is damaged.
            FormatError: the segment breaks a rule.
            BaseMismatchError: the base is not the one the patch was made from.
        """
        with self._lock:
            future = self._kept.get(at)
            mine = future is None
            if future is None:
                future = self._kept[at] = Future()
            self._kept.move_to_end(at)
            while len(self._kept) > self._capacity:
                self._kept.popitem(last=False)
        if mine:
            # Segments refer only to earlier ones, so no two threads can wait for each other.
            try:
                future.set_result(self._from_spool(at) or self._decode(at))
            except BaseException as error:
                with self._lock:
                    self._kept.pop(at, None)  # it may go well the next time
                future.set_exception(error)
        return future.result()

    def check_rest(self) -> None:
        """Decode, and so check, every segment that was not decoded before.

        Raises:
            CorruptImageError, FormatError, BaseMismatchError: as :meth:`content`.
        """
        rest = np.flatnonzero(~self.verified).tolist()
        with ThreadPoolExecutor(usable_cpus(), "qcowdelta-check") as pool:
            for _ in in_order(pool, self.content, rest, 2 * usable_cpus()):
                pass

    def _from_spool(self, at: int) -> memoryview | None:
        """Return a segment's content from the temporary file; None where it is not there, whole."""
        if at not in self._spooled:
            return None
        segment = self._patch.segment(at)
        content = np.empty(segment.length, np.uint8).data
        try:
            self._spool.read_into(content, [(segment.start, segment.length, 0)])
        except OSError:
            return None
        return content.toreadonly() if _is_right(segment, content) else None

    def _keep(self, at: int, content: memoryview) -> None:
        """Put a segment that others refer to into the temporary file."""
        if at not in self._spooled:
            number = int(self._patch.entries["number"][at])
            self._spool.write(content, number)
            self._spooled.add(at)

    def _decode(self, at: int) -> memoryview:
        segment = self._patch.segment(at)
        self._lists[at] = frozenset(segment.references)
        self._prepare(segment)
        content = np.empty(segment.length, np.uint8).data
        self._fill_same(segment, content)
        dictionary = self._copy(segment, content)
        data = self._data(segment, dictionary)
        _place(content, segment.of_kind(OperationKind.DATA), memoryview(data))
        if not _is_right(segment, content):
            raise self._damaged(segment, "the result is not what it should be")
        self.verified[at] = True
        if self._patch.entries["users"][at]:
            self._keep(at, content)
        return content.toreadonly()

    def _fill_same(self, segment: Segment, content: memoryview) -> None:
        """Fill in what no operation covers with the base's content at the same place."""
        rows = segment.operations
        if int(rows["length"].astype(np.int64).sum()) != segment.length:
            self._base.read_into(segment.start, content)
        for row in segment.of_kind(OperationKind.ZERO):
            start, length = int(row["start"]), int(row["length"])
            content[start : start + length] = bytes(length)

    def _copy(self, segment: Segment, content: memoryview) -> memoryview:
        """Put in place what is copied, and return the dictionary."""
        copies = segment.of_kind(OperationKind.COPY_BASE)
        starts, lengths = segment.of_base()
        copied, used = int(copies["length"].sum()), int(lengths.sum())
        parts = segment.of_space(Space.TARGET)
        buffer = np.empty(copied + segment.dictionary_length, np.uint8).data
        self._base.read_ranges(starts, lengths, buffer[:used])
        self._check_base(segment, buffer[:used])
        _place(content, copies, buffer)
        copies = segment.of_kind(OperationKind.COPY_TARGET)
        rows = zip(*(copies[name].tolist() for name in ("source", "length", "start")), strict=True)
        self._spool.read_into(content, rows)
        at = used + np.cumsum(parts["length"]) - parts["length"]
        rows = zip(parts["start"].tolist(), parts["length"].tolist(), at.tolist(), strict=True)
        self._spool.read_into(buffer, rows)
        return buffer[copied:]

    def _check_base(self, segment: Segment, used: memoryview) -> None:
        """Hold what the base gives to copies and to the dictionary against the segment."""
        if blake3(used).digest() != segment.base_digest:
            raise BaseMismatchError(
                f"{printable(self._patch.path)}: the base is not the one that this patch was made "
                f"from: what segment {segment.number} takes from it is different"
            )

    def _prepare(self, segment: Segment) -> None:
        """Have all that a segment refers to in the temporary file."""
        places = [self._place_of(segment, number) for number in segment.references]
        for at in places:
            if at not in self._spooled:
                self._keep(at, self.content(at))

    def _place_of(self, segment: Segment, number: int) -> int:
        """Return the place of a segment that another refers to.

        Lists are held to be closed before anything is decoded for their sake: or else a chain of
        references would make one read decode a whole patch.
        """
        at = self._patch.find(number)
        if at is None:
            raise self._broken(segment, f"refers to segment {number}, which is not stored")
        if at not in self._lists:
            self._lists[at] = frozenset(self._patch.segment(at).references)
        if not self._lists[at].issubset(segment.references):
            raise self._broken(
                segment, f"refers to segment {number}, but not to all that this refers to"
            )
        return at

    def _broken(self, segment: Segment, what: str) -> FormatError:
        return FormatError(
            f"segment {segment.number} {what}",
            path=self._patch.path,
            field="segment.references",
        )

    def _data(self, segment: Segment, dictionary: Buffer) -> Buffer:
        try:
            return decode(segment.codec, segment.payload, segment.data_length, dictionary)
        except CodecError as error:
            raise self._damaged(segment, f"the payload {error}") from error

    def _damaged(self, segment: Segment, what: str) -> ImageError:
        return CorruptImageError(
            f"segment {segment.number} (guest offset {segment.start:#x}): {what}",
            path=self._patch.path,
            field="segment",
        )


def _is_right(segment: Segment, content: memoryview) -> bool:
    """Tell whether content is what a segment's digests are of."""
    return all(
        blake3(content[index * LEAF : (index + 1) * LEAF]).digest() == digest
        for index, digest in enumerate(segment.leaf_digests)
    )


def _place(content: memoryview, rows: Rows, data: memoryview) -> None:
    """Put the bytes of operations, one behind the other, where they belong."""
    at = 0
    for start, length in zip(rows["start"].tolist(), rows["length"].tolist(), strict=True):
        content[start : start + length] = data[at : at + length]
        at += length
