#!/usr/bin/env python3
"""Apply a cluster patch to a raw base in one pass: apply.py PATCH BASE.raw OUT.raw (PATCH: or -).

Written from cluster-patch.md alone, to show that the document is enough; simple, not fast.
"""

import io
import os
import struct
import sys
import tempfile
from types import SimpleNamespace
from typing import IO, Any

import lz4.block
import zstandard
from blake3 import blake3

LEAF, FANOUT, SECTOR, MAX_SIZE, MAX_HEADER = 1 << 20, 256, 512, (1 << 63) - 1, 64 << 10
MAX_ROWS, MAX_REFERENCES, MAX_DICTIONARY, MAX_WINDOW = 64 << 10, 64, 16 << 20, 32 << 20
DATA, COPY_BASE, COPY_TARGET, BASE, TARGET, STORED, LZ4, ZSTD = 1, 2, 3, 0, 1, 0, 1, 2
HEADER = "magic:8s version:I length:I must:Q may:Q base_size:Q size:Q base_root:32s root:32s bits:I"
HEADER += " memory:I count:Q total:Q"
HEAD = "magic:4s length:I number:Q operations:I ranges:I directory:I payload:I data:I dictionary:I"
HEAD += " memory:I directory_codec:B codec:B leaves:B references:B base_digest:32s"
FOOTER = "at:Q size:Q digest:32s magic:8s"


def need(condition: object, what: str, kind: str = "format") -> None:
    """Refuse the patch unless a condition holds, with a class of the document's."""
    if not condition:
        raise SystemExit(f"apply.py: {kind}: {what}")


def digest(*parts: bytes | bytearray) -> bytes:
    """Return BLAKE3 of parts, one behind the other."""
    return blake3(b"".join(parts)).digest()


def take(patch: IO[bytes], length: int) -> bytes:
    """Return the patch's next bytes; the caller has held their number against a limit."""
    data = patch.read(length)
    need(len(data) == length, "the patch ends early")
    return data


def fields(patch: IO[bytes], declared: str) -> Any:
    """Take a structure: its fields, and all of its bytes."""
    names, types = zip(*(each.split(":") for each in declared.split()), strict=True)
    layout = struct.Struct("<" + "".join(types))
    raw = take(patch, layout.size)
    return SimpleNamespace(**dict(zip(names, layout.unpack(raw), strict=True)), raw=raw)


def rows(data: bytes, types: str, count: int) -> list[tuple[int, ...]]:
    """Return the rows of a table that is stored column by column."""
    values = struct.unpack("<" + "".join(f"{count}{t}" for t in types), data)
    return [values[i::count] for i in range(count)]


def read(disk: IO[bytes], start: int, length: int) -> bytes:
    """Return a range of a disk; zeros where it has ended."""
    disk.seek(start)
    return disk.read(length).ljust(length, b"\0")


def root(disk: IO[bytes], size: int) -> bytes:
    """Return the root of a disk's hash tree."""
    level = [digest(read(disk, at, min(LEAF, size - at))) for at in range(0, size, LEAF)]
    while True:
        level = [digest(*level[i : i + FANOUT]) for i in range(0, len(level) or 1, FANOUT)]
        if len(level) == 1:
            return digest(size.to_bytes(8, "big"), level[0])


def decode(codec: int, data: bytes, length: int, dictionary: bytes, kind: str) -> bytes:
    """Return what is stored, which must decode to a length."""
    try:
        if codec == LZ4:
            data = lz4.block.decompress(data, uncompressed_size=length)
        elif codec == ZSTD:
            frame = zstandard.get_frame_parameters(data)
            fits = frame.content_size == length and frame.window_size <= MAX_WINDOW
            need(fits and not frame.dict_id and data[:4] == b"\x28\xb5\x2f\xfd", "frame", kind)
            prefix = zstandard.ZstdCompressionDict(dictionary, zstandard.DICT_TYPE_RAWCONTENT)
            decoder = zstandard.ZstdDecompressor(dict_data=prefix if dictionary else None)
            data = decoder.decompress(data, read_across_frames=False, allow_extra_data=False)
    except (lz4.block.LZ4BlockError, zstandard.ZstdError, ValueError) as error:
        need(False, f"cannot be decoded: {error}", kind)
    need(len(data) == length, "decodes to another length", kind)
    return data


