"""File systems: whose each block is, held against the tools that made them."""

from __future__ import annotations

import functools
import os
import random
import re
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcowdelta import open_image
from qcowdelta.disk import tsk
from qcowdelta.disk.contents import Contents
from qcowdelta.disk.diskmap import DiskMap, read_disk
from qcowdelta.disk.ext.read import read_ext
from qcowdelta.disk.files import Type
from qcowdelta.disk.kinds import SpaceKind, VolumeState
from qcowdelta.disk.volume import Volume
from tests.support import disks
from tests.support.disks import MIB, must_tile

SIZE = 96 * MIB
OPTIONS = {
    "ext2-1k": "-t ext2 -b 1024",
    "ext2-4k": "-t ext2 -b 4096",
    "ext2-old": "-t ext2 -b 1024 -O none -I 128",
    "ext2-no-filetype": "-t ext2 -O ^filetype",
    "ext3-1k": "-t ext3 -b 1024",
    "ext3-2k": "-t ext3 -b 2048",
    "ext4-1k": "-t ext4 -b 1024",
    "ext4-2k": "-t ext4 -b 2048",
    "ext4-4k": "-t ext4 -b 4096",
    "ext4-64k": "-t ext4 -b 65536 -I 256 -N 2000 -J size=4",
    "no-64bit": "-t ext4 -O ^64bit",
    "no-extents": "-t ext4 -O ^extents,^64bit",
    "meta-bg": "-t ext4 -b 1024 -O meta_bg,^resize_inode",
    "meta-bg-32-bit": "-t ext4 -b 1024 -O meta_bg,^resize_inode,^64bit",
    "sparse-super2": "-t ext4 -b 1024 -O sparse_super2",
    "no-sparse-super": "-t ext4 -b 1024 -O ^sparse_super,^resize_inode",
    "inline-data": "-t ext4 -O inline_data",
    "inline-data-512": "-t ext4 -O inline_data -I 512",
    "bigalloc": "-t ext4 -b 1024 -O bigalloc -C 8192",
    "bigalloc-inline": "-t ext4 -O bigalloc,inline_data -C 16384",
    "no-journal": "-t ext4 -O ^has_journal",
    "no-flex-bg": "-t ext4 -b 1024 -O ^flex_bg",
    "flex-bg-64": "-t ext4 -b 1024 -G 64",
    "uninit-bg": "-t ext4 -b 1024 -O uninit_bg,^metadata_csum",
    "no-checksums": "-t ext4 -O ^uninit_bg,^metadata_csum",
    "eager": "-t ext4 -E lazy_itable_init=0,lazy_journal_init=0",
    "inode-128": "-t ext4 -I 128",
    "inode-1024": "-t ext4 -I 1024",
    "orphan-file": "-t ext4 -O orphan_file",
    "quota": "-t ext4 -O quota,project",
    "mmp": "-t ext4 -O mmp",
    "ea-inode": "-t ext4 -O ea_inode",
    "large-dir": "-t ext4 -O large_dir",
    "encrypt": "-t ext4 -O encrypt",
    "casefold": "-t ext4 -O casefold",
    "verity": "-t ext4 -O verity",
    "fast-commit": "-t ext4 -O fast_commit",
    "small-groups": "-t ext4 -b 1024 -g 1024",
    "many-inodes": "-t ext4 -b 1024 -i 2048",
    "huge-file-off": "-t ext4 -O ^huge_file,^dir_nlink",
}


@contextmanager
def volume(path: Path) -> Iterator[Volume]:
    with open_image(path, format="raw") as image:
        yield Volume.of(image, image.path)


def read(path: Path) -> Contents:
    with volume(path) as found:
        contents = read_ext(found)
    must_tile(contents, path.stat().st_size)
    return contents


def map_of(path: Path) -> DiskMap:
    with open_image(path, format="raw") as image:
        found = read_disk(image)
    assert int(found.spaces["length"].sum()) == found.size
    return found


def bytes_of(contents: Contents, kind: SpaceKind) -> int:
    return int(contents.spaces["length"][contents.spaces["kind"] == kind].sum())


