"""A segment of a cluster patch: what becomes of one range of the target."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from .. import declare
from ..errors import CorruptImageError, FormatError, PathName
from ..extents import Offsets
from ..units import ceil_div
from . import layout
from .codec import Buffer, CodecError, decode, encode_small
from .header import Header
from .layout import Codec, OperationKind, Space

_HEAD: int = layout.SegmentHead.sizeof()
_ROW = layout.OPERATION.itemsize
_RANGE = layout.RANGE.itemsize

Rows = npt.NDArray[np.void]


@dataclass(frozen=True)
class Segment:
    """A segment.

    Attributes:
        number: which: it covers the target from ``number`` times the segment size on.
        start, length: that range, bytes.
        operations: records of :data:`.layout.OPERATION`, ascending; starts are relative.
        ranges: records of :data:`.layout.RANGE`: the dictionary's parts, the base's first.
        references: numbers of the other segments that are needed, ascending.
        leaf_digests: BLAKE3 of each leaf of the whole range's content in the target.
        base_digest: BLAKE3 of the base's bytes that COPY_BASE operations and then the dictionary
            take, in order.
        codec: how the payload is coded.
        payload: the stored DATA.
        data_length, dictionary_length: bytes.
    """

    number: int
    start: int
    length: int
    operations: Rows
    ranges: Rows
    references: tuple[int, ...]
    leaf_digests: tuple[bytes, ...]
    base_digest: bytes
    codec: int
    payload: Buffer
    data_length: int
    dictionary_length: int
    segment_size: int

    @property
    def tables_length(self) -> int:
        """The bytes that its tables and lists take where they are stored plain."""
        lists = _HEAD + len(self.leaf_digests) * layout.DIGEST + len(self.references) * 8
        return self.operations.size * _ROW + self.ranges.size * _RANGE + lists

    @property
    def memory(self) -> int:
        """The bytes that decoding it takes, besides the base's own."""
        tables = self.operations.size * _ROW + self.ranges.size * _RANGE
        parts = self.length + self.data_length + self.dictionary_length + tables
        return parts + len(self.references) * self.segment_size

    def of_kind(self, kind: OperationKind) -> Rows:
        """Return the operations of one kind."""
        rows: Rows = self.operations[self.operations["kind"] == kind]
        return rows

    def of_space(self, space: Space) -> Rows:
        """Return the dictionary's parts of one space."""
        rows: Rows = self.ranges[self.ranges["space"] == space]
        return rows

    def of_base(self) -> tuple[Offsets, Offsets]:
        """Return where what it takes from the base begins there, and how long each range is.

        They are in the order that ``base_digest`` is of: copies, then the dictionary's parts.
        """
        copies, parts = self.of_kind(OperationKind.COPY_BASE), self.of_space(Space.BASE)
        start = np.concatenate([copies["source"], parts["start"]]).astype(np.int64)
        return start, np.concatenate([copies["length"], parts["length"]]).astype(np.int64)

    def build(self) -> bytes:
        """Return the segment as it is stored."""
        directory = layout.Directory.build({"operations": self.operations, "ranges": self.ranges})
        codec, stored = encode_small(directory)
        lists = layout.SegmentLists.build(
            {"leaf_digests": self.leaf_digests, "referenced": self.references},
            leaves=len(self.leaf_digests),
            references=len(self.references),
        )
        length = _HEAD + len(lists) + len(stored) + len(self.payload) + layout.DIGEST
        head = layout.SegmentHead.build(
            {
                "length": length,
                "number": self.number,
                "operations": self.operations.size,
                "ranges": self.ranges.size,
                "directory_length": len(stored),
                "payload_length": len(self.payload),
                "data_length": self.data_length,
                "dictionary_length": self.dictionary_length,
                "memory": self.memory,
                "directory_codec": codec,
                "payload_codec": self.codec,
                "leaves": len(self.leaf_digests),
                "references": len(self.references),
                "base_digest": self.base_digest,
            }
        )
        record = b"".join([head, lists, stored, self.payload])
        return record + blake3(record).digest()


