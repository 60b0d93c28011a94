"""Hostile and broken images: a hand-built qcow2, and a named generator for each fault.

A generator makes one case in a folder and returns its main image. It is registered with the error
it must end in and with the first operation that must see it: `header` (so every operation fails),
`info` (what a diff has no need of), `open` (a file it names, the L1 table), `diff` (only reading
finds it) or `check`.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import zstandard

from qcowdelta.errors import (
    CorruptImageError,
    EncryptedImageError,
    FormatError,
    PolicyError,
    QcowDeltaError,
    UnsupportedFeatureError,
)

Stage = Literal["header", "info", "open", "diff", "check"]
Maker = Callable[[Path], Path]

SECONDS = 5.0
MEMORY = 512 << 20

COPIED, COMPRESSED, ZERO = 1 << 63, 1 << 62, 1
EXTERNAL, ZSTD_BIT, EXTENDED = 1 << 2, 1 << 3, 1 << 4
BITMAPS_BIT, RAW_EXTERNAL = 1, 2
BACKING_FORMAT, FEATURE_NAMES, BITMAPS, LUKS, DATA_FILE = (
    0xE2792ACA, 0x6803F857, 0x23852875, 0x0537BE77, 0x44415441,
)  # fmt: skip
K64 = 1 << 16
MIB = 1 << 20

# Where and how each header field lies; its name is the specification's.
FIELDS = {
    "magic": (0, "I"),
    "version": (4, "I"),
    "backing_file_offset": (8, "Q"),
    "backing_file_size": (16, "I"),
    "cluster_bits": (20, "I"),
    "size": (24, "Q"),
    "crypt_method": (32, "I"),
    "l1_size": (36, "I"),
    "l1_table_offset": (40, "Q"),
    "refcount_table_offset": (48, "Q"),
    "refcount_table_clusters": (56, "I"),
    "nb_snapshots": (60, "I"),
    "snapshots_offset": (64, "Q"),
    "incompatible_features": (72, "Q"),
    "compatible_features": (80, "Q"),
    "autoclear_features": (88, "Q"),
    "refcount_order": (96, "I"),
    "header_length": (100, "I"),
    "compression_type": (104, "B"),
}
V2_END = 72

# Host clusters of a hand-built image. What a case adds goes to FREE and behind.
REFCOUNT_TABLE, REFCOUNT_BLOCK, L1, L2, DATA, FREE = 1, 2, 3, 4, 5, 8
CLUSTERS = 12


@dataclass(frozen=True)
class Handmade:
    """A small qcow2 image: one L2 table, refcounts of 16 bits, and whatever a case wants wrong.

    Attributes:
        l2: entries by guest cluster; with extended L2 entries a pair of words.
        blobs: bytes by host offset, written last.
        used: host clusters, besides those that `l2` maps, whose refcount is 1.
        header: header fields, as they are to be whatever the rest says.
        length: the file's length, where it is not CLUSTERS clusters.
    """

    version: int = 3
    cluster_bits: int = 16
    size: int = MIB
    extended: bool = False
    l2: Mapping[int, int | tuple[int, int]] = field(default_factory=dict)
    blobs: Mapping[int, bytes] = field(default_factory=dict)
    used: Sequence[int] = ()
    extensions: Sequence[tuple[int, bytes]] = ()
    backing: bytes | None = None
    header: Mapping[str, int] = field(default_factory=dict)
    length: int | None = None

    @property
    def cluster(self) -> int:
        return 1 << self.cluster_bits

    def at(self, cluster: int) -> int:
        """Where a host cluster begins."""
        return cluster << self.cluster_bits

    def write(self, path: Path) -> Path:
        with path.open("wb") as out:
            for offset, data in (*self._parts(), (0, self._header()), *self.blobs.items()):
                out.seek(offset)
                out.write(data)
            out.truncate(CLUSTERS * self.cluster if self.length is None else self.length)
        return path

    def _header(self) -> bytes:
        area = b"".join(
            struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)
            for kind, data in self.extensions
        ) + bytes(8)
        length = V2_END if self.version == 2 else 112
        values = {
            "magic": 0x514649FB,
            "version": self.version,
            "cluster_bits": self.cluster_bits,
            "size": self.size,
            "l1_size": 1,
            "l1_table_offset": self.at(L1),
            "refcount_table_offset": self.at(REFCOUNT_TABLE),
            "refcount_table_clusters": 1,
            "incompatible_features": EXTENDED if self.extended else 0,
            "refcount_order": 4,
            "header_length": length,
        }
        if self.backing is not None:
            values["backing_file_offset"] = length + len(area)
            values["backing_file_size"] = len(self.backing)
        values |= self.header
        header = bytearray(max(length, min(values["header_length"], self.cluster)))
        for name, value in values.items():
            offset, code = FIELDS[name]
            if offset < length:
                struct.pack_into(f">{code}", header, offset, value)
        end = (
            values["header_length"] if V2_END < values["header_length"] <= self.cluster else length
        )
        return (bytes(header[:end]) + area + (self.backing or b""))[: self.cluster]

    def _parts(self) -> list[tuple[int, bytes]]:
        block = self.at(REFCOUNT_BLOCK)
        entries = [*self.l2.items()]
        words = 2 if self.extended else 1
        flat = {k: v if isinstance(v, tuple) else (v,) for k, v in entries}
        table = [
            (self.at(L2) + k * 8 * words, struct.pack(f">{len(v)}Q", *v)) for k, v in flat.items()
        ]
        counts = [0] * CLUSTERS
        for cluster in (0, REFCOUNT_TABLE, REFCOUNT_BLOCK, L1, L2, *self.used, *self._mapped(flat)):
            counts[cluster] = min(counts[cluster] + 1, 1)
        return [
            (self.at(REFCOUNT_TABLE), struct.pack(">Q", block)),
            (block, struct.pack(f">{CLUSTERS}H", *counts)),
            (self.at(L1), struct.pack(">Q", self.at(L2) | COPIED)),
            *table,
        ]

    def _mapped(self, entries: Mapping[int, tuple[int, ...]]) -> list[int]:
        mask = self.compressed_mask
        hosts = [
            word & (mask if word & COMPRESSED else 0x00FF_FFFF_FFFF_FE00)
            for word, *_ in entries.values()
        ]
        return [host >> self.cluster_bits for host in hosts if 0 < host < CLUSTERS * self.cluster]

    @property
    def compressed_mask(self) -> int:
        return (1 << 62 - (self.cluster_bits - 8)) - 1

    def compressed(self, host: int, length: int) -> int:
        """The L2 entry of a payload."""
        sectors = (host + length - 1) // 512 - host // 512
        return COMPRESSED | host | sectors << 62 - (self.cluster_bits - 8)


def plain(**changes: object) -> Handmade:
    """A sound image of one data cluster, guest cluster 2, with changes of Handmade's fields."""
    image = replace(Handmade(), **changes)  # type: ignore[arg-type]
    data = image.at(DATA)
    entry: int | tuple[int, int] = data | COPIED
    if image.extended:
        entry = (data | COPIED, 0xFFFF_FFFF)
    content = {data: bytes([0x5A]) * image.cluster}
    return replace(image, l2={2: entry, **image.l2}, blobs={**content, **image.blobs})