def read_segment(patch: IO[bytes], h: Any, stored: dict[int, Any]) -> Any:
    """Take a segment, and check all but what it takes, its payload and its result."""
    s = fields(patch, HEAD)
    s.start, tables = s.number << h.bits, (s.operations * 17, s.ranges * 13)
    s.covered, end = min(1 << h.bits, h.size - s.start), 0
    at = 32 * s.leaves + 8 * s.references
    need(s.magic == b"QSEG" and next(reversed(stored), -1) < s.number, "magic or number")
    need(s.covered > 0 and s.leaves == -(-s.covered // LEAF), "number or leaves")
    need(0 < s.operations <= MAX_ROWS and s.ranges <= MAX_ROWS, "operations or ranges")
    need(s.references <= MAX_REFERENCES and s.dictionary <= MAX_DICTIONARY, "above a limit")
    need(s.directory <= sum(tables) and s.payload <= s.data <= s.covered, "above a limit")
    need(s.directory_codec in (STORED, ZSTD) and s.codec in (STORED, LZ4, ZSTD), "codec")
    need(s.length == len(s.raw) + at + s.directory + s.payload + 32, "length")
    body = take(patch, s.length - len(s.raw) - 32)
    need(digest(s.raw, body) == take(patch, 32), f"segment {s.number} is damaged", "corrupt")
    memory = s.covered + s.data + s.dictionary + sum(tables) + (s.references << h.bits)
    need(s.memory == memory, "memory")
    s.leaf_digests, s.payload = body[: 32 * s.leaves], body[at + s.directory :]
    s.listed = struct.unpack_from(f"<{s.references}Q", body, 32 * s.leaves)
    need(sorted({*s.listed, s.number}) == [*s.listed, s.number], "references do not ascend")
    need(all(n in stored and stored[n] <= {*s.listed} for n in s.listed), "not stored or closed")
    table = decode(s.directory_codec, body[at:][: s.directory], sum(tables), b"", "format")
    s.operations = rows(table[: tables[0]], "IIBQ", s.operations)
    s.ranges = rows(table[tables[0] :], "QIB", s.ranges)
    s.copies = [(o[3], o[1], o[2] - COPY_BASE) for o in s.operations if o[2] >= COPY_BASE]
    for start, length, kind, source in s.operations:
        need(length and end <= start <= s.covered - length, "operations overlap or leave")
        need(kind <= COPY_TARGET and (kind >= COPY_BASE or not source), "kind or source")
        end = start + length
    for start, length, space in s.copies + s.ranges:
        limit = ((start >> h.bits) + 1) << h.bits if space else h.base_size
        need(length and space <= TARGET and start + length <= limit, "takes from outside")
        need(space == BASE or start >> h.bits in s.listed, "takes from what is not referred to")
    need([r[2] for r in s.ranges] == sorted(r[2] for r in s.ranges), "the base's ranges go first")
    need(sum(o[1] for o in s.operations if o[2] == DATA) == s.data, "data_length")
    need(sum(length for _, length, _ in s.ranges) == s.dictionary, "dictionary_length")
    need(not s.ranges or (s.codec == ZSTD and s.dictionary >= 8), "ranges without use")
    need(s.codec != STORED or len(s.payload) == s.data, "payload_length")
    return s


def result(s: Any, *disks: IO[bytes]) -> bytearray:
    """Return the target's content in a segment's range, checked."""
    taken = [(space, read(disks[space], start, n)) for start, n, space in s.copies + s.ranges]
    used = digest(*(part for space, part in taken if space == BASE))
    need(used == s.base_digest, f"what segment {s.number} takes from the base is other", "base")
    dictionary = b"".join(part for _, part in taken[len(s.copies) :])
    data = io.BytesIO(decode(s.codec, s.payload, s.data, dictionary, "corrupt"))
    content = bytearray(read(disks[BASE], s.start, s.covered))
    for start, length, kind, _ in s.operations:
        piece = data.read(length) if kind == DATA else bytes(length)
        content[start : start + length] = taken.pop(0)[1] if kind >= COPY_BASE else piece
    leaves = (digest(content[at : at + LEAF]) for at in range(0, s.covered, LEAF))
    need(b"".join(leaves) == s.leaf_digests, f"the result of segment {s.number}", "corrupt")
    return content


def apply(patch: IO[bytes], base: IO[bytes], out: IO[bytes]) -> None:
    """Check header and base; write the base's content, then each segment's; check the whole."""
    h = fields(patch, HEADER)
    need(h.magic == b"QCPATCH\n", "is not a cluster patch")
    need(h.version == 1, f"version {h.version}", "unsupported")
    need(len(h.raw) + 32 <= h.length <= MAX_HEADER, "header_length")
    sections, h.digest = take(patch, h.length - len(h.raw) - 32), take(patch, 32)
    need(digest(h.raw, sections) == h.digest, "the header is damaged", "corrupt")
    need(not h.must, f"incompatible features {h.must:#x}", "unsupported")
    while sections:
        kind, length = struct.unpack("<II", sections[:8].ljust(8, b"\xff"))
        need(8 + length + -length % 8 <= len(sections), "a section leaves the header")
        need(kind < 1 << 31, f"section {kind:#x} is not known", "unsupported")
        sections = sections[8 + length + -length % 8 :]
    need(all(n <= MAX_SIZE and n % SECTOR == 0 for n in (h.base_size, h.size)), "sizes")
    need(20 <= h.bits <= 22 and h.count <= -(-h.size >> h.bits), "segment_bits, segment_count")
    size = -(-base.seek(0, os.SEEK_END) // SECTOR) * SECTOR
    need(size == h.base_size and root(base, size) == h.base_root, "not the patch's base", "base")
    for start in range(0, min(h.size, size), LEAF):
        out.write(read(base, start, min(LEAF, h.size - start)))
    out.truncate(h.size)
    end, entries, stored = h.length, [], dict[int, Any]()
    for _ in range(h.count):
        s = read_segment(patch, h, stored)
        content, stored[s.number] = result(s, base, out), {*s.listed}
        out.seek(s.start)
        out.write(content)
        entries.append((s.number, end, s.length, s.memory))
        end += s.length
    table, f = take(patch, h.count * struct.calcsize("<QQIII")), fields(patch, FOOTER)
    need(f.magic == b"QCPEND\r\n" and not patch.read(1), "no footer, or not at the end")
    need((f.at, f.size, f.digest) == (end, len(table), digest(h.digest, table)), "index", "corrupt")
    need([row[:4] for row in rows(table, "QQIII", h.count)] == entries, "index and segments")
    memory = max((row[3] for row in entries), default=0)
    need((end - h.length, memory) == (h.total, h.memory), "segments_length or memory")
    need(root(out, h.size) == h.root, "the target is not what it should be", "corrupt")


if __name__ == "__main__":
    try:
        with (
            sys.stdin.buffer if sys.argv[1] == "-" else open(sys.argv[1], "rb") as patch,
            open(sys.argv[2], "rb") as base,
            tempfile.NamedTemporaryFile(dir=os.path.dirname(sys.argv[3]) or ".") as out,
        ):
            apply(patch, base, out.file)
            out.flush()
            os.link(out.name, sys.argv[3])
    except (OSError, IndexError) as problem:
        sys.exit(f"apply.py: {problem}")
