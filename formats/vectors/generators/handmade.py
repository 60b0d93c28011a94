"""Cluster patches put together by hand, right or wrong in just the way a vector asks for.

What is not given is made right, so that each vector breaks one rule only: leaf digests, digests,
lengths and counts follow from the operations, taken leniently (what lies behind a disk's end is
zeros, what overlaps is written twice).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import lz4.block
import zstandard
from blake3 import blake3

KIB, MIB = 1 << 10, 1 << 20
ZERO, DATA, COPY_BASE, COPY_TARGET = range(4)
BASE, TARGET = range(2)
STORED, LZ4, ZSTD = range(3)

_HEADER = {
    "magic": "8s", "version": "I", "header_length": "I", "incompatible_features": "Q",
    "compatible_features": "Q", "base_size": "Q", "target_size": "Q", "base_digest": "32s",
    "target_digest": "32s", "segment_bits": "I", "memory": "I", "segment_count": "Q",
    "segments_length": "Q",
}  # fmt: skip
_HEAD = {
    "magic": "4s", "length": "I", "number": "Q", "operations": "I", "ranges": "I",
    "directory_length": "I", "payload_length": "I", "data_length": "I", "dictionary_length": "I",
    "memory": "I", "directory_codec": "B", "payload_codec": "B", "leaves": "B", "references": "B",
    "base_digest": "32s",
}  # fmt: skip
_FOOTER = {"index_offset": "Q", "index_length": "Q", "digest": "32s", "magic": "8s"}

Fields = Mapping[str, Any]
Bytes = Callable[[bytes], bytes]


def digest(data: bytes) -> bytes:
    """Return BLAKE3."""
    return blake3(data).digest()


def noise(length: int, seed: str) -> bytes:
    """Return bytes without pattern: BLAKE3's extended output for the seed."""
    return blake3(seed.encode()).digest(length=length)