def packed(
    payload: bytes, *, zstd: bool = False, shown: int | None = None, **changes: object
) -> Handmade:
    """An image whose guest cluster 1 is compressed, and of that payload."""
    header = {"incompatible_features": ZSTD_BIT, "compression_type": 1} if zstd else {}
    image = plain(header=header, **changes)
    host = image.at(FREE)
    entry = image.compressed(host, shown or len(payload))
    return replace(image, l2={**image.l2, 1: entry}, blobs={**image.blobs, host: payload})


def deflated(data: bytes) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, -12)
    return stream.compress(data) + stream.flush()


# --- the registry -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A generator, and what must become of what it makes."""

    name: str
    make: Maker
    error: type[QcowDeltaError]
    at: Stage
    says: str
    """A regular expression that the message must match."""


CASES: list[Case] = []
ACCEPTED: list[tuple[str, Maker]] = []


def refused(error: type[QcowDeltaError], at: Stage, says: str) -> Callable[[Maker], Maker]:
    """Register a generator of what must be refused."""

    def add(make: Maker) -> Maker:
        CASES.append(Case(make.__name__, make, error, at, says))
        return make

    return add


def accepted(make: Maker) -> Maker:
    """Register a generator of what must be read, as QEMU reads it."""
    ACCEPTED.append((make.__name__, make))
    return make


def _refuse(name: str, error: type[QcowDeltaError], at: Stage, says: str, image: Handmade) -> None:
    CASES.append(Case(name, lambda folder: image.write(folder / "x.qcow2"), error, at, says))


def _accept(name: str, image: Handmade) -> None:
    ACCEPTED.append((name, lambda folder: image.write(folder / "x.qcow2")))


# --- §1: each header field, just inside and just outside its limit -------------------------------


def _fields(at: Stage = "header", error: type[QcowDeltaError] = FormatError, **values: int) -> None:
    for name, value in values.items():
        _refuse(f"{name}_{value:#x}", error, at, name, plain(header={name: value}))


for version in (0, 1, 4):
    _fields(error=UnsupportedFeatureError, version=version)
for bits in (0, 8, 22, 63, 0xFFFF_FFFF):
    _fields(cluster_bits=bits)
for bits in (9, 12, 21):
    _accept(f"cluster_bits_{bits}", plain(cluster_bits=bits, size=4 << bits))
for size in (MIB, 4 << 16):
    _accept(f"version_2_size_{size}", plain(version=2, size=size))

_fields(l1_size=0)
_fields(l1_size=0xFFFF_FFFF)
_refuse(
    "l1_above_32_mib",
    FormatError,
    "header",
    "l1_size",
    plain(header={"l1_size": (4 << 20) + 1, "l1_table_offset": FREE * K64}, length=64 * MIB),
)
_accept(
    "l1_of_32_mib",
    plain(
        header={"l1_size": 4 << 20, "l1_table_offset": FREE * K64},
        blobs={FREE * K64: struct.pack(">Q", L2 * K64 | COPIED)},
        length=FREE * K64 + 32 * MIB,
    ),
)
_accept("l1_reaches_the_size_exactly", plain(size=512 * MIB))
_refuse(
    "l1_one_sector_short_of_the_size", FormatError, "header", "l1_size", plain(size=512 * MIB + 512)
)
_accept("size_not_whole_sectors", plain(size=MIB + 100))
_fields(size=(1 << 63) - 1)
_fields(size=(1 << 64) - 1)
_refuse("size_beyond_any_l1", FormatError, "header", "size", plain(size=1 << 62))

for offset in (K64 * L1 + 512, K64 * L1 + 1, 0):
    _fields(l1_table_offset=offset)
for offset in (K64 + 8, 0):
    _fields(refcount_table_offset=offset)
for offset in (1 << 62, (1 << 64) - K64):
    for table in ("l1_table_offset", "refcount_table_offset"):
        _refuse(f"{table}_{offset:#x}", CorruptImageError, "header", table,
                plain(header={table: offset}))  # fmt: skip
_fields(refcount_table_clusters=0)
_fields(refcount_table_clusters=129)
_fields(refcount_table_clusters=0xFFFF_FFFF)
_refuse("refcount_table_above_8_mib", FormatError, "header", "refcount_table_clusters",
        plain(header={"refcount_table_clusters": 129, "refcount_table_offset": FREE * K64},
              length=64 * MIB))  # fmt: skip
_accept("refcount_table_of_8_mib", plain(
    header={"refcount_table_clusters": 128, "refcount_table_offset": FREE * K64},
    length=FREE * K64 + 8 * MIB))  # fmt: skip
_refuse("snapshots_65537", FormatError, "header", "nb_snapshots",
        plain(version=2, length=8 * MIB,
              header={"nb_snapshots": 65537, "snapshots_offset": FREE * K64}))  # fmt: skip
_accept(
    "snapshots_65536",
    plain(
        version=2, length=8 * MIB, header={"nb_snapshots": 65536, "snapshots_offset": FREE * K64}
    ),
)
for offset in (FREE * K64 + 8, 1 << 62, (1 << 64) - K64):
    error = FormatError if offset % K64 else CorruptImageError
    _refuse(f"snapshots_offset_{offset:#x}", error, "header", "snapshots_offset",
            plain(header={"nb_snapshots": 1, "snapshots_offset": offset}))  # fmt: skip
