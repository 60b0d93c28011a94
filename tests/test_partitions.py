"""Partition tables: what they say is what sfdisk says, and damaged ones say so."""

from __future__ import annotations

import json
import random
import struct
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qcowdelta import open_image
from qcowdelta.disk.diskmap import DiskMap, read_disk
from qcowdelta.disk.kinds import Partition, SpaceKind
from qcowdelta.disk.partitions import PartitionTable, read_partitions
from qcowdelta.disk.probe import Probe, probe
from qcowdelta.disk.volume import Volume
from tests.support import disks
from tests.support.disks import MIB, Slot

LINUX = "L"
SECTOR = 512


@contextmanager
def volume(path: Path) -> Iterator[Volume]:
    with open_image(path, format="raw") as image:
        yield Volume.of(image, image.path)


def table_of(path: Path) -> PartitionTable:
    with volume(path) as disk:
        return read_partitions(disk)


def map_of(path: Path) -> DiskMap:
    with open_image(path, format="raw") as image:
        found = read_disk(image)
    assert int(found.spaces["length"].sum()) == found.size
    return found


def probed(path: Path) -> Probe | None:
    with volume(path) as disk:
        return probe(disk)


def by_sfdisk(path: Path) -> list[tuple[int, int, int]]:
    """What sfdisk reads: number, start, length."""
    rows = json.loads(disks.run("sfdisk", "--json", path))["partitiontable"]["partitions"]
    found = [
        (int(r["node"].rpartition(path.name)[2]), r["start"] * SECTOR, r["size"] * SECTOR)
        for r in rows
    ]
    return sorted(found, key=lambda row: row[1])


def told(table: PartitionTable) -> list[tuple[int, int, int]]:
    return [(p.number, p.start, p.length) for p in table.partitions]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    disks.require("sfdisk")
    return disks.blank(tmp_path / "disk.raw", 64 * MIB)


def edit(path: Path, offset: int, data: bytes | bytearray) -> None:
    with path.open("r+b") as out:
        out.seek(offset)
        out.write(data)


def test_a_gpt_is_read_as_sfdisk_reads_it(disk: Path) -> None:
    slots = [Slot(1, 5, "U", "EFI system"), Slot(20, 30, LINUX, "name ü"), Slot(8, 10, "S")]
    disks.partition(disk, "gpt", slots)
    table = table_of(disk)
    assert table.scheme == "gpt"
    assert told(table) == by_sfdisk(disk)
    assert [p.name for p in table.partitions] == ["EFI system", "", "name ü"]
    assert [p.type for p in table.partitions] == ["EFI system", "Linux swap", "Linux filesystem"]
    assert table.notes == []


def test_an_mbr_with_logical_partitions_is_read_as_sfdisk_reads_it(disk: Path) -> None:
    script = "label: dos\n1MiB 4MiB L *\n6MiB 40MiB E\n7MiB 5MiB L\n14MiB 6MiB S\n22MiB 3MiB 7\n"
    disks.run("sfdisk", "-q", disk, stdin=script + "50MiB 10MiB c\n")
    table = table_of(disk)
    assert table.scheme == "mbr"
    assert told(table) == [row for row in by_sfdisk(disk) if row[0] != 2]
    assert [p.number for p in table.partitions] == [1, 5, 6, 7, 3]
    assert [p.type for p in table.partitions][-1] == "FAT32 (LBA)"
    assert len(table.tables) == 4


