"""A cluster patch as a file: header, segments, index, footer."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from .. import declare
from ..errors import CorruptImageError, FormatError, PathName
from ..hostfile import HostFile
from ..output import AtomicOutput
from ..units import MIB
from . import layout
from .header import Header, is_sidecar, read_header
from .segment import Segment, check_record, longest_segment, most_memory, parse_segment

_FOOTER: int = layout.Footer.sizeof()
_ENTRY = layout.ENTRY.itemsize
_WRITEBACK = 8 * MIB
_HEAD: int = layout.SegmentHead.sizeof()
_NUMBERS = 64 << 10
_KNOWN = 16 * MIB  # bytes of tables of segments


class _Known:
    """Segments parsed before, without their payloads; safe to be used by several threads.

    Using a patch takes each segment three times (its digests, its map, its content), and parsing
    one takes about as long as decoding it.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, tuple[Segment, int]] = OrderedDict()
        self._length = 0
        self._lock = threading.Lock()

    def get(self, record: bytes, *, path: PathName, offset: int) -> Segment | None:
        """Return what is stored in a record, if these very bytes were parsed before."""
        with self._lock:
            found = self._kept.get(record[-layout.DIGEST :])
        if found is None:
            return None
        segment, payload_length = found
        body = check_record(record, path=path, offset=offset)
        return replace(segment, payload=body[len(body) - payload_length :])

    def add(self, record: bytes, segment: Segment) -> None:
        """Remember a segment, and forget those added first when it is too much."""
        key = record[-layout.DIGEST :]
        with self._lock:
            if key in self._kept:
                return
            self._kept[key] = replace(segment, payload=b""), len(segment.payload)
            self._length += segment.tables_length
            while self._length > _KNOWN:
                self._length -= self._kept.popitem(last=False)[1][0].tables_length


class PatchFile:
    """An open patch, whose header and index were checked.

    Attributes:
        header: what it is for.
        entries: the stored segments, records of :data:`.layout.ENTRY`, in order.
        identity: a digest of header and index, which tell what it is for and how it is laid out.
    """

    def __init__(self, file: HostFile) -> None:
        self.file = file
        self._known = _Known()
        self.header, header_digest = read_header(file)
        self.index_offset = self.header.length + self.header.segments_length
        self.entries, self.identity = _read_index(
            file, self.header, header_digest, self.index_offset, self.index_offset
        )

    @classmethod
    def open(cls, path: PathName) -> PatchFile:
        """Open a patch.

        Raises:
            FormatError: it is not a patch, or beyond a limit.
            CorruptImageError: its header or index is damaged.
            PolicyError: it is not a regular file.
            OSError: the system refused.
        """
        return cls._of(HostFile.open(path, lock=False))

    @classmethod
    def receive(cls, stream: BinaryIO, name: PathName, folder: PathName | None = None) -> PatchFile:
        """Take a patch from a pipe into a nameless temporary file, and open it.

        Args:
            stream: where it comes from, read to its end.
            name: what messages call it.
            folder: where the temporary file is; None takes the system's folder for them.
        """
        with tempfile.TemporaryFile(dir=folder) as spool:
            shutil.copyfileobj(stream, spool, 1 << 20)
            spool.flush()
            fd = os.dup(spool.fileno())
        info = os.fstat(fd)
        return cls._of(HostFile(name, fd, info.st_size, (info.st_dev, info.st_ino)))

    @classmethod
    def _of(cls, file: HostFile) -> PatchFile:
        try:
            return cls(file)
        except BaseException:
            file.close()
            raise

    def __enter__(self) -> PatchFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def path(self) -> str:
        """What it was opened as."""
        return self.file.path

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def find(self, number: int) -> int | None:
        """Return the place in the index of a segment by its number; None: it is not stored."""
        at = int(np.searchsorted(self.entries["number"], number))
        stored = at < self.entries.size and int(self.entries["number"][at]) == number
        return at if stored else None

    def segment(self, at: int) -> Segment:
        """Read the segment at a place of the index, and check all that it says.

        Raises:
            CorruptImageError: it is damaged.
            FormatError: it contradicts itself, the index or a limit.
        """
        entry = self.entries[at]
        offset, length = int(entry["offset"]), int(entry["length"])
        record = self.file.read(offset, length)
        segment = self._known.get(record, path=self.path, offset=offset)
        if segment is None:
            segment = parse_segment(record, self.header, path=self.path, offset=offset)
            self._known.add(record, segment)
        if (segment.number, segment.memory) != (int(entry["number"]), int(entry["memory"])):
            raise FormatError(
                "segment and index do not agree", path=self.path, offset=offset, field="segment"
            )
        return segment

    def segments(self) -> Iterator[Segment]:
        """Read all segments, in order."""
        return (self.segment(at) for at in range(self.entries.size))

    def sidecar(self) -> bytes:
        """Return the index as a file of its own, for readers that fetch ranges of the patch."""
        header = self.file.read(0, self.header.length)
        index = self.file.read(self.index_offset, self.file.size - self.index_offset)
        return layout.SIDECAR_MAGIC + header + index