_refuse("snapshots_offset_unaligned_without_snapshots", FormatError, "header", "snapshots_offset",
        plain(header={"snapshots_offset": 12}))  # fmt: skip

for length in (0, 72, 103, K64 + 1, 0xFFFF_FFFF):
    _fields(header_length=length)
for length in (104, 112, 120, 4096, K64):
    _accept(f"header_length_{length}", plain(header={"header_length": length}))
for order in (7, 64, 0xFFFF_FFFF):
    _fields(refcount_order=order)
for order in (0, 6):
    _accept(f"refcount_order_{order}", plain(header={"refcount_order": order}))
for method in (3, 0xFFFF_FFFF):
    _fields(error=UnsupportedFeatureError, crypt_method=method)
for method, cipher in ((1, "AES"), (2, "LUKS")):
    _refuse(f"encrypted_{cipher}", EncryptedImageError, "open", cipher,
            plain(header={"crypt_method": method}))  # fmt: skip

_refuse("zstd_without_its_bit", FormatError, "header", "compression",
        plain(header={"compression_type": 1}))  # fmt: skip
_refuse("zstd_bit_with_zlib", FormatError, "header", "compression",
        plain(header={"incompatible_features": ZSTD_BIT}))  # fmt: skip
_refuse("zstd_bit_in_a_header_too_short_to_say", FormatError, "header", "compression",
        plain(header={"incompatible_features": ZSTD_BIT, "header_length": 104}))  # fmt: skip
for kind in (2, 255):
    _refuse(
        f"compression_type_{kind}",
        UnsupportedFeatureError,
        "header",
        "compression",
        plain(header={"incompatible_features": ZSTD_BIT, "compression_type": kind}),
    )
_accept(
    "zstd_and_its_bit", plain(header={"incompatible_features": ZSTD_BIT, "compression_type": 1})
)

NAMES = struct.pack(">BB46s", 0, 5, b"half-baked\x1b[31m\0junk") + struct.pack(
    ">BB46s", 1, 7, b"harmless"
)
_refuse(
    "unknown_bit_named_by_the_image",
    UnsupportedFeatureError,
    "header",
    r"bit 5 \(half-baked\\x1b\[31m\)",
    plain(header={"incompatible_features": 1 << 5}, extensions=[(FEATURE_NAMES, NAMES)]),
)
for bit in (5, 63):
    _refuse(f"unknown_bit_{bit}", UnsupportedFeatureError, "header", f"bit {bit}",
            plain(header={"incompatible_features": 1 << bit}))  # fmt: skip
_accept("unknown_compatible_and_autoclear_bits", plain(
    header={"compatible_features": 1 << 7 | 1 << 63, "autoclear_features": 1 << 9},
    extensions=[(FEATURE_NAMES, NAMES)]))  # fmt: skip
_accept("version_2_with_what_would_be_features", plain(
    version=2, extensions=[(0x1234_5678, b"\xff" * 48)]))  # fmt: skip
_refuse(
    "extended_l2_with_small_clusters",
    FormatError,
    "header",
    "cluster_bits|16 KiB",
    plain(cluster_bits=13, size=4 << 13, header={"incompatible_features": EXTENDED}),
)
_accept("extended_l2_with_16_kib_clusters", plain(cluster_bits=14, size=4 << 14, extended=True))

_refuse("extension_twice", FormatError, "header", "twice",
        plain(extensions=[(BACKING_FORMAT, b"raw"), (BACKING_FORMAT, b"qcow2")]))  # fmt: skip
_refuse("extension_beyond_the_first_cluster", FormatError, "header", "extension",
        plain(cluster_bits=9, size=2048, extensions=[(0x1234_5678, bytes(500))]))  # fmt: skip
_refuse(
    "extension_of_4_gib",
    FormatError,
    "header",
    "extension",
    plain(blobs={112: struct.pack(">II", 0x1234_5678, 0xFFFF_FFFF)}, header={"header_length": 112}),
)
_refuse("extension_over_the_backing_name", FormatError, "header", "extension",
        plain(extensions=[(0x1234_5678, bytes(64))],
              header={"backing_file_offset": 128, "backing_file_size": 8}))  # fmt: skip
_refuse("backing_format_of_16_bytes", FormatError, "header", "backing format",
        plain(extensions=[(BACKING_FORMAT, b"q" * 16)]))  # fmt: skip
_accept("backing_format_of_15_bytes", plain(extensions=[(BACKING_FORMAT, b"q" * 15)]))
_refuse("backing_offset_beyond_the_first_cluster", FormatError, "header", "backing_file_offset",
        plain(header={"backing_file_offset": K64 + 1, "backing_file_size": 1}))  # fmt: skip
_refuse("backing_offset_beyond_the_first_cluster_without_a_name", FormatError, "header",
        "backing_file_offset",
        plain(header={"backing_file_offset": K64 + 1, "backing_file_size": 0}))  # fmt: skip
_refuse(
    "backing_name_of_1024_bytes",
    FormatError,
    "header",
    "backing_file_size",
    plain(backing=b"n" * 1024),
)
_refuse("backing_name_out_of_the_first_cluster", FormatError, "header", "backing_file_size",
        plain(header={"backing_file_offset": K64 - 10, "backing_file_size": 11}))  # fmt: skip
_refuse("backing_name_of_4_gib", FormatError, "header", "backing_file_size",
        plain(header={"backing_file_offset": 256, "backing_file_size": 0xFFFF_FFFF}))  # fmt: skip
_refuse("backing_name_with_nul", FormatError, "header", "NUL",
        plain(backing=b"base.raw\0.txt", extensions=[(BACKING_FORMAT, b"raw")]))  # fmt: skip
_accept("backing_offset_0_with_a_length", plain(header={"backing_file_size": 7}))


@refused(FormatError, "header", "header|ends early|beyond")
def file_of_only_the_magic(folder: Path) -> Path:
    (folder / "x.qcow2").write_bytes(b"QFI\xfb")
    return folder / "x.qcow2"


@refused(FormatError, "header", "header|ends early|beyond")
def file_cut_in_the_version_3_fields(folder: Path) -> Path:
    path = plain().write(folder / "x.qcow2")
    os.truncate(path, 90)
    return path


# --- rows 1 to 5: what an image names ------------------------------------------------------------


