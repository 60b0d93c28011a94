"""Cluster patches: made and applied in-process, taken apart, and sealed again after a change."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
from blake3 import blake3

from qcowdelta import (
    AtomicOutput,
    ImageDelta,
    ImageOptions,
    PatchFile,
    PatchOptions,
    apply_patch,
    open_image,
    write_patch,
)
from qcowdelta.fullimage import Format
from qcowdelta.hashtree import TreeHasher
from qcowdelta.patch import layout
from qcowdelta.patch.decode import SegmentDecoder
from qcowdelta.patch.effort import Effort
from qcowdelta.patch.layout import DIGEST, Codec, OperationKind, Space

Entries: TypeAlias = npt.NDArray[np.void]

KIB = 1 << 10
MIB = 1 << 20
BLOCK = 4 * KIB
_FIXED: int = layout.Header.sizeof()
_HEAD: int = layout.SegmentHead.sizeof()


def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Watch decoders: the list gets each segment that is decoded, by its place in the index."""
    places: list[int] = []
    real = SegmentDecoder._decode

    def spy(self: SegmentDecoder, at: int) -> memoryview:
        places.append(at)
        return real(self, at)

    monkeypatch.setattr(SegmentDecoder, "_decode", spy)
    return places


def make(
    old: Path, new: Path, out: Path, effort: Effort = "default", threads: int | None = None
) -> Path:
    """Write the patch that turns OLD into NEW."""
    with open_image(old) as a, open_image(new) as b, AtomicOutput(out) as output:
        write_patch(ImageDelta(a, b, granularity=BLOCK), output, PatchOptions(effort, threads))
    return out


def apply(patch: Path, base: Path, out: Path, fmt: Format = "qcow2") -> Path:
    """Write the image that a patch makes of its base."""
    apply_patch(PatchFile.open(patch), open_image(base), out, ImageOptions(fmt))
    return out


# --- taken apart ---------------------------------------------------------------------------------


@dataclass
class Part:
    """A segment taken apart; what is None is worked out again when it is sealed."""

    fields: dict[str, Any]
    leaf_digests: list[bytes]
    referenced: list[int]
    operations: Any
    ranges: Any
    payload: bytes
    directory: bytes | None = None
    set: dict[str, Any] = field(default_factory=dict)
    """Fields of the head as they are to be, right or wrong."""

    def of_kind(self, kind: OperationKind) -> Any:
        """Its operations of one kind."""
        return self.operations[self.operations["kind"] == kind]

    def build(self) -> bytes:
        """The segment as it is stored, with its digest."""
        plain = layout.Directory.build({"operations": self.operations, "ranges": self.ranges})
        directory = plain if self.directory is None else self.directory
        lists = layout.SegmentLists.build(
            {"leaf_digests": self.leaf_digests, "referenced": self.referenced},
            leaves=len(self.leaf_digests),
            references=len(self.referenced),
        )
        found = {
            **self.fields,
            "operations": len(self.operations),
            "ranges": len(self.ranges),
            "directory_length": len(directory),
            "payload_length": len(self.payload),
            "leaves": len(self.leaf_digests),
            "references": len(self.referenced),
            "length": _HEAD + len(lists) + len(directory) + len(self.payload) + DIGEST,
        }
        if self.directory is None:
            found["directory_codec"] = Codec.STORED
        found["memory"] = (
            self.fields["covered"]
            + found["data_length"]
            + found["dictionary_length"]
            + len(plain)
            + len(self.referenced) * self.fields["segment_size"]
        )
        found |= self.set
        head = layout.SegmentHead.build(found)
        record = b"".join([head, lists, directory, self.payload])
        self.fields["memory"] = found["memory"]
        self.fields["length"] = found["length"]
        return bytes(record + blake3(record).digest())


@dataclass
class Taken:
    """A patch taken apart: change what is to be wrong, and :meth:`seal` it."""

    header: dict[str, Any]
    sections: bytes
    parts: list[Part]
    set_header: dict[str, Any] = field(default_factory=dict)
    set_entries: Callable[[Entries], Entries] | None = None
    """Changes the index before it is sealed."""
    set_footer: dict[str, Any] = field(default_factory=dict)
    tail: bytes = b""

    def seal(self) -> bytes:
        """The patch with all lengths, memory and digests made right again, but for what is set."""
        length = _FIXED + len(self.sections) + DIGEST
        body, rows, at = b"", [], length
        records = [part.build() for part in self.parts]
        users: dict[int, int] = {}
        for part in self.parts:
            for number in part.referenced:
                users[number] = users.get(number, 0) + 1
        for part, record in zip(self.parts, records, strict=True):
            number = part.set.get("number", part.fields["number"])
            rows.append((number, at, len(record), part.fields["memory"], users.get(number, 0)))
            body += record
            at += len(record)
        entries = np.array(rows, layout.ENTRY)
        if self.set_entries is not None:
            entries = self.set_entries(entries)
        header = {
            **self.header,
            "header_length": length,
            "segment_count": len(entries),
            "segments_length": len(body),
            "memory": max((int(e["memory"]) for e in entries), default=0),
            **self.set_header,
        }
        head = layout.Header.build(header) + self.sections
        head += blake3(head).digest()
        index = layout.Index.build(entries, count=len(entries))
        footer = layout.Footer.build(
            {
                "index_offset": at,
                "index_length": len(index),
                "digest": blake3(head[-DIGEST:] + index).digest(),
                **self.set_footer,
            }
        )
        return bytes(head + body + index + footer + self.tail)