def read_sidecar(file: HostFile) -> tuple[Header, npt.NDArray[np.void]]:
    """Read an index that was exported.

    Returns:
        The patch's header and its entries, whose offsets are those in the patch.

    Raises:
        FormatError, CorruptImageError: it is not such a file, or damaged.
    """
    if not is_sidecar(file):
        raise FormatError("is not the index of a patch", path=file.path, offset=0, field="magic")
    begin = len(layout.SIDECAR_MAGIC)
    header, digest = read_header(file, begin)
    at, patch_offset = begin + header.length, header.length + header.segments_length
    entries, _ = _read_index(file, header, digest, at, patch_offset)
    return header, entries


def _read_index(
    file: HostFile, header: Header, header_digest: bytes, at: int, expected: int
) -> tuple[npt.NDArray[np.void], bytes]:
    """Read the index at ``at``, which in the patch is at ``expected``, and the footer behind it."""
    length = header.segment_count * _ENTRY
    if at + length + _FOOTER != file.size:
        raise FormatError(
            f"is {file.size} bytes long and should be {at + length + _FOOTER}: it is cut off, or "
            "something was added",
            path=file.path,
            field="segments_length",
        )
    place = at + length
    footer = declare.parse(
        layout.Footer, file.read(place, _FOOTER), path=file.path, offset=place, name="footer."
    )
    _check_numbers(file, header, at)
    data = file.read(at, length)
    digest = blake3(header_digest + data).digest()
    if (footer.index_offset, footer.index_length, footer.digest) != (expected, length, digest):
        raise CorruptImageError("the index is damaged", path=file.path, offset=at, field="index")
    entries = declare.parse(
        layout.Index, data, path=file.path, offset=at, name="index", count=header.segment_count
    )
    _check_index(entries, header, file.path)
    return entries, digest


def _check_numbers(file: HostFile, header: Header, at: int) -> None:
    """Hold that numbers ascend, a part at a time: of a hole of any length no more is read."""
    last = -1
    for first in range(0, header.segment_count, _NUMBERS):
        count = min(_NUMBERS, header.segment_count - first)
        numbers = np.frombuffer(file.read(at + first * 8, count * 8), "<u8")
        if int(numbers[0]) <= last or not (numbers[1:] > numbers[:-1]).all():
            raise FormatError("numbers do not ascend", path=file.path, offset=at, field="index")
        last = int(numbers[-1])


def _check_index(entries: npt.NDArray[np.void], header: Header, path: PathName) -> None:
    number, offset, length = (entries[name] for name in ("number", "offset", "length"))
    ends = header.length + np.cumsum(length, dtype=np.uint64)
    ok = bool((length >= _HEAD + layout.DIGEST).all())
    ok &= bool((length <= longest_segment(header)).all())
    ok &= bool((number[1:] > number[:-1]).all() and (number < header.segments).all())
    if ok and entries.size:
        ok = int(offset[0]) == header.length and bool((offset[1:] == ends[:-1]).all())
        ok = ok and int(ends[-1]) == header.length + header.segments_length
    memory = int(entries["memory"].max()) if entries.size else 0
    ok = ok and memory == header.memory <= most_memory(header)
    if not ok or (not entries.size and header.segments_length):
        raise FormatError("the index contradicts itself or the header", path=path, field="index")


class PatchWriter:
    """Writes a patch; segments must come in order.

    Args:
        output: where to.
        header: all that is known before the first segment.
    """

    def __init__(self, output: AtomicOutput, header: Header) -> None:
        self._output, self._header = output, header
        self._end = header.length
        self._entries: dict[int, tuple[int, int, int, int]] = {}
        self._memory = 0
        self._started = 0

    def add(self, segment: Segment) -> None:
        """Add a segment."""
        record = segment.build()
        self._output.write_at(record, self._end)
        self._entries[segment.number] = (self._end, len(record), segment.memory, 0)
        for number in segment.references:
            *entry, users = self._entries[number]
            self._entries[number] = (entry[0], entry[1], entry[2], users + 1)
        self._end += len(record)
        if self._end - self._started >= _WRITEBACK:
            self._output.start_writeback(self._started, self._end - self._started)
            self._started = self._end
        self._memory = max(self._memory, segment.memory)

    def finish(self, target_digest: bytes) -> int:
        """Write index, footer and header.

        Returns:
            The patch's length, bytes.
        """
        header = self._header.finished(
            count=len(self._entries),
            length=self._end - self._header.length,
            memory=self._memory,
            target_digest=target_digest,
        ).build()
        rows = np.array([(number, *entry) for number, entry in self._entries.items()], layout.ENTRY)
        index = layout.Index.build(rows, count=rows.size)
        digest = blake3(header[-layout.DIGEST :] + index).digest()
        fields = {"index_offset": self._end, "index_length": len(index), "digest": digest}
        self._output.write_at(index + layout.Footer.build(fields), self._end)
        self._output.write_at(header, 0)
        return self._end + len(index) + _FOOTER