def _names(backing: bytes, fmt: bytes | None = b"raw") -> Handmade:
    return plain(backing=backing, extensions=[] if fmt is None else [(BACKING_FORMAT, fmt)])


for label, name, message in (
    ("host_secret", b"/etc/shadow", "--allow-path"),
    ("parent", b"../other.raw", "--allow-path"),
    ("absolute", b"/dev/null", "--allow-path"),
    ("dot_dot_in_the_middle", b"sub/../../other.raw", "--allow-path"),
    ("json", b'json:{"driver":"raw","file.filename":"/etc/shadow"}', "json:"),
    ("nbd", b"nbd://example.invalid:10809/disk", "protocol"),
    ("nbd_unix", b"nbd:unix:/tmp/socket", "protocol"),
    ("http", b"http://example.invalid/disk.raw", "protocol"),
    ("fat_folder", b"fat:rw:.", "protocol"),
    ("file_protocol", b"file:base.raw", "protocol"),
    ("missing", b"missing.raw", "missing.raw"),
    ("long_component", b"n" * 1023, "cannot be opened"),
    ("itself", b"x.qcow2", "cycle"),
    ("terminal_escapes", b"\x1b]0;owned\x07\xff.raw", r"\\x1b\]0;owned\\x07\\udcff"),
):
    _refuse(f"backing_{label}", PolicyError, "open", message,
            _names(name, b"qcow2" if label == "itself" else b"raw"))  # fmt: skip


@refused(PolicyError, "open", "without its format")
def backing_without_a_format(folder: Path) -> Path:
    (folder / "base.raw").write_bytes(bytes(MIB))
    return _names(b"base.raw", None).write(folder / "x.qcow2")


@refused(PolicyError, "open", "bochs")
def backing_of_an_unknown_format(folder: Path) -> Path:
    (folder / "base.bochs").write_bytes(bytes(MIB))
    return _names(b"base.bochs", b"bochs").write(folder / "x.qcow2")


@refused(PolicyError, "open", r"\\x1b\[2J\\+xff")
def backing_format_with_terminal_escapes(folder: Path) -> Path:
    (folder / "base.raw").write_bytes(bytes(MIB))
    return _names(b"base.raw", b"\x1b[2J\xff").write(folder / "x.qcow2")


@refused(PolicyError, "open", "FIFO")
def backing_is_a_fifo(folder: Path) -> Path:
    os.mkfifo(folder / "base.raw")
    return _names(b"base.raw").write(folder / "x.qcow2")


@refused(PolicyError, "open", "folder")
def backing_is_a_folder(folder: Path) -> Path:
    (folder / "base.raw").mkdir()
    return _names(b"base.raw").write(folder / "x.qcow2")


@refused(PolicyError, "open", "base.raw")
def backing_is_a_socket(folder: Path) -> Path:
    listener = socket.socket(socket.AF_UNIX)
    here = os.open(folder, os.O_RDONLY)
    try:  # by way of /proc, since a socket's name must be short
        listener.bind(f"/proc/self/fd/{here}/base.raw")
    finally:
        os.close(here)
        listener.close()
    return _names(b"base.raw").write(folder / "x.qcow2")


@refused(PolicyError, "open", "--allow-path")
def backing_is_a_link_out_of_the_folder(folder: Path) -> Path:
    (folder / "base.raw").symlink_to("/etc/passwd")
    return _names(b"base.raw").write(folder / "x.qcow2")


@refused(PolicyError, "open", "--allow-path")
def backing_is_a_link_to_a_device(folder: Path) -> Path:
    (folder / "base.raw").symlink_to("/dev/zero")
    return _names(b"base.raw").write(folder / "x.qcow2")


@refused(PolicyError, "open", "base.raw")
def backing_is_a_link_to_itself(folder: Path) -> Path:
    (folder / "base.raw").symlink_to("base.raw")
    return _names(b"base.raw").write(folder / "x.qcow2")


@refused(PolicyError, "open", "cycle")
def chain_of_two_that_is_a_cycle(folder: Path) -> Path:
    _names(b"x.qcow2", b"qcow2").write(folder / "y.qcow2")
    return _names(b"y.qcow2", b"qcow2").write(folder / "x.qcow2")


@refused(PolicyError, "open", "cycle")
def cycle_through_a_hard_link(folder: Path) -> Path:
    path = _names(b"y.qcow2", b"qcow2").write(folder / "x.qcow2")
    os.link(path, folder / "y.qcow2")
    return path


@refused(PolicyError, "open", "cycle")
def cycle_back_to_itself_as_raw(folder: Path) -> Path:
    return _names(b"x.qcow2", b"raw").write(folder / "x.qcow2")


@refused(PolicyError, "open", "deeper")
def chain_of_300(folder: Path) -> Path:
    for number in range(300):
        image = replace(_names(f"{number + 1}.qcow2".encode(), b"qcow2"), cluster_bits=9, size=2048)
        replace(image, l2={}, blobs={}).write(folder / f"{number}.qcow2")
    (folder / "300.qcow2").write_bytes((folder / "0.qcow2").read_bytes())
    return folder / "0.qcow2"


@refused(FormatError, "open", "base.qcow2.*magic")
def backing_is_not_of_its_recorded_format(folder: Path) -> Path:
    (folder / "base.qcow2").write_bytes(bytes(MIB))
    return _names(b"base.qcow2", b"qcow2").write(folder / "x.qcow2")


@refused(FormatError, "open", "base.qcow2.*cluster_bits")
def backing_is_hostile_itself(folder: Path) -> Path:
    plain(header={"cluster_bits": 40}).write(folder / "base.qcow2")
    return _names(b"base.qcow2", b"qcow2").write(folder / "x.qcow2")


def _external(name: bytes | None, **changes: object) -> Handmade:
    extensions = [] if name is None else [(DATA_FILE, name)]
    return plain(header={"incompatible_features": EXTERNAL}, extensions=extensions, **changes)


for label, name, message in (
    ("host_secret", b"/etc/shadow", "--allow-path"),
    ("parent", b"../x.data", "--allow-path"),
    ("json_taken_literally", b'json:{"driver":"null-co"}', "null-co"),
    ("nbd_taken_literally", b"nbd:unix:socket", "nbd:unix"),
    ("missing", b"missing.data", "missing"),
):
    _refuse(f"data_file_{label}", PolicyError, "open", message, _external(name))