def test_sectors_of_4_kib_are_found_out(disk: Path) -> None:
    linux = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4").bytes_le
    entry = struct.pack("<16s16sQQQ72s", linux, b"x" * 16, 512, 3071, 0, b"")
    entries = entry.ljust(128 * 128, b"\0")
    fields = (1 << 16, 92, 0, 0, 1, 16383, 6, 16000, b"y" * 16, 2, 128, 128, zlib.crc32(entries))
    header = bytearray(struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", *fields))
    struct.pack_into("<I", header, 16, zlib.crc32(header))
    edit(disk, 4096, header)
    edit(disk, 8192, entries)
    table = table_of(disk)
    assert told(table) == [(1, 2 * MIB, 10 * MIB)]


def test_the_backup_is_read_where_the_first_gpt_is_damaged(disk: Path) -> None:
    disks.partition(disk, "gpt", [Slot(1, 5, LINUX), Slot(8, 10, LINUX)])
    wanted = told(table_of(disk))
    edit(disk, 512 + 16, b"\xff")
    table = table_of(disk)
    assert told(table) == wanted
    assert "backup" in table.notes[0]


@pytest.mark.parametrize("name", ["ext4", "fat16", "ntfs"])
def test_a_file_system_made_over_a_gpt_counts_and_not_the_backup(disk: Path, name: str) -> None:
    disks.require("mke2fs", "mkfs.fat", "mkfs.ntfs")
    disks.partition(disk, "gpt", [Slot(1, 5, LINUX)])
    backup = disk.read_bytes()[-33 * SECTOR :]
    if name == "ext4":
        disks.make_ext(disk, 64 * MIB, "-t", name)
    elif name == "fat16":
        disks.make_fat(disk, 64 * MIB, 16, "X")
    else:
        disks.make_ntfs(disk, 64 * MIB, "X")
    edit(disk, 64 * MIB - 33 * SECTOR, backup)
    (part,) = map_of(disk).partitions
    assert (part.number, part.length, part.filesystem) == (0, 64 * MIB, name)


def test_the_backup_is_read_where_the_disk_s_start_was_wiped(disk: Path) -> None:
    disks.partition(disk, "gpt", [Slot(1, 5, LINUX)])
    wanted = told(table_of(disk))
    edit(disk, 0, bytes(64 * 1024))
    assert [(p.number, p.start, p.length) for p in map_of(disk).partitions] == wanted


def test_the_backup_is_read_where_the_mbr_speaks_of_it(disk: Path) -> None:
    """Though something at the disk's start looks like a file system."""
    disks.partition(disk, "gpt", [Slot(1, 5, LINUX)])
    wanted = told(table_of(disk))
    edit(disk, 1024 + 56, b"\x53\xef")
    assert [(p.number, p.start, p.length) for p in map_of(disk).partitions] == wanted


def test_a_gpt_of_which_both_copies_are_gone_is_told(disk: Path) -> None:
    disks.partition(disk, "gpt", [Slot(1, 5, LINUX)])
    for place in (512, 64 * MIB - 512):
        edit(disk, place, bytes(512))
    found = map_of(disk)
    assert found.partitions == ()
    assert found.notes == (
        "the GPT is damaged, and so is its backup: its partitions are not known",
    )
    assert found.spaces["kind"].tolist() == [SpaceKind.PARTITION_TABLE, SpaceKind.UNKNOWN]


def test_partitions_beside_a_gpt_that_is_gone_are_kept(disk: Path) -> None:
    disks.partition(disk, "dos", [Slot(1, 5, LINUX), Slot(10, 20, LINUX)])
    edit(disk, 446 + 4, b"\xee")
    found = map_of(disk)
    assert [(p.number, p.start) for p in found.partitions] == [(2, 10 * MIB)]
    assert "the GPT is damaged" in found.notes[0]


def test_both_copies_of_a_gpt_are_partition_table(disk: Path) -> None:
    disks.partition(disk, "gpt", [Slot(1, 5, LINUX)])
    found = map_of(disk)
    tables = found.spaces["kind"] == SpaceKind.PARTITION_TABLE
    assert int(found.spaces["length"][tables].sum()) == 512 + 2 * (512 + 128 * 128)


def test_entries_that_overlap_or_leave_the_disk_are_cut(disk: Path) -> None:
    disks.partition(disk, "dos", [Slot(1, 20, LINUX), Slot(30, 10, LINUX)])
    entry = struct.pack("<II", 10 * MIB // SECTOR, 60 * MIB // SECTOR)
    edit(disk, 446 + 16 + 8, entry)
    first, second = table_of(disk).partitions
    assert (first.start, first.stop) == (MIB, 21 * MIB)
    assert (second.start, second.stop) == (21 * MIB, 64 * MIB)
    assert "overlaps" in str(second.note)


def test_a_disk_that_was_cut_off_keeps_its_first_partitions(disk: Path) -> None:
    disks.partition(disk, "dos", [Slot(1, 20, LINUX), Slot(30, 10, LINUX)])
    with disk.open("r+b") as out:
        out.truncate(25 * MIB)
    table = table_of(disk)
    assert told(table) == [(1, MIB, 20 * MIB)]
    assert table.notes == ["partition 2 lies beyond the disk or inside another"]


def test_logical_partitions_beyond_a_disk_that_was_cut_off_are_noted(disk: Path) -> None:
    script = "label: dos\n1MiB 4MiB L\n40MiB 20MiB E\n41MiB 5MiB L\n"
    disks.run("sfdisk", "-q", disk, stdin=script)
    with disk.open("r+b") as out:
        out.truncate(25 * MIB)
    table = table_of(disk)
    assert told(table) == [(1, MIB, 4 * MIB)]
    assert table.notes == ["the logical partitions lie beyond the disk"]


def test_a_boot_sector_is_no_table_though_one_of_its_entries_could_be(tmp_path: Path) -> None:
    disks.require("mkfs.fat")
    path = disks.make_fat(tmp_path / "fat", 8 * MIB, 12, "X")
    for slot, first in ((0, MIB // SECTOR), (1, 0x65726F6D)):
        edit(path, 446 + 16 * slot, struct.pack("<B3xB3xII", 0, 0x83, first, 100))
    for slot in (2, 3):
        edit(path, 446 + 16 * slot, bytes(16))
    assert [part.number for part in map_of(path).partitions] == [0]


def test_a_chain_of_logical_partitions_without_end_is_left(disk: Path) -> None:
    script = "label: dos\n6MiB 40MiB E\n7MiB 5MiB L\n14MiB 6MiB L\n"
    disks.run("sfdisk", "-q", disk, stdin=script)
    last = max(start for start, _ in table_of(disk).tables)
    again = struct.pack("<B3xB3xII", 0, 5, 0, 1000)  # the next one is the first one
    edit(disk, last + 446 + 16, again)
    table = table_of(disk)
    assert [p.number for p in table.partitions] == [5, 6]
    assert "no end" in table.notes[0]


def test_a_table_of_absurd_size_is_refused(disk: Path) -> None:
    disks.partition(disk, "gpt", [Slot(1, 5, LINUX)])
    for place in (512, 64 * MIB - 512):
        with disk.open("rb") as data:
            data.seek(place)
            header = bytearray(data.read(512))
        struct.pack_into("<II", header, 80, 1 << 31, 128)
        struct.pack_into("<I", header, 16, 0)
        struct.pack_into("<I", header, 16, zlib.crc32(header[:92]))
        edit(disk, place, bytes(header))
    table = table_of(disk)
    assert table.scheme in ("none", "mbr")
    assert map_of(disk).size == 64 * MIB


def test_a_bare_file_system_is_one_partition(tmp_path: Path) -> None:
    disks.require("mke2fs", "mkfs.fat", "mkfs.ntfs")
    ext = disks.make_ext(tmp_path / "ext", 8 * MIB, "-t", "ext2")
    fat = disks.make_fat(tmp_path / "fat", 8 * MIB, 12, "X")
    ntfs = disks.make_ntfs(tmp_path / "ntfs", 8 * MIB, "X")
    for path, name in ((ext, "ext2"), (fat, "fat12"), (ntfs, "ntfs")):
        (part,) = map_of(path).partitions
        assert (part.number, part.scheme, part.start, part.length) == (0, "none", 0, 8 * MIB)
        assert part.filesystem == name


def test_an_empty_disk_has_no_partitions_and_says_so(tmp_path: Path) -> None:
    found = map_of(disks.blank(tmp_path / "disk", MIB))
    assert found.partitions == ()
    assert "no partition table" in found.notes[0]
    assert set(found.spaces["kind"].tolist()) == {SpaceKind.UNKNOWN}


@pytest.mark.parametrize(
    ("name", "offset", "magic"),
    [
        ("xfs", 0, b"XFSB"),
        ("btrfs", 65600, b"_BHRfS_M"),
        ("luks", 0, b"LUKS\xba\xbe\0\2"),
        ("bitlocker", 3, b"-FVE-FS-"),
        ("f2fs", 1024, b"\x10\x20\xf5\xf2"),
        ("erofs", 1024, b"\xe2\xe1\xf5\xe0"),
        ("squashfs", 0, b"hsqs"),
        ("apfs", 32, b"NXSB"),
        ("iso9660", 32769, b"CD001"),
        ("linux raid", 4096, b"\xfc\x4e\x2b\xa9"),
        ("swap", 4086, b"SWAPSPACE2"),
    ],
)
def test_what_is_not_read_is_named(tmp_path: Path, name: str, offset: int, magic: bytes) -> None:
    path = disks.blank(tmp_path / "disk", MIB)
    edit(path, offset, magic)
    found = map_of(path)
    (part,) = found.partitions
    assert part.filesystem == name
    swap = name == "swap"
    assert part.read == swap
    assert (part.note is None) == swap
    kind = SpaceKind.SWAP if swap else SpaceKind.NOT_READ
    assert set(found.spaces["kind"].tolist()) == {kind}


def test_labels_and_uuids_are_told(tmp_path: Path) -> None:
    disks.require("mke2fs", "mkfs.fat", "mkswap")
    ext = disks.make_ext(tmp_path / "ext", 8 * MIB, "-t", "ext4", "-L", "wurzel")
    assert probed(ext) == Probe("ext4", "wurzel", "01234567-89ab-cdef-0123-456789abcdef")
    fat = disks.make_fat(tmp_path / "fat", 8 * MIB, 12, "BOOT")
    assert probed(fat) == Probe("fat12", "BOOT", "1234-5678")
    swap = disks.blank(tmp_path / "swap", MIB)
    name = "01234567-89ab-cdef-0123-456789abcdef"
    disks.run("mkswap", "-q", "-L", "tausch", "-U", name, swap)
    assert probed(swap) == Probe("swap", "tausch", name)


@pytest.mark.parametrize("seed", range(40))
def test_noise_in_the_tables_is_survived(disk: Path, seed: int) -> None:
    label = random.Random(seed).choice(["gpt", "dos"])
    disks.partition(disk, label, [Slot(1, 5, LINUX), Slot(8, 10, LINUX), Slot(20, 9, LINUX)])
    choose = random.Random(seed)
    for _ in range(choose.choice([1, 5, 50])):
        place = choose.choice([choose.randrange(446, 512), choose.randrange(512, 17000)])
        edit(disk, place, choose.randbytes(choose.choice([1, 4, 16])))
    found = map_of(disk)
    ends = [0]
    for part in found.partitions:
        assert isinstance(part, Partition)
        assert part.length > 0
        assert part.start >= ends[-1]
        ends.append(part.stop)
    assert ends[-1] <= found.size
