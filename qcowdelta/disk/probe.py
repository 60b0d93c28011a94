"""What a partition holds, told by its first bytes."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from construct import Bytes, Int8ul, Int16ul, Int32ul, Int64ul, Padding, Struct

from ..declare import parse
from .volume import Volume

FatBoot = Struct(
    "jump" / Bytes(3),
    "oem" / Bytes(8),
    "sector_size" / Int16ul,
    "sectors_per_cluster" / Int8ul,
    "reserved" / Int16ul,
    "fats" / Int8ul,
    "root_entries" / Int16ul,
    "sectors16" / Int16ul,
    "media" / Int8ul,
    "fat_size16" / Int16ul,
    "track" / Int16ul,
    "heads" / Int16ul,
    "hidden" / Int32ul,
    "sectors32" / Int32ul,
    "fat_size32" / Int32ul,
    "flags" / Int16ul,
    "version" / Int16ul,
    "root_cluster" / Int32ul,
    "info_sector" / Int16ul,
    "backup_sector" / Int16ul,
    Padding(12),
)
"""The boot sector of FAT32; that of FAT12 and FAT16 ends after ``sectors32``."""

FatTail = Struct(
    "drive" / Int8ul,
    "state" / Int8ul,
    "signature" / Int8ul,
    "volume_id" / Int32ul,
    "label" / Bytes(11),
    "name" / Bytes(8),
)
"""At 36 of a FAT12 or FAT16 boot sector, and at 64 of a FAT32 one."""

NtfsBoot = Struct(
    "jump" / Bytes(3),
    "oem" / Bytes(8),
    "sector_size" / Int16ul,
    "sectors_per_cluster" / Int8ul,
    Padding(26),
    "sectors" / Int64ul,
    "mft" / Int64ul,
    "mft_mirror" / Int64ul,
    "record_size" / Int8ul,
    Padding(3),
    "index_size" / Int8ul,
    Padding(3),
    "serial" / Int64ul,
)

_HEAD = 128 << 10
_MAX_FAT12, _MAX_FAT16 = 4084, 65524
_MAX_LABEL = 512


@dataclass(frozen=True)
class Probe:
    """What was found: a file system or another kind of volume.

    Attributes:
        filesystem: what it is.
        label, uuid: what it is called; the label is text from the image.
    """

    filesystem: str
    label: str = ""
    uuid: str = ""


def probe(volume: Volume) -> Probe | None:
    """Tell what a volume holds; None: nothing that is known.

    Raises:
        CorruptImageError: the image cannot be read.
    """
    head = volume.read(0, min(_HEAD, max(volume.length, 4096)))
    for look in _LOOKS:
        found = look(head)
        if found is not None:
            return found
    return _software_raid(volume)


def text(raw: bytes, encoding: str = "utf-8") -> str:
    """Return a label: up to the first NUL, without padding."""
    return raw[:_MAX_LABEL].decode(encoding, "replace").split("\0", 1)[0].strip()


def _uuid(raw: bytes) -> str:
    return "" if raw == bytes(16) else str(uuid.UUID(bytes=raw))


def _at(head: bytes, offset: int, magic: bytes) -> bool:
    return head[offset : offset + len(magic)] == magic


def _ext(head: bytes) -> Probe | None:
    if not _at(head, 1024 + 56, b"\x53\xef"):
        return None
    compatible, incompatible, read_only = (
        int.from_bytes(head[1024 + n : 1024 + n + 4], "little") for n in (92, 96, 100)
    )
    label, identity = text(head[1024 + 120 : 1024 + 136]), _uuid(head[1024 + 104 : 1024 + 120])
    if incompatible & 0x8:
        return Probe("ext journal", label, identity)
    # What mke2fs calls them: ext4 has features that ext3 cannot have, ext3 a journal.
    older = "ext3" if compatible & 0x4 else "ext2"
    return Probe("ext4" if incompatible & ~0x16 or read_only & ~0x7 else older, label, identity)


def _ntfs(head: bytes) -> Probe | None:
    if not _at(head, 3, b"NTFS    "):
        return None
    return Probe("ntfs", uuid=f"{int.from_bytes(head[72:80], 'little'):016X}")


def _exfat(head: bytes) -> Probe | None:
    if not _at(head, 3, b"EXFAT   "):
        return None
    return Probe("exfat", uuid=_fat_serial(int.from_bytes(head[100:104], "little")))


def _fat_serial(number: int) -> str:
    return f"{number >> 16:04X}-{number & 0xFFFF:04X}"


def _fat(head: bytes) -> Probe | None:
    if not _at(head, 510, b"\x55\xaa") or head[0] not in (0xEB, 0xE9):
        return None
    boot = parse(FatBoot, head[:512], path="", offset=0, name="FatBoot")
    bits = fat_bits(boot)
    if bits is None:
        return None
    tail = FatTail.parse(head[64 if bits == 32 else 36 :])
    known = tail.signature == 0x29
    label = text(tail.label, "cp437") if known else ""
    serial = _fat_serial(tail.volume_id) if known or tail.signature == 0x28 else ""
    return Probe(f"fat{bits}", "" if label == "NO NAME" else label, serial)


def fat_bits(boot: Any) -> int | None:
    """Tell FAT12, 16 and 32 apart by the count of clusters; None: it is no FAT."""
    size, per_cluster = boot.sector_size, boot.sectors_per_cluster
    if size not in (512, 1024, 2048, 4096) or not per_cluster or per_cluster & (per_cluster - 1):
        return None
    if not boot.reserved or not 1 <= boot.fats <= 4 or boot.media < 0xF0:
        return None
    fat_size = boot.fat_size16 or boot.fat_size32
    root = -(-boot.root_entries * 32 // size)
    data = (boot.sectors16 or boot.sectors32) - boot.reserved - boot.fats * fat_size - root
    if not fat_size or data < per_cluster:
        return None
    clusters = data // per_cluster
    if not boot.fat_size16:
        return 32
    return 12 if clusters <= _MAX_FAT12 else 16 if clusters <= _MAX_FAT16 else None


def _swap(head: bytes) -> Probe | None:
    for page in (4096, 8192, 16384, 65536):
        if head[page - 10 : page] in (b"SWAPSPACE2", b"SWAP-SPACE"):
            return Probe("swap", text(head[1052:1068]), _uuid(head[1036:1052]))
        if head[page - 10 : page] in (b"S1SUSPEND\0", b"S2SUSPEND\0", b"LINHIB0001"):
            return Probe("swap", text(head[1052:1068]), _uuid(head[1036:1052]))
    return None


def _luks(head: bytes) -> Probe | None:
    if not _at(head, 0, b"LUKS\xba\xbe"):
        return None
    label = text(head[24:72]) if head[6:8] == b"\x00\x02" else ""
    return Probe("luks", label, text(head[168:208], "ascii"))


def _lvm(head: bytes) -> Probe | None:
    for sector in range(4):
        if _at(head, sector * 512, b"LABELONE") and _at(head, sector * 512 + 24, b"LVM2 001"):
            return Probe("lvm", uuid=text(head[sector * 512 + 32 : sector * 512 + 64], "ascii"))
    return None


def _xfs(head: bytes) -> Probe | None:
    if not _at(head, 0, b"XFSB"):
        return None
    return Probe("xfs", text(head[108:120]), _uuid(head[32:48]))


def _btrfs(head: bytes) -> Probe | None:
    base = 64 << 10
    if not _at(head, base + 64, b"_BHRfS_M"):
        return None
    return Probe("btrfs", text(head[base + 299 : base + 555]), _uuid(head[base + 32 : base + 48]))


def _f2fs(head: bytes) -> Probe | None:
    if not _at(head, 1024, b"\x10\x20\xf5\xf2"):
        return None
    return Probe("f2fs", text(head[1024 + 124 : 1024 + 636], "utf-16-le"), _uuid(head[1132:1148]))


def _erofs(head: bytes) -> Probe | None:
    if not _at(head, 1024, b"\xe2\xe1\xf5\xe0"):
        return None
    return Probe("erofs", text(head[1088:1104]), _uuid(head[1072:1088]))


def _iso(head: bytes) -> Probe | None:
    if not _at(head, 32769, b"CD001"):
        return None
    return Probe("iso9660", text(head[32808:32840], "ascii"))


def _magic(name: str, offset: int, magic: bytes) -> Callable[[bytes], Probe | None]:
    return lambda head: Probe(name) if _at(head, offset, magic) else None


def _software_raid(volume: Volume) -> Probe | None:
    """Look for the superblock of Linux's RAID: at the start, after 4 KiB, or near the end."""
    magic = b"\xfc\x4e\x2b\xa9"
    sectors = volume.length // 512
    places = (0, 4096, ((sectors - 16) & ~7) * 512, ((sectors & ~127) - 128) * 512)
    found = any(at >= 0 and volume.read(at, 4) == magic for at in places)
    return Probe("linux raid") if found else None


_LOOKS: tuple[Callable[[bytes], Probe | None], ...] = (
    _luks,
    _magic("bitlocker", 3, b"-FVE-FS-"),
    _lvm,
    _xfs,
    _ntfs,
    _exfat,
    _btrfs,
    _ext,
    _swap,
    _f2fs,
    _erofs,
    _iso,
    _magic("squashfs", 0, b"hsqs"),
    _magic("apfs", 32, b"NXSB"),
    _magic("refs", 3, b"ReFS\0\0\0\0"),
    _magic("hfs+", 1024, b"H+\0\x04"),
    _magic("hfsx", 1024, b"HX\0\x05"),
    _magic("udf", 32769, b"BEA01"),
    _magic("bcachefs", 4096 + 24, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca"),
    _fat,
)