_refuse("data_file_with_nul", FormatError, "open", "NUL", _external(b"x.data\0y"))
_refuse("data_file_without_a_name", FormatError, "open", "name", _external(None))
_refuse("raw_data_without_a_data_file", FormatError, "header", "autoclear",
        plain(header={"autoclear_features": RAW_EXTERNAL}))  # fmt: skip
_refuse(
    "raw_data_file_with_a_backing_file",
    FormatError,
    "header",
    "autoclear",
    plain(
        header={"incompatible_features": EXTERNAL, "autoclear_features": RAW_EXTERNAL},
        backing=b"base.raw",
        extensions=[(DATA_FILE, b"x.data"), (BACKING_FORMAT, b"raw")],
    ),
)


@refused(PolicyError, "open", "FIFO")
def data_file_is_a_fifo(folder: Path) -> Path:
    os.mkfifo(folder / "x.data")
    return _external(b"x.data").write(folder / "x.qcow2")


@refused(CorruptImageError, "diff", "beyond the end")
def data_file_shorter_than_what_is_mapped(folder: Path) -> Path:
    (folder / "x.data").write_bytes(bytes(K64))
    return _external(b"x.data").write(folder / "x.qcow2")


@refused(CorruptImageError, "diff", "compressed")
def data_file_with_a_compressed_cluster(folder: Path) -> Path:
    (folder / "x.data").write_bytes(bytes(CLUSTERS * K64))
    entry = Handmade().compressed(FREE * K64, 100)
    return _external(b"x.data", l2={1: entry}).write(folder / "x.qcow2")


# --- rows 6 to 8: tables -------------------------------------------------------------------------

_L1_AT, _L2_AT = L1 * K64, L2 * K64


def _l1(*entries: int, **changes: object) -> Handmade:
    """An image whose L1 table has those entries."""
    table = {_L1_AT: struct.pack(f">{len(entries)}Q", *entries)}
    return plain(header={"l1_size": len(entries)}, blobs=table, **changes)


_BEYOND = CLUSTERS * K64
for label, image, message in (
    ("l2_table_unaligned", _l1(_L2_AT + 512), "unaligned"),
    ("l2_table_over_the_header", _l1(0x200), "unaligned|header"),
    ("l2_table_over_the_l1", _l1(_L1_AT), "over"),
    ("l2_table_beyond_the_end", _l1(_BEYOND), "beyond"),
    ("l2_table_cut_by_the_end", _l1(_BEYOND, length=_BEYOND + 512), "beyond"),
    ("l2_table_far_beyond_the_end", _l1(0x00FF_FFFF_FFFF_0000), "beyond"),
    ("l2_table_used_twice", _l1(_L2_AT, _L2_AT, size=600 * MIB), "twice"),
    ("l1_reserved_bit_0", _l1(_L2_AT | 1), "reserved"),
    ("l1_reserved_bit_62", _l1(_L2_AT | 1 << 62), "reserved"),
):
    _refuse(label, CorruptImageError, "open", message, image)
for label, image, message in (
    ("data_unaligned", plain(l2={3: DATA * K64 + 512}), "unaligned"),
    ("data_over_the_header", plain(l2={3: 0x200}), "unaligned|header"),
    ("data_beyond_the_end", plain(l2={3: _BEYOND}), "beyond"),
    ("data_far_beyond_the_end", plain(l2={3: 0x00FF_FFFF_FFFF_0000}), "beyond"),
    ("l2_reserved_bit_1", plain(l2={3: FREE * K64 | 2}), "reserved"),
    ("l2_reserved_bit_8", plain(l2={3: 1 << 8}), "reserved"),
    ("l2_reserved_bit_61", plain(l2={3: FREE * K64 | 1 << 61}), "reserved"),
    ("zero_cluster_in_version_2", plain(version=2, l2={3: 1}), "version 2"),
    ("preallocated_zero_in_version_2", plain(version=2, l2={3: FREE * K64 | 1}), "version 2"),
    ("preallocated_zero_unaligned", plain(l2={3: FREE * K64 + 512 | 1}), "unaligned"),
    ("compressed_beyond_the_end", plain(l2={3: Handmade().compressed(_BEYOND, 9)}), "beyond"),
    ("compressed_and_copied",
     plain(l2={3: Handmade().compressed(FREE * K64, 9) | COPIED}), "COPIED"),
    ("subcluster_allocated_and_zero",
     plain(extended=True, l2={3: (FREE * K64, 1 | 1 << 32)}), "both"),
    ("subcluster_allocated_nowhere", plain(extended=True, l2={3: (0, 1)}), "without a host"),
    ("compressed_with_a_subcluster_bitmap",
     plain(extended=True, l2={3: (Handmade().compressed(FREE * K64, 9), 1)}), "bitmap"),
    ("subclusters_unaligned", plain(extended=True, l2={3: (FREE * K64 + 512, 1)}), "unaligned"),
):  # fmt: skip
    _refuse(label, CorruptImageError, "diff", message, image)

_accept("unallocated_but_every_plain_kind", plain(l2={3: 1, 4: FREE * K64 | 1, 5: 0}))
_accept("subclusters_of_every_kind", plain(
    extended=True, blobs={FREE * K64: b"\x77" * K64},
    l2={3: (FREE * K64 | COPIED, 0xFF | 0xFF00 << 32), 4: (0, 0xF0F0 << 32)}))  # fmt: skip
_accept("last_cluster_short", plain(l2={2: (CLUSTERS - 1) * K64 | COPIED},
                                    length=CLUSTERS * K64 - K64 + 700,
                                    blobs={(CLUSTERS - 1) * K64: b"\x33" * 700}))  # fmt: skip


@refused(CorruptImageError, "header", "l1_table_offset")
def l1_table_cut_by_the_end(folder: Path) -> Path:
    path = plain(l2={}).write(folder / "x.qcow2")
    os.truncate(path, _L1_AT + 4)
    return path


@refused(FormatError, "header", "l1_table_offset")
def l1_table_over_the_header(folder: Path) -> Path:
    return plain(header={"l1_table_offset": 0}).write(folder / "x.qcow2")


# --- row 9: compressed streams -------------------------------------------------------------------