def text(length: int) -> bytes:
    """Return bytes that compress well."""
    return b"".join(b"line %d\n" % i for i in range(length // 6 + 1))[:length]


def root(content: bytes) -> bytes:
    """Return the root of the hash tree over a disk's content."""
    level = [digest(content[i : i + MIB]) for i in range(0, len(content), MIB)]
    while True:
        level = [digest(b"".join(level[i : i + 256])) for i in range(0, len(level) or 1, 256)]
        if len(level) == 1:
            return digest(len(content).to_bytes(8, "big") + level[0])


def flipped(data: bytes, at: int) -> bytes:
    """Return bytes in which the lowest bit of one is another."""
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


def part(content: bytes, start: int, length: int) -> bytes:
    """Return a range of a disk, with zeros behind its end."""
    return content[start : start + length].ljust(min(length, 64 * MIB), b"\0")


def columns(table: Sequence[Sequence[int]], types: str) -> bytes:
    """Return a table column by column."""
    return b"".join(
        struct.pack(f"<{len(table)}{kind}", *(row[i] for row in table))
        for i, kind in enumerate(types)
    )


def _pack(types: Mapping[str, str], values: Fields, other: Fields) -> bytes:
    unknown = other.keys() - types.keys()
    if unknown:
        raise ValueError(f"no such field: {unknown}")
    fields = {**values, **other}
    return struct.pack("<" + "".join(types.values()), *(fields[name] for name in types))


def lz4_block(data: bytes) -> bytes:
    """Return an lz4 block."""
    packed: bytes = lz4.block.compress(data, store_size=False)
    return packed


def zstd_frame(data: bytes, dictionary: bytes = b"", *, checksum: bool = False) -> bytes:
    """Return a zstd frame as the format wants it."""
    raw = zstandard.DICT_TYPE_RAWCONTENT
    compressor = zstandard.ZstdCompressor(
        level=3,
        dict_data=zstandard.ZstdCompressionDict(dictionary, raw) if dictionary else None,
        write_checksum=checksum,
        write_dict_id=False,
    )
    return compressor.compress(data)


def odd_frame(
    blocks: Sequence[tuple[int, bytes]],
    content_size: int | None,
    *,
    window_log: int = 20,
    dictionary_id: int | None = None,
) -> bytes:
    """Return a zstd frame of runs (length, byte), which may say of itself what is not so."""
    descriptor = (0xC0 if content_size is not None else 0) | (3 if dictionary_id else 0)
    head = struct.pack("<IBB", 0xFD2FB528, descriptor, (window_log - 10) << 3)
    if dictionary_id:
        head += struct.pack("<I", dictionary_id)
    if content_size is not None:
        head += struct.pack("<Q", content_size)
    body = b""
    for i, (length, byte) in enumerate(blocks):
        block = length << 3 | 1 << 1 | (i == len(blocks) - 1)
        body += block.to_bytes(3, "little") + byte
    return head + body


@dataclass(frozen=True)
class Base:
    """A base by rule.

    Attributes:
        size: bytes.
        seed: what its content is :func:`noise` of.
        flip: the offset of a byte whose lowest bit is another than by this rule.
    """

    size: int
    seed: str = "base"
    flip: int | None = None

    @property
    def content(self) -> bytes:
        """Return what it holds."""
        data = noise(self.size, self.seed)
        return data if self.flip is None else flipped(data, self.flip)


@dataclass
class Segment:
    """A segment.

    Attributes:
        number: which.
        operations: (start, length, kind, source) each.
        data: what DATA operations give, one behind the other.
        ranges: (start, length, space) each.
        references: numbers.
        codec, directory_codec: how payload and directory are stored.
        payload, directory: what is stored instead of what is right.
        leaf_digests: others than the right ones.
        head: fields that are other than right.
        damage: what becomes of it behind its digest.
    """

    number: int
    operations: Sequence[tuple[int, int, int, int]]
    data: bytes = b""
    ranges: Sequence[tuple[int, int, int]] = ()
    references: Sequence[int] = ()
    codec: int = STORED
    directory_codec: int = STORED
    payload: bytes | None = None
    directory: bytes | None = None
    leaf_digests: Sequence[bytes] | None = None
    head: Fields = field(default_factory=dict)
    damage: Bytes = bytes

    def change(self, base: bytes, target: bytearray, start: int) -> None:
        """Write what the operations give to the target."""
        used = 0
        for begin, length, kind, source in self.operations:
            if begin + length > len(target) or length > 4 * MIB:
                continue
            piece = bytes(length)
            if kind == DATA:
                piece, used = self.data[used : used + length].ljust(length, b"\0"), used + length
            elif kind == COPY_BASE:
                piece = part(base, source, length)
            elif kind == COPY_TARGET:
                piece = part(bytes(target[source : source + length]), 0, length)
            target[start + begin : start + begin + length] = piece

    def dictionary(self, base: bytes, target: bytes) -> bytes:
        """Return the dictionary."""
        return b"".join(part((base, target)[s & 1], at, length) for at, length, s in self.ranges)

    def _stored(self, dictionary: bytes) -> tuple[bytes, bytes]:
        directory = self.directory
        if directory is None:
            directory = columns(self.operations, "IIBQ") + columns(self.ranges, "QIB")
            if self.directory_codec == ZSTD:
                directory = zstd_frame(directory)
        payload = self.payload
        if payload is None:
            payload = self.data
            if self.codec == LZ4:
                payload = lz4_block(payload)
            elif self.codec == ZSTD:
                payload = zstd_frame(payload, dictionary)
        return directory, payload

    def _taken(self, base: bytes) -> bytes:
        copies = [(o[3], o[1]) for o in self.operations if o[2] == COPY_BASE]
        copies += [(row[0], row[1]) for row in self.ranges if row[2] == BASE]
        return b"".join(part(base, *each) for each in copies)

    def build(self, base: bytes, target: bytes, bits: int) -> tuple[bytes, int]:
        """Return the segment as it is stored, and the memory it says it takes."""
        start = self.number << bits
        covered = target[start : start + (1 << bits)]
        dictionary = self.dictionary(base, target)
        directory, payload = self._stored(dictionary)
        leaves = self.leaf_digests
        if leaves is None:
            leaves = [digest(covered[i : i + MIB]) for i in range(0, len(covered), MIB)]
        lists = b"".join(leaves) + columns([(n,) for n in self.references], "Q")
        length = 80 + len(lists) + len(directory) + len(payload) + 32
        memory = len(covered) + len(self.data) + len(dictionary) + 17 * len(self.operations)
        memory += 13 * len(self.ranges) + (len(self.references) << bits)
        values = {
            "magic": b"QSEG", "length": length, "number": self.number,
            "operations": len(self.operations), "ranges": len(self.ranges),
            "directory_length": len(directory), "payload_length": len(payload),
            "data_length": len(self.data), "dictionary_length": len(dictionary),
            "memory": memory, "directory_codec": self.directory_codec,
            "payload_codec": self.codec, "leaves": len(leaves),
            "references": len(self.references), "base_digest": digest(self._taken(base)),
        }  # fmt: skip
        record = _pack(_HEAD, values, self.head) + lists + directory + payload
        return self.damage(record + digest(record)), self.head.get("memory", memory)


@dataclass
class Patch:
    """A patch.

    Attributes:
        base: what it is made from.
        target_size: bytes.
        segments: in the order in which they are stored.
        segment_bits: as in the header.
        sections: (type, data) each, or bytes as they are to be stored.
        header, footer: fields that are other than right.
        entry: what becomes of a row of the index, before its digest.
        header_damage, index_damage: what becomes of header and index behind their digests.
        damage: what becomes of the whole.
    """

    base: Base
    target_size: int
    segments: Sequence[Segment] = ()
    segment_bits: int = 20
    sections: Sequence[tuple[int, bytes] | bytes] = ()
    header: Fields = field(default_factory=dict)
    footer: Fields = field(default_factory=dict)
    entry: Callable[[list[int]], list[int]] = list
    header_damage: Bytes = bytes
    index_damage: Bytes = bytes
    damage: Bytes = bytes

    @property
    def target(self) -> bytes:
        """Return what the segments make of the base."""
        base = self.base.content
        target = bytearray(part(base, 0, self.target_size))
        target += bytes(self.target_size - len(target))
        for segment in self.segments:
            segment.change(base, target, segment.number << self.segment_bits)
        return bytes(target[: self.target_size])

    def _sections(self) -> bytes:
        parts = [
            each
            if isinstance(each, bytes)
            else struct.pack("<II", each[0], len(each[1])) + each[1] + bytes(-len(each[1]) % 8)
            for each in self.sections
        ]
        return b"".join(parts)

    def parts(self) -> tuple[bytes, bytes, bytes, bytes]:
        """Return header, segments, index and footer."""
        base, target, sections = self.base.content, self.target, self._sections()
        built = [each.build(base, target, self.segment_bits) for each in self.segments]
        records = b"".join(record for record, _ in built)
        rows: list[list[int]] = []
        header_length = 136 + len(sections) + 32
        offset = header_length
        for segment, (record, memory) in zip(self.segments, built, strict=True):
            users = sum(segment.number in other.references for other in self.segments)
            rows.append([segment.number, offset, len(record), memory, users])
            offset += len(record)
        values = {
            "magic": b"QCPATCH\n", "version": 1, "header_length": header_length,
            "incompatible_features": 0, "compatible_features": 0, "base_size": len(base),
            "target_size": self.target_size, "base_digest": root(base),
            "target_digest": root(target), "segment_bits": self.segment_bits,
            "memory": max((row[3] for row in rows), default=0), "segment_count": len(rows),
            "segments_length": len(records),
        }  # fmt: skip
        header = _pack(_HEADER, values, self.header) + sections
        index = columns([self.entry(row) for row in rows], "QQIII") if rows else b""
        values = {
            "index_offset": offset, "index_length": len(index),
            "digest": digest(digest(header) + index), "magic": b"QCPEND\r\n",
        }  # fmt: skip
        header = self.header_damage(header + digest(header))
        return header, records, self.index_damage(index), _pack(_FOOTER, values, self.footer)

    def build(self) -> bytes:
        """Return the patch."""
        return self.damage(b"".join(self.parts()))

    def sidecar(self) -> bytes:
        """Return its index as a file of its own."""
        header, _, index, footer = self.parts()
        return b"QCPINDX\n" + header + index + footer


@dataclass(frozen=True)
class Vector:
    """A test vector.

    Attributes:
        outcome: ``valid``, or the class of the error there must be: ``format``, ``unsupported``,
            ``corrupt``, ``base``.
        patch: the patch.
        base: what it is to be applied to; None, what it is made from.
        file: ``patch`` or ``sidecar``: what the vector holds.
    """

    outcome: str
    patch: Patch
    base: Base | None = None
    file: str = "patch"

    def build(self, about: str) -> bytes:
        """Return the vector's file: lines of text, an empty one, and the patch."""
        base = self.base or self.patch.base
        lines = {"about": " ".join(about.split()), "outcome": self.outcome, "file": self.file}
        lines["base"] = f"{base.size} {base.seed}"
        if base.flip is not None:
            lines["flip"] = str(base.flip)
        if self.outcome == "valid":
            lines["target"] = f"{self.patch.target_size} {digest(self.patch.target).hex()}"
        head = "".join(f"{name}: {value}\n" for name, value in lines.items())
        body = self.patch.sidecar() if self.file == "sidecar" else self.patch.build()
        return head.encode() + b"\n" + body