def most_memory(header: Header) -> int:
    """Return what no segment of a patch may exceed in memory, bytes."""
    tables = layout.MAX_OPERATIONS * _ROW + layout.MAX_RANGES * _RANGE
    segments = 2 + layout.MAX_REFERENCES
    return segments * header.segment_size + layout.MAX_DICTIONARY + tables


def longest_segment(header: Header) -> int:
    """Return what no segment of a patch may exceed in length, bytes."""
    tables = layout.MAX_OPERATIONS * _ROW + layout.MAX_RANGES * _RANGE
    lists = header.segment_size // layout.LEAF * layout.DIGEST + layout.MAX_REFERENCES * 8
    return _HEAD + lists + tables + header.segment_size + layout.DIGEST


def check_record(record: bytes, *, path: PathName, offset: int) -> memoryview:
    """Hold a stored segment against its digest, and return it without that.

    Raises:
        CorruptImageError: it is damaged.
    """
    body = memoryview(record)[: -layout.DIGEST]
    if blake3(body).digest() != record[-layout.DIGEST :]:
        raise CorruptImageError("a segment is damaged", path=path, offset=offset, field="segment")
    return body


def parse_segment(record: bytes, header: Header, *, path: PathName, offset: int) -> Segment:
    """Read a segment and check all that can be checked without its content.

    Raises:
        CorruptImageError: it is damaged.
        FormatError: it contradicts itself, the header or a limit.
    """
    return _Parser(header, path, offset).parse(record)