_TEXT = bytes(range(256)) * 256
_ZLIB, _ZSTD = deflated(_TEXT), zstandard.ZstdCompressor().compress(_TEXT)
_LOCATED = r"guest offset 0x10000 .*offset 0x80000"


def zstd_frame(size: int, blocks: Sequence[tuple[int, int]]) -> bytes:
    """A single-segment frame that states `size`, of RLE blocks (byte, length); not all sound."""
    head = struct.pack("<IBQ", 0xFD2FB528, 0xE0, size)
    body = b"".join(
        ((length << 3 | 1 << 1 | (number == len(blocks) - 1)).to_bytes(3, "little") + bytes([byte]))
        for number, (byte, length) in enumerate(blocks)
    )
    return head + body


for label, image in (
    ("zlib_garbage", packed(b"\xff" * 300)),
    ("zlib_short", packed(deflated(_TEXT[:-1]))),
    ("zlib_of_nothing", packed(bytes(1))),
    ("zstd_cut", packed(_ZSTD[: len(_ZSTD) // 2], zstd=True)),
    ("zstd_garbage", packed(b"\xff" * 300, zstd=True)),
    ("zstd_short", packed(zstandard.ZstdCompressor().compress(_TEXT[:-1]), zstd=True)),
    ("zstd_states_more_than_it_gives", packed(zstd_frame(K64, [(7, 100)]), zstd=True)),
    ("zstd_over_long", packed(zstandard.ZstdCompressor().compress(_TEXT * 2), zstd=True)),
    ("zstd_of_zlib", packed(_ZLIB, zstd=True)),
    ("zlib_of_zstd", packed(_ZSTD)),
    ("zlib_cut_by_the_bound", packed(deflated(os.urandom(K64 // 2) * 2), shown=512)),
):
    _refuse(f"stream_{label}", CorruptImageError, "diff", _LOCATED, image)

_STORED = zlib.compress(_TEXT, 0)[2:-4]  # as long as it is cut, so that zeros go on as its content
_LAST = (CLUSTERS - 1) * K64


def _at_the_end(payload: bytes, kept: int) -> Handmade:
    """A payload behind everything else, of which the file has only so many bytes."""
    shown = Handmade().compressed(_LAST, len(payload))
    return plain(l2={1: shown}, blobs={_LAST: payload[:kept]}, length=_LAST + kept)


_refuse("stream_zlib_cut_by_the_end_of_the_file", CorruptImageError, "diff", "guest offset 0x10000",
        _at_the_end(_STORED, 40_000))  # fmt: skip
_accept("zlib_stream_whose_last_sector_is_short", _at_the_end(_ZLIB, len(_ZLIB)))
_accept("zlib_stream", packed(_ZLIB))
_accept("zstd_stream", packed(_ZSTD, zstd=True))
_accept("zlib_stream_over_long", packed(deflated(_TEXT * 2)))
_accept(
    "zstd_stream_of_two_frames",
    packed(
        b"".join(zstandard.ZstdCompressor().compress(_TEXT[i : i + 32768]) for i in (0, 32768)),
        zstd=True,
    ),
)
_accept("zlib_stream_of_a_32_kib_window", packed(zlib.compress(_TEXT, 9)[2:-4]))
_accept("zlib_bomb", packed(deflated(bytes(300 * MIB)), shown=K64))


def _zstd_bomb(folder: Path) -> Path:
    """16 GiB from 512 KiB: RLE blocks of 128 KiB behind a stated size of one cluster."""
    image = plain(cluster_bits=21, size=16 * MIB)
    payload = zstd_frame(2 * MIB, [(9, 128 << 10)] * (128 << 10))
    header = {"incompatible_features": ZSTD_BIT, "compression_type": 1}
    host = image.at(FREE)
    entry = image.compressed(host, len(payload))
    changed = replace(image, header=header, l2={**image.l2, 1: entry})
    return replace(changed, blobs={**image.blobs, host: payload}).write(folder / "x.qcow2")


BOMBS: list[tuple[str, Maker]] = [("zstd_bomb", _zstd_bomb)]


# --- snapshots and bitmaps -----------------------------------------------------------------------


def snapshot_entry(
    name: bytes = b"s",
    ident: bytes = b"1",
    *,
    l1: tuple[int, int] = (FREE * K64, 1),
    extra: int = 16,
    disk_size: int = MIB,
) -> bytes:
    """An entry of the snapshot table, its L1 table at l1[0] with l1[1] entries."""
    head = struct.pack(">QIHHIIQII", *l1, len(ident), len(name), 0, 0, 0, 0, extra)
    data = (struct.pack(">QQ", 0, disk_size) + bytes(max(0, extra - 16)))[:extra]
    entry = head + data + ident + name
    return entry + bytes(-len(entry) % 8)


_SNAPSHOTS = (FREE + 1) * K64


def _snapshots(*entries: bytes, **changes: object) -> Handmade:
    header = {"nb_snapshots": len(entries), "snapshots_offset": _SNAPSHOTS}
    return plain(header=header, blobs={_SNAPSHOTS: b"".join(entries)},
                 used=[FREE, FREE + 1], **changes)  # fmt: skip


for extra in (0, 8, 15, 1025, 0xFFFF_FFFF):
    entry = snapshot_entry(extra=min(extra, 1025))
    entry = entry[:36] + struct.pack(">I", extra) + entry[40:]
    _refuse(f"snapshot_extra_{extra}", FormatError, "header", "extra data", _snapshots(entry))
for extra in (16, 24, 1024):
    _accept(f"snapshot_extra_{extra}", _snapshots(snapshot_entry(extra=extra)))
_accept("snapshot_of_version_2_without_extra", _snapshots(snapshot_entry(extra=0), version=2))
_refuse("snapshot_l1_unaligned", FormatError, "header", "snapshot",
        _snapshots(snapshot_entry(l1=(FREE * K64 + 512, 1))))  # fmt: skip
_refuse("snapshot_l1_above_32_mib", FormatError, "header", "snapshot",
        _snapshots(snapshot_entry(l1=(FREE * K64, (4 << 20) + 1)), length=64 * MIB))  # fmt: skip
_refuse("snapshot_l1_beyond_the_end", CorruptImageError, "header", "beyond",
        _snapshots(snapshot_entry(l1=(_BEYOND, 1))))  # fmt: skip
_refuse("snapshot_l1_wraps_around", CorruptImageError, "header", "beyond|snapshot",
        _snapshots(snapshot_entry(l1=((1 << 64) - K64, K64 // 8))))  # fmt: skip
_refuse("snapshot_table_beyond_the_end", CorruptImageError, "header", "ends at|snapshot", plain(
    header={"nb_snapshots": 2000, "snapshots_offset": (CLUSTERS - 1) * K64},
    blobs={(CLUSTERS - 1) * K64: snapshot_entry(b"7 bytes") * (K64 // 64)}))  # fmt: skip

_DIRECTORY, _TABLE = FREE * K64, (FREE + 1) * K64


def bitmap_entry(
    name: bytes = b"b",
    *,
    table: int = _TABLE,
    count: int = 1,
    flags: int = 0,
    bits: int = 16,
    kind: int = 1,
) -> bytes:
    """An entry of the bitmap directory."""
    entry = struct.pack(">QIIBBHI", table, count, flags, kind, bits, len(name), 0) + name
    return entry + bytes(-len(entry) % 8)


def _bitmaps(
    *entries: bytes, count: int | None = None, size: int | None = None, at: int = _DIRECTORY,
    **changes: object,
) -> Handmade:  # fmt: skip
    directory = b"".join(entries)
    extension = struct.pack(
        ">IIQQ", len(entries) if count is None else count, 0,
        len(directory) if size is None else size, at,
    )  # fmt: skip
    changes.setdefault("blobs", {_DIRECTORY: directory})
    return plain(header={"autoclear_features": BITMAPS_BIT}, extensions=[(BITMAPS, extension)],
                 used=[FREE, FREE + 1], **changes)  # fmt: skip


_accept("bitmap_without_bits", _bitmaps(bitmap_entry()))
_accept("bitmap_without_a_name", _bitmaps(bitmap_entry(b"")))
_accept("bitmap_names_of_any_bytes", _bitmaps(bitmap_entry(b"\x1b[1mb"), bitmap_entry(b"\xc3\xa9")))
for label, image in (
    ("none", _bitmaps(count=0, size=0)),
    ("too_many", _bitmaps(bitmap_entry(), count=65536)),
    ("more_than_the_directory_has", _bitmaps(bitmap_entry(), count=2)),
    ("less_than_the_directory_has", _bitmaps(bitmap_entry(), bitmap_entry(b"c"), count=1)),
    ("directory_too_large", _bitmaps(bitmap_entry(), size=65535 * 1024 + 1, length=80 * MIB)),
    ("directory_unaligned", _bitmaps(bitmap_entry(), at=_DIRECTORY + 8)),
    ("directory_beyond_the_end", _bitmaps(bitmap_entry(), at=_BEYOND)),
    ("directory_offset_wraps_around", _bitmaps(bitmap_entry(), at=(1 << 64) - K64)),
    ("granularity_8", _bitmaps(bitmap_entry(bits=8))),
    ("granularity_32", _bitmaps(bitmap_entry(bits=32))),
    ("name_too_long", _bitmaps(bitmap_entry(b"n" * 1024))),
    ("table_empty", _bitmaps(bitmap_entry(count=0))),
    ("table_at_0", _bitmaps(bitmap_entry(table=0))),
    ("table_unaligned", _bitmaps(bitmap_entry(table=_TABLE + 8))),
    ("table_wraps_around", _bitmaps(bitmap_entry(table=(1 << 64) - K64))),
    ("empty_table_wraps_around", _bitmaps(bitmap_entry(table=(1 << 64) - K64, count=0))),
    ("reserved_flag", _bitmaps(bitmap_entry(flags=1 << 3))),
    ("type_2", _bitmaps(bitmap_entry(kind=2))),
    ("table_too_long", _bitmaps(bitmap_entry(count=0x800_0001), length=2 << 30)),
    ("table_of_more_than_512_mib_of_bits", _bitmaps(bitmap_entry(count=8193), length=2 << 30)),
    ("table_of_most_entries", _bitmaps(bitmap_entry(count=0x800_0000), length=2 << 30)),
):
    _refuse(f"bitmaps_{label}", QcowDeltaError, "info", "bitmap", image)

_refuse("bitmap_table_beyond_the_end", QcowDeltaError, "check", "bitmap",
        _bitmaps(bitmap_entry(table=_BEYOND)))  # fmt: skip
_refuse("bitmap_table_of_512_mib_beyond_the_end", QcowDeltaError, "check", "bitmap",
        _bitmaps(bitmap_entry(count=8192, table=_BEYOND)))  # fmt: skip


def _luks(offset: int, length: int) -> Handmade:
    extension = (LUKS, struct.pack(">QQ", offset, length))
    return plain(header={"crypt_method": 2}, extensions=[extension])


for offset, length in (((1 << 64) - K64, K64), (K64, (1 << 64) - 1), (_BEYOND, K64)):
    _refuse(f"luks_header_at_{offset:#x}_of_{length:#x}", QcowDeltaError, "check",
            "encryption|beyond|references", _luks(offset, length))  # fmt: skip

# --- rows 6 and 8: sound one by one, but over each other ------------------------------------------

_CHECKED = CorruptImageError
for label, image, message in (
    ("two_guests_on_one_host_cluster", plain(l2={3: DATA * K64 | COPIED}), "refcount"),
    ("data_over_the_l2_table", plain(l2={3: L2 * K64}), "refcount"),
    ("data_over_the_l1_table", plain(l2={3: L1 * K64}), "refcount"),
    ("data_over_the_refcount_table", plain(l2={3: REFCOUNT_TABLE * K64}), "refcount"),
    ("refcount_block_over_the_header",
     plain(blobs={REFCOUNT_TABLE * K64: struct.pack(">QQ", REFCOUNT_BLOCK * K64, 0)},
           header={"l1_table_offset": REFCOUNT_TABLE * K64}), "refcount|reserved|over|L1"),
    ("refcount_block_used_twice",
     plain(blobs={REFCOUNT_TABLE * K64: struct.pack(">QQ", *[REFCOUNT_BLOCK * K64] * 2)}),
     "refcount"),
    ("refcount_block_unaligned",
     plain(blobs={REFCOUNT_TABLE * K64: struct.pack(">Q", REFCOUNT_BLOCK * K64 + 512)}), "block"),
    ("refcount_block_beyond_the_end",
     plain(blobs={REFCOUNT_TABLE * K64: struct.pack(">Q", 1 << 62)}), "block"),
    ("refcounts_all_zero", plain(blobs={REFCOUNT_BLOCK * K64: bytes(K64)}), "refcount"),
    ("refcounts_all_ones",
     plain(blobs={REFCOUNT_BLOCK * K64: b"\xff" * K64}), "refcount|leak|COPIED"),
    ("copied_where_it_is_shared",
     plain(blobs={REFCOUNT_BLOCK * K64 + 2 * DATA: struct.pack(">H", 2)}), "COPIED|leak"),
):  # fmt: skip
    _refuse(label, _CHECKED, "check", message, image)


# --- costly to believe: what would take hours or gigabytes ----------------------------------------


def _costly(name: str, commands: Sequence[str]) -> Callable[[Maker], Maker]:
    def add(make: Maker) -> Maker:
        COSTLY.extend((f"{name}-{command}", make, command) for command in commands)
        return make

    return add


COSTLY: list[tuple[str, Maker, str]] = []


@_costly("snapshots_whose_l1_tables_are_one", ("info", "check", "diff"))
def _overlapping_snapshots(folder: Path) -> Path:
    """300 snapshots of one L1 table of 32 MiB: 9 GiB for who reads them all."""
    table = [snapshot_entry(b"s", b"%d" % n, l1=(CLUSTERS * K64, 4 << 20)) for n in range(300)]
    return _snapshots(*table, length=64 * MIB).write(folder / "x.qcow2")


@_costly("snapshots_as_many_as_can_be", ("info", "check", "diff"))
def _many_snapshots(folder: Path) -> Path:
    table = snapshot_entry(extra=0, l1=(FREE * K64, 0)) * 65536
    header = {"nb_snapshots": 65536, "snapshots_offset": _SNAPSHOTS}
    image = plain(version=2, header=header, blobs={_SNAPSHOTS: table}, length=8 * MIB)
    return image.write(folder / "x.qcow2")


@_costly("bitmaps_as_many_as_can_be", ("info", "check"))
def _many_bitmaps(folder: Path) -> Path:
    entries = [bitmap_entry(b"%d" % number) for number in range(65535)]
    return _bitmaps(*entries, length=8 * MIB).write(folder / "x.qcow2")


@_costly("bitmaps_whose_tables_are_one", ("check",))
def _overlapping_bitmaps(folder: Path) -> Path:
    """2,000 bitmaps of one table of 64 KiB of entries that mean all ones."""
    table = CLUSTERS * K64
    entries = [bitmap_entry(b"%d" % number, table=table, count=8192) for number in range(2000)]
    image = _bitmaps(*entries, length=8 * MIB)
    cells = struct.pack(">Q", FREE * K64) * 8192
    return replace(image, blobs={**image.blobs, table: cells}).write(folder / "x.qcow2")


@_costly("refcount_table_of_one_block_everywhere", ("info", "check"))
def _one_refcount_block(folder: Path) -> Path:
    """A million entries that name one block of 4096 counts: 2 TiB of clusters, all "in use"."""
    image = plain(cluster_bits=9, size=8192)
    table = (CLUSTERS * 512 + 511) // 512 * 512
    header = {
        "refcount_order": 0,
        "refcount_table_offset": table,
        "refcount_table_clusters": (8 * MIB) // 512,
    }
    blobs = {**image.blobs, table: struct.pack(">Q", REFCOUNT_BLOCK * 512) * MIB}
    return replace(image, header=header, blobs=blobs, length=2 << 40).write(folder / "x.qcow2")


@_costly("disk_of_petabytes", ("info", "diff", "check"))
def _huge(folder: Path) -> Path:
    """The largest disk that an L1 table can cover: 2 EiB of nothing, and one cluster."""
    image = plain(cluster_bits=21, size=1 << 61)
    table = image.at(CLUSTERS)
    header = {"l1_size": 4 << 20, "l1_table_offset": table}
    blobs = {**image.blobs, table: struct.pack(">Q", image.at(L2) | COPIED)}
    length = table + 32 * MIB
    return replace(image, header=header, blobs=blobs, length=length).write(folder / "x.qcow2")


# --- running the command line under limits --------------------------------------------------------

# The child of a large process inherits its peak memory until it runs something else; so what is
# measured is started by a small one. It also ends what does not end by itself.
_LAUNCHER = """
import json, os, signal, sys, time
report, limit, argv = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
os.set_inheritable(report, False)
begun = time.monotonic()
pid = os.fork()
if not pid:
    os.execv(argv[0], argv)
signal.signal(signal.SIGALRM, lambda *_: os.kill(pid, signal.SIGKILL))
signal.setitimer(signal.ITIMER_REAL, limit)
_, status, usage = os.wait4(pid, 0)
found = [os.waitstatus_to_exitcode(status), time.monotonic() - begun, usage.ru_maxrss * 1024]
os.write(report, json.dumps(found).encode())
"""


@dataclass(frozen=True)
class Outcome:
    """What became of a command: its exit status (negative: killed), output, and cost."""

    status: int
    stdout: bytes
    stderr: bytes
    seconds: float
    memory: int

    @property
    def lines(self) -> list[str]:
        """Standard error, by line."""
        return self.stderr.decode("utf-8", "backslashreplace").splitlines()


def cli(*words: str | bytes | Path, cwd: Path | None = None, limit: float = 20.0) -> Outcome:
    """Run `qcowdelta` with these arguments."""
    report, ours = os.pipe()
    argv = [sys.executable, "-S", "-c", _LAUNCHER, str(ours), str(limit), *command(*words)]
    with os.fdopen(report) as figures:
        try:
            done = subprocess.run(
                argv, capture_output=True, cwd=cwd, check=False, pass_fds=[ours], timeout=limit + 30
            )
        finally:
            os.close(ours)
        status, seconds, memory = json.loads(figures.read())
    return Outcome(status, done.stdout, done.stderr, seconds, memory)


def command(*words: str | bytes | Path) -> list[str | bytes]:
    """The command line of `qcowdelta` with these arguments, whatever PATH says."""
    start = "from qcowdelta.cli import main; main()"
    return [sys.executable, "-c", start, *(str(w) if isinstance(w, Path) else w for w in words)]