def take_apart(path: Path) -> Taken:
    """Parse a patch by its declarations alone."""
    data = path.read_bytes()
    header = dict(layout.Header.parse(data))
    end = header["header_length"] - DIGEST
    with PatchFile.open(path) as patch:
        segments = list(patch.segments())
        places = patch.entries["offset"].tolist()
    parts = []
    for segment, at in zip(segments, places, strict=True):
        fields = dict(layout.SegmentHead.parse(data[at : at + _HEAD]))
        fields |= {"covered": segment.length, "segment_size": segment.segment_size}
        parts.append(
            Part(
                fields,
                list(segment.leaf_digests),
                list(segment.references),
                segment.operations.copy(),
                segment.ranges.copy(),
                bytes(segment.payload),
            )
        )
    return Taken(header, data[_FIXED:end], parts)


def resealed(path: Path, out: Path, change: Callable[[Taken], None]) -> Path:
    """Write a changed copy of a patch, with its digests made right again."""
    taken = take_apart(path)
    change(taken)
    out.write_bytes(taken.seal())
    return out


def reseal(original: bytes, changed: bytes) -> bytes:
    """Changed bytes of a patch with all digests, at their old places, made right again."""
    data = bytearray(changed)
    header = layout.Header.parse(original)
    end = header.header_length

    def seal(start: int, stop: int) -> None:
        data[stop - DIGEST : stop] = blake3(data[start : stop - DIGEST]).digest()

    seal(0, end)
    at = end
    while at < end + header.segments_length:
        length = layout.SegmentHead.parse(original[at:]).length
        seal(at, at + length)
        at += length
    footer = len(data) - layout.Footer.sizeof()
    digest = blake3(bytes(data[end - DIGEST : end]) + bytes(data[at:footer])).digest()
    data[footer + 16 : footer + 16 + DIGEST] = digest
    return bytes(data)


# --- made up -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rich:
    """A small pair whose patch has all that a patch can have."""

    old: Path
    new: Path
    patch: Path
    content: bytes