class _Parser:
    def __init__(self, header: Header, path: PathName, offset: int) -> None:
        self._header, self._path, self._offset = header, path, offset

    def _require(self, condition: object, what: str, field: str) -> None:
        if not condition:
            raise FormatError(what, path=self._path, offset=self._offset, field=f"segment.{field}")

    def parse(self, record: bytes) -> Segment:
        body = check_record(record, path=self._path, offset=self._offset)
        head = declare.parse(
            layout.SegmentHead,
            bytes(body[:_HEAD]),
            path=self._path,
            offset=self._offset,
            name="segment.",
        )
        self._check_head(head, len(record))
        lists_length = head.leaves * layout.DIGEST + head.references * 8
        lists = declare.parse(
            layout.SegmentLists,
            bytes(body[_HEAD : _HEAD + lists_length]),
            path=self._path,
            offset=self._offset + _HEAD,
            name="segment.",
            leaves=head.leaves,
            references=head.references,
        )
        at = _HEAD + lists_length
        directory = self._directory(head, body[at : at + head.directory_length])
        size = self._header.segment_size
        segment = Segment(
            number=head.number,
            start=head.number * size,
            length=min(size, self._header.target_size - head.number * size),
            operations=directory.operations,
            ranges=directory.ranges,
            references=tuple(lists.referenced),
            leaf_digests=tuple(lists.leaf_digests),
            base_digest=head.base_digest,
            codec=head.payload_codec,
            payload=body[at + head.directory_length :],
            data_length=head.data_length,
            dictionary_length=head.dictionary_length,
            segment_size=size,
        )
        self._check(segment)
        self._require(segment.memory == head.memory, "memory is not what it takes", "memory")
        return segment

    def _check_head(self, head: Any, length: int) -> None:
        size = self._header.segment_size
        self._require(head["length"] == length, "is of another length", "length")
        self._require(head["number"] < self._header.segments, "is beyond the target", "number")
        covered = min(size, self._header.target_size - head["number"] * size)
        limits = {
            "operations": layout.MAX_OPERATIONS,
            "ranges": layout.MAX_RANGES,
            "references": layout.MAX_REFERENCES,
            "data_length": covered,
            "directory_length": head["operations"] * _ROW + head["ranges"] * _RANGE,
            "payload_length": head["data_length"],
            "dictionary_length": layout.MAX_DICTIONARY,
        }
        for name, limit in limits.items():
            self._require(head[name] <= limit, f"{name} {head[name]} is above {limit}", name)
        self._require(head["operations"], "has no operations", "operations")
        leaves = ceil_div(covered, layout.LEAF)
        self._require(head["leaves"] == leaves, "has another number of leaves", "leaves")
        parts = _HEAD + leaves * layout.DIGEST + head["references"] * 8 + layout.DIGEST
        parts += head["directory_length"] + head["payload_length"]
        self._require(parts == length, "its parts do not make up its length", "length")

    def _directory(self, head: Any, stored: Buffer) -> Any:
        length = head.operations * _ROW + head.ranges * _RANGE
        known = head.directory_codec in (Codec.STORED, Codec.ZSTD)
        self._require(known, "codec not known", "directory_codec")
        try:
            data = decode(head.directory_codec, stored, length)
        except CodecError as error:
            raise FormatError(
                f"the directory {error}", path=self._path, offset=self._offset, field="directory"
            ) from error
        return declare.parse(
            layout.Directory,
            bytes(data),
            path=self._path,
            offset=self._offset,
            name="segment.",
            operations=head.operations,
            ranges=head.ranges,
        )

    def _check(self, segment: Segment) -> None:
        self._check_references(segment)
        self._check_operations(segment)
        self._check_dictionary(segment)

    def _check_references(self, segment: Segment) -> None:
        numbers = segment.references
        ok = all(a < b for a, b in itertools.pairwise((*numbers, segment.number)))
        self._require(ok, "references are not ascending, or not to segments before", "references")

    def _check_operations(self, segment: Segment) -> None:
        rows = segment.operations
        start, length = (rows[name].astype(np.int64) for name in ("start", "length"))
        kind, source = rows["kind"], rows["source"]
        ok = bool((length > 0).all()) and bool((start[1:] >= (start + length)[:-1]).all())
        ok = ok and int(start[-1] + length[-1]) <= segment.length
        self._require(ok, "operations are empty, overlap or leave the segment", "operations")
        self._require((kind <= max(OperationKind)).all(), "kind not known", "operations")
        here = (kind == OperationKind.ZERO) | (kind == OperationKind.DATA)
        self._require(not source[here].any(), "has a source without need", "operations")
        data = int(length[kind == OperationKind.DATA].sum())
        self._require(data == segment.data_length, "has other DATA than it says", "data_length")
        for copied, space in (
            (OperationKind.COPY_BASE, Space.BASE),
            (OperationKind.COPY_TARGET, Space.TARGET),
        ):
            mask = kind == copied
            self._check_sources(segment, source[mask], length[mask], space, "operations")

    def _check_dictionary(self, segment: Segment) -> None:
        rows, codec = segment.ranges, segment.codec
        known = codec in (Codec.STORED, Codec.LZ4, Codec.ZSTD)
        self._require(known, f"codec {codec} is not known", "payload_codec")
        plain = segment.data_length == len(segment.payload)
        self._require(codec != Codec.STORED or plain, "is not all there", "payload_length")
        total = int(rows["length"].astype(np.int64).sum())
        ok = total == segment.dictionary_length and (codec == Codec.ZSTD or not rows.size)
        ok = ok and bool((rows["length"] > 0).all()) and (not rows.size or total >= 8)
        self._require(ok, "the dictionary is not what it says", "dictionary_length")
        spaces = rows["space"]
        self._require((spaces <= max(Space)).all(), "space not known", "ranges")
        ordered = (spaces[1:] >= spaces[:-1]).all()
        self._require(ordered, "a range of the base behind one of the target", "ranges")
        for space in Space:
            part = segment.of_space(space)
            lengths = part["length"].astype(np.int64)
            self._check_sources(segment, part["start"], lengths, space, "ranges")

    def _check_sources(
        self,
        segment: Segment,
        start: npt.NDArray[np.uint64],
        length: npt.NDArray[np.int64],
        space: Space,
        field: str,
    ) -> None:
        """Hold that ranges lie in the base, or each in one segment that is referred to."""
        if not start.size:
            return
        size = self._header.base_size if space is Space.BASE else self._header.target_size
        inside = bool((start <= size).all())
        inside = inside and bool((start.astype(np.int64) <= size - length).all())
        self._require(inside, f"a range is outside of the {space.name.lower()}", field)
        if space is Space.TARGET:
            bits = np.uint64(self._header.segment_bits)
            first = start >> bits
            last = (start + length.astype(np.uint64) - np.uint64(1)) >> bits
            known = np.isin(first, np.array(segment.references, np.uint64))
            ok = bool((first == last).all() and known.all())
            self._require(ok, "a range of the target is not in one segment referred to", field)