def rows_by_path(contents: Contents) -> dict[bytes, int]:
    files = contents.files
    return {files.path(i): int(files.names["file"][i]) for i in range(files.names.size)}


def owned(contents: Contents, unit: int) -> dict[int, set[int]]:
    """The blocks, or clusters, of each file that has any."""
    out: dict[int, set[int]] = {}
    for start, length, owner, _ in contents.spaces.tolist():
        if owner >= 0:
            out.setdefault(owner, set()).update(range(start // unit, -(-(start + length) // unit)))
    return out


@functools.cache
def source(folder: Path) -> Path:
    """A folder with every shape of file: sizes, holes, links, long names, deep and large ones."""
    root = folder / "source"
    choose = random.Random(1)
    tree = {f"/many/a name that is rather long, number {i:06d}": choose.randbytes(i % 300)
            for i in range(700)}  # fmt: skip
    sizes = (0, 1, 59, 60, 61, 1023, 4096, 70_000, 900_000)
    tree |= {f"/sizes/{size}": disks.content(size, size) for size in sizes}
    tree["/deep/" + "/".join("d" * 30) + "/end"] = b"down here"
    disks.write_tree(root, tree)
    with (root / "sparse").open("wb") as out:
        for number in range(500):
            out.seek(number * 20_480)
            out.write(b"x" * 4096)
    (root / "short link").symlink_to("a" * 20)
    (root / "long link").symlink_to("b" * 200)
    os.mkfifo(root / "pipe")
    os.link(root / "sizes/70000", root / "deep/hard link")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return source(tmp_path_factory.mktemp("filesystems"))


def header(path: Path) -> dict[str, str]:
    """What dumpe2fs says of a file system."""
    lines = disks.run("dumpe2fs", "-h", path).splitlines()
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def inside(root: Path) -> set[bytes]:
    return {b"/" + bytes(path.relative_to(root)) for path in root.rglob("*")}


QUICK = {"ext2-1k", "ext4-4k", "bigalloc-inline", "meta-bg"}


@pytest.fixture(
    params=[
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name in sorted(OPTIONS)
    ],
    scope="module",
)
def made(
    request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A file system made with each set of options."""
    disks.require("mke2fs", "debugfs", "dumpe2fs")
    path = tmp_path_factory.mktemp("ext") / request.param
    try:
        return disks.make_ext(path, SIZE, *OPTIONS[request.param].split(), folder=folder)
    except disks.ToolError as error:
        if "Invalid filesystem option" in str(error):
            pytest.skip(f"this mke2fs does not know {request.param}")
        raise


class TestExt:
    def test_it_is_understood_and_sound(self, made: Path) -> None:
        found = read(made)
        assert found.notes == []
        assert found.sound
        assert found.state is VolumeState.CLEAN

    def test_free_space_is_what_the_file_system_counts(self, made: Path) -> None:
        found, facts = read(made), header(made)
        assert bytes_of(found, SpaceKind.FREE) == int(facts["Free blocks"]) * int(
            facts["Block size"]
        )
        assert bytes_of(found, SpaceKind.UNKNOWN) == 0

    def test_every_name_is_found(self, made: Path, folder: Path) -> None:
        assert set(rows_by_path(read(made))) == inside(folder) | {b"/lost+found"}

    def test_every_file_has_the_blocks_that_debugfs_says(self, made: Path) -> None:
        """debugfs counts the blocks of trees in, which here are of the kind METADATA."""
        found, facts = read(made), header(made)
        block = int(facts["Block size"])
        unit = int(facts.get("Cluster size", block))
        mine = owned(found, unit)
        # Of a short link debugfs takes the target for numbers of blocks.
        rows = sorted(
            row
            for row in set(rows_by_path(found).values())
            if found.files.type[row] in (Type.FILE, Type.DIRECTORY)
        )
        trees = {
            number
            for start, length, owner, kind in found.spaces.tolist()
            if owner < 0 and kind == SpaceKind.METADATA
            for number in range(start // unit, -(-(start + length) // unit))
        }
        said = disks.debugfs(made, *(f"blocks <{found.files.inode[row]}>" for row in rows))
        answers = re.findall(r"^debugfs: blocks .*\n(.*)", said, re.MULTILINE)
        assert len(answers) == len(rows)
        for row, answer in zip(rows, answers, strict=True):
            theirs = {int(number) * block // unit for number in answer.split()}
            assert mine.get(row, set()) <= theirs
            assert theirs - mine.get(row, set()) <= trees

    def test_content_lies_where_it_says(self, made: Path, folder: Path) -> None:
        found = read(made)
        files = found.files
        paths = rows_by_path(found)
        for name in ("sparse", "sizes/900000", "sizes/70000", "sizes/4096"):
            row = paths[b"/" + name.encode()]
            if files.inline[row]:
                continue
            data = np.zeros(int(files.size[row]) + 65536, np.uint8)
            whole = np.memmap(made, np.uint8, "r")
            for file, logical, length, physical in files.parts.tolist():
                if file == row:
                    data[logical : logical + length] = whole[physical : physical + length]
            wanted = (folder / name).read_bytes()
            assert data[: len(wanted)].tobytes() == wanted


def ext(tmp_path: Path, *options: str, folder: Path | None = None) -> Path:
    disks.require("mke2fs", "debugfs", "dumpe2fs")
    return disks.make_ext(tmp_path / "ext", 16 * MIB, *(options or ("-t", "ext4")), folder=folder)


class TestStatesOfExt:
    def test_a_journal_to_be_replayed_is_told(self, tmp_path: Path) -> None:
        path = ext(tmp_path)
        disks.debugfs(path, "feature needs_recovery", write=True)
        found = read(path)
        assert found.state is VolumeState.NEEDS_RECOVERY
        assert not found.sound

    def test_one_that_is_mounted_is_told(self, tmp_path: Path) -> None:
        path = ext(tmp_path)
        disks.debugfs(path, "ssv state 0", write=True)
        assert read(path).state is VolumeState.DIRTY

    def test_one_with_errors_is_told(self, tmp_path: Path) -> None:
        path = ext(tmp_path)
        disks.debugfs(path, "ssv state 3", write=True)
        assert read(path).state is VolumeState.ERRORS

    def test_bitmaps_that_disagree_are_told(self, tmp_path: Path, folder: Path) -> None:
        path = ext(tmp_path, "-t", "ext4", "-b", "1024", folder=folder)
        said = disks.debugfs(path, "blocks /sizes/70000")
        first = int(said.split("\n", 2)[1].split()[0])
        disks.debugfs(path, f"freeb {first} 4", write=True)
        found = read(path)
        assert found.state is VolumeState.DAMAGED
        assert not found.sound
        assert any("count as free" in note for note in found.notes)

    def test_a_file_system_larger_than_its_partition_is_told(self, tmp_path: Path) -> None:
        path = ext(tmp_path)
        os.truncate(path, 12 * MIB)
        found = read(path)
        assert any("larger than its partition" in note for note in found.notes)
        assert not found.sound

    def test_what_lies_behind_a_file_system_is_unknown(self, tmp_path: Path) -> None:
        path = ext(tmp_path)
        os.truncate(path, 20 * MIB)
        found = read(path)
        assert bytes_of(found, SpaceKind.UNKNOWN) == 4 * MIB
        assert found.sound

    def test_an_unknown_feature_is_not_guessed_at(self, tmp_path: Path) -> None:
        path = ext(tmp_path)
        with path.open("r+b") as out:
            out.seek(1024 + 96)
            out.write((0x80000000 | 0x2C2).to_bytes(4, "little"))
        (part,) = map_of(path).partitions
        assert not part.read
        assert "0x80000000" in str(part.note)

    def test_a_file_without_a_name_keeps_its_blocks(self, tmp_path: Path, folder: Path) -> None:
        path = ext(tmp_path, "-t", "ext4", "-b", "1024", folder=folder)
        disks.debugfs(path, "unlink /sizes/70000", "unlink /deep/hard\\ link", write=True)
        disks.debugfs(path, 'unlink "/deep/hard link"', write=True)
        found = read(path)
        unnamed = np.flatnonzero((found.files.first_names() < 0) & (found.files.size == 70_000))
        (row,) = unnamed.tolist()
        assert len(owned(found, 1024)[row]) == 69
        assert found.files.path_of(row) == b""

    def test_what_a_running_kernel_wrote_is_read(self, tmp_path: Path) -> None:
        """Indexed directories, attributes in blocks of their own, preallocation, orphans."""
        path = ext(tmp_path, "-t", "ext4", "-b", "1024")
        with mounted(path, tmp_path / "mnt") as root:
            many = root / "many"
            many.mkdir()
            for number in range(3000):
                (many / f"a file with a name of some length {number:06d}").touch()
            (root / "data").write_bytes(disks.content(1, 300_000))
            os.setxattr(root / "data", "user.long", b"v" * 700)
            with (root / "ahead").open("wb") as out:
                os.posix_fallocate(out.fileno(), 0, 400_000)
        found = read(path)
        facts = header(path)
        assert found.sound, found.notes
        assert bytes_of(found, SpaceKind.FREE) == int(facts["Free blocks"]) * 1024
        paths = rows_by_path(found)
        assert len([p for p in paths if p.startswith(b"/many/")]) == 3000
        assert len(owned(found, 1024)[paths[b"/ahead"]]) == -(-400_000 // 1024)
        assert not (found.files.parts["file"] == paths[b"/ahead"]).any()
        assert found.files.type[paths[b"/many"]] == Type.DIRECTORY


@contextmanager
def mounted(path: Path, where: Path, *options: str) -> Iterator[Path]:
    """Mount a file system, if this machine lets us."""
    where.mkdir(exist_ok=True)
    chosen = ",".join(("loop", *options))
    done = subprocess.run(
        ["mount", "-o", chosen, path, where], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mounting is not possible here: {done.stderr.strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)


# --- NTFS and FAT -------------------------------------------------------------------------------


def parts_of(contents: Contents, path: Path, name: bytes) -> bytes:
    """A file's content, put together from where it is said to lie."""
    row = rows_by_path(contents)[name]
    data = bytearray(int(contents.files.size[row]))
    whole = path.read_bytes()
    for file, logical, length, physical in contents.files.parts.tolist():
        if file == row:
            piece = whole[physical : physical + length]
            data[logical : logical + length] = piece[: max(0, len(data) - logical)]
    return bytes(data[: int(contents.files.size[row])])


def contents_of(path: Path) -> Contents:
    (held,) = map_of(path).contents
    must_tile(held, path.stat().st_size)
    return held


def with_tsk(*names: str) -> None:
    pytest.importorskip("pytsk3", reason="pytsk3 is not installed (qcowdelta[files])")
    disks.require(*names)


@pytest.mark.parametrize(("bits", "size"), [(12, 4), (16, 32), (32, 64)])
def test_fat_is_read(tmp_path: Path, bits: int, size: int) -> None:
    with_tsk("mkfs.fat", "mcopy", "mmd", "mdel")
    path = disks.make_fat(tmp_path / "fat", size * MIB, bits, "LABEL")
    large = disks.content(1, 700_001)
    disks.run("mmd", "-i", path, "::folder")
    disks.put_fat(path, tmp_path, "gone", disks.content(2, 30_000))
    disks.put_fat(path, tmp_path, "folder/Large File Name.bin", large)
    disks.run("mdel", "-i", path, "::gone")
    disks.put_fat(path, tmp_path, "small", b"hello")
    found = contents_of(path)
    assert (found.state, found.notes, found.sound) == (VolumeState.CLEAN, [], True)
    assert set(rows_by_path(found)) == {b"/folder", b"/folder/Large File Name.bin", b"/small"}
    assert parts_of(found, path, b"/folder/Large File Name.bin") == large
    assert bytes_of(found, SpaceKind.FREE) == free_in_fat(path)
    assert bytes_of(found, SpaceKind.FREE) > 0


def free_in_fat(path: Path) -> int:
    said = disks.run("mdir", "-i", path, "::")
    return int(re.sub(r"\s", "", re.findall(r"([\d\s]+) bytes free", said)[-1]))


def test_an_exfat_that_a_kernel_wrote_is_read(tmp_path: Path) -> None:
    with_tsk("mkfs.exfat")
    path = disks.blank(tmp_path / "exfat", 16 * MIB)
    disks.run("mkfs.exfat", path)
    empty = contents_of(path)
    assert (empty.state, empty.notes, empty.sound) == (VolumeState.CLEAN, [], True)
    with mounted(path, tmp_path / "mnt") as root:
        (root / "folder").mkdir()
        (root / "folder" / "Größe.bin").write_bytes(disks.content(1, 700_001))
        info = os.statvfs(root)
    found = contents_of(path)
    assert found.sound
    assert parts_of(found, path, "/folder/Größe.bin".encode()) == disks.content(1, 700_001)
    assert bytes_of(found, SpaceKind.FREE) == info.f_bfree * info.f_frsize


def test_a_mounted_fat_is_told(tmp_path: Path) -> None:
    with_tsk("mkfs.fat")
    path = disks.make_fat(tmp_path / "fat", 32 * MIB, 16, "LABEL")
    with path.open("r+b") as out:
        out.seek(37)
        out.write(b"\x01")
    assert contents_of(path).state is VolumeState.DIRTY


@pytest.mark.parametrize(("bits", "size"), [(12, 4), (16, 32), (32, 64)])
def test_a_fat_that_was_cut_off_is_damaged(tmp_path: Path, bits: int, size: int) -> None:
    with_tsk("mkfs.fat")
    path = disks.make_fat(tmp_path / "fat", size * MIB, bits, "LABEL")
    os.truncate(path, size * MIB // 2)
    found = contents_of(path)
    assert (found.state, found.sound) == (VolumeState.DAMAGED, False)
    assert found.notes == ["it is larger than its partition"]


def test_an_exfat_that_was_cut_off_is_damaged(tmp_path: Path) -> None:
    with_tsk("mkfs.exfat")
    path = disks.blank(tmp_path / "exfat", 16 * MIB)
    disks.run("mkfs.exfat", path)
    os.truncate(path, 12 * MIB)
    found = contents_of(path)
    assert not found.sound


@pytest.mark.parametrize(("bits", "size"), [(12, 4), (16, 32), (32, 64)])
def test_a_fat_whose_tables_differ_is_damaged(tmp_path: Path, bits: int, size: int) -> None:
    with_tsk("mkfs.fat", "mcopy")
    path = disks.make_fat(tmp_path / "fat", size * MIB, bits, "LABEL")
    disks.put_fat(path, tmp_path, "file", disks.content(2, 300_000))
    boot = path.read_bytes()[:512]
    sector, reserved = struct.unpack_from("<H", boot, 11)[0], struct.unpack_from("<H", boot, 14)[0]
    length = struct.unpack_from("<H", boot, 22)[0] or struct.unpack_from("<I", boot, 36)[0]
    with path.open("r+b") as out:
        out.seek((reserved + length) * sector + 24)
        out.write(bytes(24))
    found = contents_of(path)
    assert (found.state, found.sound) == (VolumeState.DAMAGED, False)
    assert found.notes == ["its tables are not the same"]


def test_a_fat_of_whose_tables_one_is_in_use_is_not_relied_on(tmp_path: Path) -> None:
    with_tsk("mkfs.fat")
    path = disks.make_fat(tmp_path / "fat", 64 * MIB, 32, "LABEL")
    with path.open("r+b") as out:
        out.seek(40)
        out.write(b"\x81\0")
    found = contents_of(path)
    assert not found.sound
    assert found.notes == ["only one of its tables is kept up to date"]


def test_ntfs_is_read(tmp_path: Path) -> None:
    with_tsk("mkfs.ntfs", "ntfscp")
    path = disks.make_ntfs(tmp_path / "ntfs", 16 * MIB, "Größe")
    large = disks.content(1, 700_001)
    disks.put_ntfs(path, tmp_path, "large.bin", large)
    disks.put_ntfs(path, tmp_path, "small.txt", b"hello\n")
    found = contents_of(path)
    assert (found.state, found.notes, found.sound) == (VolumeState.CLEAN, [], True)
    assert found.label == "Größe"
    assert {b"/large.bin", b"/small.txt"} <= set(rows_by_path(found))
    assert parts_of(found, path, b"/large.bin") == large
    row = rows_by_path(found)[b"/small.txt"]
    assert row not in owned(found, 4096)
    said = disks.run("ntfsinfo", "-m", path)
    free = int(re.findall(r"Free Clusters:\s+(\d+)", said)[0])
    assert bytes_of(found, SpaceKind.FREE) == free * 4096


def test_a_dirty_ntfs_is_told(tmp_path: Path) -> None:
    with_tsk("mkfs.ntfs")
    path = disks.make_ntfs(tmp_path / "ntfs", 16 * MIB, "X")
    data = bytearray(path.read_bytes())
    # The flags are the last of the twelve bytes of $VOLUME_INFORMATION, in the record of $Volume.
    record = data.index(b"FILE0", 4 * 4096) + 3 * 1024
    at = data.index(b"\x70\0\0\0", record)
    value = at + int.from_bytes(data[at + 20 : at + 22], "little")
    data[value + 10] |= 1
    path.write_bytes(data)
    assert contents_of(path).state is VolumeState.DIRTY


def restart_page(lsn: int, *, in_use: bool, closed: bool) -> bytes:
    """One of the two pages with which the log of an NTFS begins; it has one client."""
    size, place = 4096, 64
    free, used = (0xFFFF, 0) if in_use else (0, 0xFFFF)
    area = struct.pack("<QHHHHIHHQIHHII", lsn, 1, free, used, 2 if closed else 0, 67 - 22, 64 + 160,
                       64, 2 * MIB, 0, 48, 64, 1, 0).ljust(64, b"\0")  # fmt: skip
    client = struct.pack("<QQHHHHII", lsn, 0, 0xFFFF, 0xFFFF, 0, 0, 0, 8)
    client += "NTFS".encode("utf-16-le").ljust(128, b"\0")
    head = struct.pack("<4sHHQIIHHH", b"RSTR", 30, 9, 0, size, size, place, 1, 1)
    page = bytearray((head.ljust(place, b"\0") + area + client).ljust(size, b"\0"))
    # The last two bytes of each sector are a number, and what belongs there is behind it.
    struct.pack_into("<H", page, 30, 7)
    for end in range(510, size, 512):
        struct.pack_into("<H", page, end, 7)
    return bytes(page)


OPEN = {"in_use": True, "closed": False}
CLOSED = {"in_use": True, "closed": True}
UNUSED = {"in_use": False, "closed": False}


@pytest.mark.parametrize(
    ("pages", "state"),
    [
        ([(9, OPEN), (8, CLOSED)], VolumeState.NEEDS_RECOVERY),
        ([(8, CLOSED), (9, OPEN)], VolumeState.NEEDS_RECOVERY),
        ([(9, CLOSED), (8, OPEN)], VolumeState.CLEAN),
        ([(9, CLOSED), (9, CLOSED)], VolumeState.CLEAN),
        ([(9, UNUSED), (9, UNUSED)], VolumeState.CLEAN),
    ],
)
def test_an_ntfs_whose_log_is_open_has_to_be_recovered(
    tmp_path: Path, pages: list[tuple[int, dict[str, bool]]], state: VolumeState
) -> None:
    with_tsk("mkfs.ntfs")
    path = disks.make_ntfs(tmp_path / "ntfs", 16 * MIB, "X")
    write_log(path, b"".join(restart_page(lsn, **how) for lsn, how in pages))
    found = contents_of(path)
    assert (found.state, found.sound) == (state, state is VolumeState.CLEAN)
    if disks.find("ntfs-3g.probe"):
        unclean = 15
        wanted = unclean if state is VolumeState.NEEDS_RECOVERY else 0
        disks.run("ntfs-3g.probe", "--readwrite", path, accept=(wanted,))


@pytest.mark.parametrize(
    "log",
    [bytes(8192), b"CHKD" + bytes(8188), b"RSTR" + b"\xff" * 8188, disks.content(1, 8192)],
    ids=["zeros", "checked", "absurd", "noise"],
)
def test_an_ntfs_whose_log_is_not_understood_is_not_clean(tmp_path: Path, log: bytes) -> None:
    with_tsk("mkfs.ntfs")
    path = disks.make_ntfs(tmp_path / "ntfs", 16 * MIB, "X")
    write_log(path, log)
    assert contents_of(path).state is VolumeState.NEEDS_RECOVERY


def write_log(path: Path, data: bytes) -> None:
    """Write the beginning of an NTFS's log: all that is ones in an empty file system."""
    at = path.read_bytes().index(b"\xff" * 65536)
    with path.open("r+b") as out:
        out.seek(at)
        out.write(data)


@pytest.mark.parametrize(
    ("name", "head", "state"),
    [
        ("hiberfil.sys", b"hibr".ljust(8192, b"x"), VolumeState.DIRTY),
        ("HIBERFIL.SYS", b"HIBR".ljust(8192, b"x"), VolumeState.DIRTY),
        ("hiberfil.sys", b"hibr", VolumeState.DIRTY),
        ("hiberfil.sys", b"wake".ljust(8192, b"x"), VolumeState.CLEAN),
        ("hiberfil.sys", bytes(8192), VolumeState.CLEAN),
        ("hiberfil.old", b"hibr".ljust(8192, b"x"), VolumeState.CLEAN),
    ],
)
def test_an_ntfs_on_which_windows_is_hibernated_is_told(
    tmp_path: Path, name: str, head: bytes, state: VolumeState
) -> None:
    with_tsk("mkfs.ntfs", "ntfscp")
    path = disks.make_ntfs(tmp_path / "ntfs", 16 * MIB, "X")
    disks.put_ntfs(path, tmp_path, name, head)
    found = contents_of(path)
    assert (found.state, found.sound) == (state, state is VolumeState.CLEAN)
    assert any("hibernated" in note for note in found.notes) == (state is VolumeState.DIRTY)


class TestWithoutAndAgainstTheSleuthKit:
    @pytest.fixture
    def fat(self, tmp_path: Path) -> Path:
        disks.require("mkfs.fat")
        return disks.make_fat(tmp_path / "fat", 4 * MIB, 12, "LABEL")

    def note(self, path: Path) -> str:
        (part,) = map_of(path).partitions
        assert not part.read
        return str(part.note)

    def test_without_it_a_note_says_what_to_install(
        self, fat: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        assert "qcowdelta[files]" in self.note(fat)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("program", "said"),
        [
            ("import os; os.abort()", "failed"),
            ("import os; os.kill(os.getpid(), 9)", "failed"),
            ("", "failed"),
            ("import time; time.sleep(60)", "too long"),
            ("s.sendall(b'R' + (12).to_bytes(4, 'little') + b'\\xff' * 12); s.recv(9)", "nonsense"),
            ("s.sendall(b'F\\xff\\xff\\xff\\xff'); s.recv(9)", "nonsense"),
            ("s.sendall(b'F\\2\\0\\0\\0{}'); s.recv(9)", "nonsense"),
            ("s.sendall(b'D\\2\\0\\0\\0{}'); s.recv(9)", "nonsense"),
            ("s.sendall(b'D\\2\\0\\0\\0[['); s.recv(9)", "nonsense"),
            ("s.sendall(b'F' + (10**5).to_bytes(4, 'little') + b'[' * 10**5); s.recv(9)", "nonsen"),
            ("s.sendall(b'E\\4\\0\\0\\0\"no\"'); s.recv(9)", "no"),
        ],
    )
    def test_its_death_and_its_lies_are_a_note(
        self, fat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, said: str
    ) -> None:
        with_tsk()
        worker = tmp_path / "worker.py"
        start = "import socket, sys\ns = socket.socket(fileno=int(sys.argv[1]))\n"
        worker.write_text(start + program)
        monkeypatch.setattr(tsk, "_WORKER", worker)
        ask: Any = functools.partial(tsk.ask_tsk, seconds=2)
        monkeypatch.setattr("qcowdelta.disk.fat.ask_tsk", ask)
        assert said in self.note(fat)