def rich_pair(folder: Path) -> Rich:
    """A pair of a few MiB, both raw, and its patch; what it has is asserted.

    In NEW lie, each in its segment: data that is nowhere else and comes again later, shifted; data
    that moved; data that became zeros; data like OLD's but for a few bytes; noise; a longer end.
    """
    noise = np.random.default_rng(3)

    def random(length: int) -> bytes:
        return noise.bytes(length)

    def text(length: int) -> bytes:
        words = [noise.bytes(5) for _ in range(200)]
        pick = noise.integers(0, len(words), length // 5 + 1)
        return b"".join(words[i] for i in pick)[:length]

    old = bytearray(random(256 * KIB) + text(768 * KIB) + bytes(MIB) + random(MIB) + text(MIB))
    new = bytearray(old)
    unknown, like = random(64 * KIB), text(96 * KIB)
    new[0 : 64 * KIB] = unknown + b""
    new[64 * KIB : 128 * KIB] = bytes(64 * KIB)  # ZERO
    new[128 * KIB : 160 * KIB] = old[2 * MIB : 2 * MIB + 32 * KIB]  # COPY_BASE
    new[MIB + 8 * KIB : MIB + 104 * KIB] = like
    new[MIB + 256 * KIB : MIB + 320 * KIB] = unknown  # COPY_TARGET
    for at in range(2 * MIB, 2 * MIB + 128 * KIB, 1000):  # coded against the base
        new[at] ^= 0x55
    for at in range(0, len(like), 1500):  # coded against the target
        new[3 * MIB + 300 * KIB + at] = 1
    altered = bytearray(like)
    for at in range(100, len(altered), 1700):
        altered[at] ^= 0xFF
    new[3 * MIB + 512 * KIB : 3 * MIB + 608 * KIB] = altered
    new += text(512 * KIB)[: 300 * KIB] + random(20 * KIB) + bytes(1024)
    paths = folder / "rich-old.raw", folder / "rich-new.raw"
    paths[0].write_bytes(old)
    paths[1].write_bytes(new)
    patch = make(*paths, folder / "rich.qcpatch")
    assert_rich(patch)
    return Rich(*paths, patch, bytes(new))


def assert_rich(path: Path) -> None:
    """Assert that a patch has every kind of operation, dictionaries of both spaces, references."""
    with PatchFile.open(path) as patch:
        segments = list(patch.segments())
    kinds = {int(kind) for s in segments for kind in s.operations["kind"]}
    assert kinds == set(map(int, OperationKind))
    assert {int(space) for s in segments for space in s.ranges["space"]} == set(map(int, Space))
    assert len(segments) >= 4
    assert any(s.references for s in segments)
    assert {int(s.codec) for s in segments} >= {Codec.ZSTD}
    assert any(int(s.operations["length"].sum()) < s.length for s in segments)


def _sealed_index(head: bytes, rows: list[tuple[int, ...]], at: int) -> bytes:
    index: bytes = layout.Index.build(np.array(rows, layout.ENTRY), count=len(rows))
    digest = blake3(head[-DIGEST:] + index).digest()
    fields = {"index_offset": at, "index_length": len(index), "digest": digest}
    return index + bytes(layout.Footer.build(fields))


def _sealed_header(taken: Taken, **fields: int) -> bytes:
    length = _FIXED + len(taken.sections) + DIGEST
    head = layout.Header.build({**taken.header, "header_length": length, **fields})
    head += taken.sections
    return bytes(head + blake3(head).digest())


def with_a_hole_as_segment(path: Path, out: Path, length: int) -> None:
    """Write a sparse patch that consists of one segment, which is a hole of so many bytes."""
    head = _sealed_header(take_apart(path), segment_count=1, segments_length=length, memory=MIB)
    with out.open("wb") as file:
        file.write(head)
        file.seek(len(head) + length)
        at = len(head) + length
        file.write(_sealed_index(head, [(0, len(head), length, MIB, 0)], at))


def with_a_hole_as_index(path: Path, out: Path, length: int) -> None:
    """Write a sparse patch whose index is a hole of so many bytes; its target is large enough."""
    count = length // layout.ENTRY.itemsize
    head = _sealed_header(
        take_apart(path), segment_count=count, segments_length=0, target_size=1 << 60, memory=0
    )
    fields = {"index_offset": len(head), "index_length": count * layout.ENTRY.itemsize}
    with out.open("wb") as file:
        file.write(head)
        file.seek(len(head) + count * layout.ENTRY.itemsize)
        file.write(layout.Footer.build({**fields, "digest": bytes(DIGEST)}))


def chain(out: Path, count: int) -> bytes:
    """Write a patch of an empty base, each of whose segments copies all of the one before it.

    Returns:
        The content of each segment.
    """
    content = b"chain" * (MIB // 5) + b"!"
    digest = blake3(content).digest()
    base = blake3(b"").digest()
    parts = []
    for number in range(count):
        row = (0, MIB, OperationKind.COPY_TARGET, (number - 1) * MIB)
        fields = {
            "number": number, "data_length": 0, "dictionary_length": 0, "covered": MIB,
            "segment_size": MIB, "payload_codec": 0, "base_digest": base,
        }  # fmt: skip
        if number == 0:
            row = (0, MIB, OperationKind.DATA, 0)
            fields["data_length"] = MIB
        operations = np.array([row], layout.OPERATION)
        part = Part(
            fields, [digest], [number - 1] if number else [], operations,
            np.empty(0, layout.RANGE), b"" if number else content,
        )  # fmt: skip
        parts.append(part)
    tree = TreeHasher(count * MIB)
    for number in range(count):
        tree.add(number, digest)
    header = {
        "version": layout.VERSION, "incompatible_features": 0, "compatible_features": 0,
        "base_size": 0, "target_size": count * MIB, "base_digest": TreeHasher(0).root(),
        "target_digest": tree.root(), "segment_bits": 20,
    }  # fmt: skip
    out.write_bytes(Taken(header, b"", parts).seal())
    return content


def flip(data: bytes, offset: int, bits: int) -> bytes:
    """The data with some bits of one byte changed."""
    return data[:offset] + bytes([data[offset] ^ bits]) + data[offset + 1 :]


def nothing_but(folder: Path, names: Iterable[str]) -> None:
    """Assert what lies in a folder, hidden files included."""
    assert sorted(os.listdir(folder)) == sorted(names)
