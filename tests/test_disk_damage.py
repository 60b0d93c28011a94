"""Damaged disks: whatever is in them, nothing crashes or hangs, and every sum is exact.

A case is a sound file system in whose structures a seed chose what to spoil.
"""

from __future__ import annotations

import functools
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from qcowdelta import Image, ImageDelta, open_image
from qcowdelta.attribution.attribute import attribute
from qcowdelta.attribution.figures import directory_tree
from qcowdelta.disk.contents import Contents, UnreadableError
from qcowdelta.disk.diskmap import read_disk
from qcowdelta.disk.ext.read import read_ext
from qcowdelta.disk.fat import read_exfat, read_fat
from qcowdelta.disk.kinds import SpaceKind
from qcowdelta.disk.ntfs import read_ntfs
from qcowdelta.disk.volume import Volume
from tests.support import disks
from tests.support.disks import MIB, must_tile

SIZE = 4 * MIB
LONGEST = 5.0  # seconds, on a busy machine; one takes some 20 ms
EXT = {
    "ext2": "-t ext2 -b 1024",
    "ext3": "-t ext3 -b 1024 -J size=1",
    "ext4": "-t ext4 -b 1024 -J size=1",
    "ext4-4k": "-t ext4 -b 4096 -O ^has_journal -N 600",
    "inline": "-t ext4 -b 1024 -O inline_data -J size=1",
    "meta-bg": "-t ext4 -b 1024 -O meta_bg,^resize_inode,^has_journal",
    "bigalloc": "-t ext4 -b 1024 -O bigalloc,^has_journal -C 4096",
    "no-checksums": "-t ext4 -b 1024 -O ^metadata_csum,uninit_bg -J size=1",
    "small-groups": "-t ext2 -b 1024 -O ^sparse_super,^resize_inode -g 512",
}
EXT_CASES, EXT_SLICES = 800, 8
TSK_CASES, TSK_SLICES = 200, 4
STRUCTURES = {
    SpaceKind.DIRECTORY, SpaceKind.INODE_TABLE, SpaceKind.BITMAP, SpaceKind.METADATA,
}  # fmt: skip
WORDS = (0, 1, 0xFF, 4096, 8191, 8192, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@dataclass(frozen=True)
class Sound:
    """A file system, and where its structures are."""

    path: Path
    data: bytes
    structures: tuple[tuple[int, int], ...]


@contextmanager
def volume(path: Path) -> Iterator[tuple[Image, Volume]]:
    with open_image(path, format="raw") as image:
        yield image, Volume.of(image, image.path)


@functools.cache
def tree(folder: Path) -> Path:
    root = folder / "tree"
    choose = random.Random(2)
    files = {f"/many/a name {n:04d}": choose.randbytes(n % 200) for n in range(150)}
    for number, size in enumerate((0, 100, 3000, 5000, 20_000, 70_000)):
        files[f"/a/b/c/file {number}"] = choose.randbytes(size)
    disks.write_tree(root, files)
    with (root / "sparse").open("wb") as out:
        for number in range(200):
            out.seek(number * 4096)
            out.write(b"x" * 900)
    (root / "short link").symlink_to("a" * 20)
    (root / "long link").symlink_to("b" * 200)
    return root


def sound(path: Path, contents: Contents) -> Sound:
    assert contents.sound, contents.notes
    rows = contents.spaces.tolist()
    places = tuple((start, length) for start, length, _, kind in rows if kind in STRUCTURES)
    return Sound(path, path.read_bytes(), places)


@pytest.fixture(scope="module")
def exts(tmp_path_factory: pytest.TempPathFactory) -> list[Sound]:
    disks.require("mke2fs")
    folder = tmp_path_factory.mktemp("damage")
    made = []
    for name, options in EXT.items():
        path = disks.make_ext(folder / name, SIZE, *options.split(), folder=tree(folder))
        with volume(path) as (_, whole):
            made.append(sound(path, read_ext(whole)))
    return made


def spoil(base: Sound, choose: random.Random) -> bytearray:
    """Return a file system's bytes with something wrong in its structures."""
    data = bytearray(base.data)
    for _ in range(choose.choice([1, 1, 3, 10, 100, 1000])):
        start, length = choose.choice(base.structures)
        if choose.random() < 0.25:
            start, length = choose.choice([(0, 512), (1024, 264)])
        at = start + choose.randrange(length)
        word = at & ~3
        what = choose.random()
        if what < 0.4:
            data[at] ^= 1 << choose.randrange(8)
        elif what < 0.6:
            data[word : word + 4] = choose.randbytes(4)
        elif what < 0.9:
            data[word : word + 4] = choose.choice(WORDS).to_bytes(4, "little")
        else:
            length = min(64, len(data) - at)
            data[at : at + length] = choose.randbytes(length)
    return data


def must_be_whole(contents: Contents, length: int) -> None:
    must_tile(contents, length)
    assert (contents.spaces["owner"] < contents.files.count).all()
    files = contents.files
    for index in range(files.names.size):
        assert files.path(index).startswith(b"/")


def sums_hold(old: Path, new: Path, granularity: int) -> None:
    with volume(old) as (first, _), volume(new) as (second, _):
        found = attribute(ImageDelta(first, second, granularity=granularity), first, second)
    assert sum(found.by_kind.values()) == found.changed_bytes
    assert sum(share.changed_bytes for share in found.by_partition) == found.changed_bytes
    assert int(found.cells.changed.sum()) == found.changed_bytes
    owned = found.by_kind.get(SpaceKind.FILE_DATA, 0) + found.by_kind.get(SpaceKind.DIRECTORY, 0)
    assert sum(file.changed_bytes for file in found.files) == owned
    for number in range(len(found.partitions)):
        directory_tree(found.files, number)


class Tried:
    """Tries cases, and counts how they ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ended: Counter[str] = Counter()

    def case(self, base: Sound, seed: int, read: object, *, whole: bool) -> None:
        assert callable(read)
        choose = random.Random(seed)
        self.path.write_bytes(spoil(base, choose))
        began = time.monotonic()
        with volume(self.path) as (_, part):
            try:
                contents = read(part)
                must_be_whole(contents, len(base.data))
                self.ended[contents.state.value] += 1
            except UnreadableError:
                self.ended["not read"] += 1
        if whole:
            sums_hold(base.path, self.path, choose.choice([512, 4096, 65536]))
            sums_hold(self.path, base.path, 4096)
        assert time.monotonic() - began < LONGEST * (3 if whole else 1)


def slices(cases: int, parts: int) -> list[object]:
    """Slices of cases; all but the first are slow."""
    return [
        pytest.param(range(part, cases, parts), marks=[pytest.mark.slow] if part else [])
        for part in range(parts)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("cases", slices(EXT_CASES, EXT_SLICES))
def test_spoiled_ext_file_systems_are_survived(
    exts: list[Sound], tmp_path: Path, cases: range
) -> None:
    tried = Tried(tmp_path / "case")
    for seed in cases:
        tried.case(exts[seed % len(exts)], seed, read_ext, whole=seed % 10 == 0)
    assert {"damaged", "clean", "not read"} <= set(tried.ended)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Sound, object]]:
    pytest.importorskip("pytsk3", reason="pytsk3 is not installed (qcowdelta[files])")
    disks.require("mkfs.fat", "mcopy", "mmd", "mkfs.ntfs", "ntfscp")
    folder = tmp_path_factory.mktemp("others")
    made: list[tuple[Sound, object]] = []
    for bits, size in ((12, 2), (16, 16), (32, 34)):
        path = disks.make_fat(folder / f"fat{bits}", size * MIB, bits, "LABEL")
        disks.run("mmd", "-i", path, "::folder")
        for number in range(20):
            where = f"{'folder/' if number % 2 else ''}a long name {number}"
            disks.put_fat(path, folder, where, disks.content(number, number * 700))
        with volume(path) as (_, whole):
            made.append((sound(path, read_fat(whole)), read_fat))
    if disks.find("mkfs.exfat") is not None:
        path = disks.blank(folder / "exfat", 4 * MIB)
        disks.run("mkfs.exfat", path)
        with volume(path) as (_, whole):
            made.append((sound(path, read_exfat(whole)), read_exfat))
    path = disks.make_ntfs(folder / "ntfs", 4 * MIB, "LABEL")
    for number in range(20):
        disks.put_ntfs(path, folder, f"name {number}", disks.content(number, number * 700))
    with volume(path) as (_, whole):
        made.append((sound(path, read_ntfs(whole)), read_ntfs))
    return made


@pytest.mark.slow
@pytest.mark.parametrize("cases", slices(TSK_CASES, TSK_SLICES))
def test_spoiled_ntfs_and_fat_are_survived(
    others: list[tuple[Sound, object]], tmp_path: Path, cases: range
) -> None:
    tried = Tried(tmp_path / "case")
    for seed in cases:
        base, read = others[seed % len(others)]
        tried.case(base, seed, read, whole=seed % 20 == 0)
    assert "not read" in tried.ended
    assert len(tried.ended) > 1


@pytest.mark.slow
def test_noise_instead_of_structures_is_survived(exts: list[Sound], tmp_path: Path) -> None:
    """Whole structures of random bytes: each inode table, each bitmap, each directory."""
    tried = Tried(tmp_path / "case")
    for number, base in enumerate(exts):
        choose = random.Random(number)
        for start, length in base.structures[1:]:
            data = bytearray(base.data)
            data[start : start + length] = choose.randbytes(length)
            spoiled = Sound(base.path, bytes(data), ((start, 1),))
            tried.case(spoiled, number, read_ext, whole=False)


def test_a_disk_of_noise_behind_magic_numbers_is_survived(tmp_path: Path) -> None:
    magics = {"ext4": (1080, b"\x53\xef"), "ntfs": (3, b"NTFS    "), "exfat": (3, b"EXFAT   "),
              "fat": (510, b"\x55\xaa"), "gpt": (512, b"EFI PART")}  # fmt: skip
    for seed, (offset, magic) in enumerate(list(magics.values()) * 6):
        data = bytearray(random.Random(seed).randbytes(MIB))
        data[offset : offset + len(magic)] = magic
        path = tmp_path / "disk"
        path.write_bytes(data)
        with volume(path) as (image, _):
            found = read_disk(image)
        assert int(found.spaces["length"].sum()) == MIB


@pytest.mark.parametrize("read", [read_fat, read_exfat, read_ntfs, read_ext])
def test_an_empty_volume_is_unreadable(tmp_path: Path, read: object) -> None:
    assert callable(read)
    with volume(disks.blank(tmp_path / "disk", MIB)) as (_, part), pytest.raises(UnreadableError):
        read(part)


class TestHostileShapes:
    """File systems that are made to cost more than they hold."""

    def ext(self, tmp_path: Path, *options: str, size: int = 16 * MIB) -> Path:
        disks.require("mke2fs", "debugfs")
        root = tmp_path / "tree"
        disks.write_tree(root, {"/d/e/f": disks.content(1, 100_000), "/g": disks.content(2, 5_000)})
        return disks.make_ext(tmp_path / "ext", size, *options, folder=root)

    def read(self, path: Path) -> Contents:
        with volume(path) as (_, part):
            found = read_ext(part)
        must_be_whole(found, path.stat().st_size)
        return found

    def test_a_directory_in_itself_ends(self, tmp_path: Path) -> None:
        path = self.ext(tmp_path, "-t", "ext2")
        disks.debugfs(path, "ln /d /d/e/again", write=True)
        found = self.read(path)
        assert found.files.names.size == 5  # lost+found and what was there: no name twice

    def test_a_directory_that_is_not_reached_ends(self, tmp_path: Path) -> None:
        path = self.ext(tmp_path, "-t", "ext2")
        disks.debugfs(path, "ln /d /d/e/again", "unlink /d", write=True)
        found = self.read(path)
        assert {found.files.path(i) for i in range(found.files.names.size)} == {
            b"/lost+found", b"/g"
        }  # fmt: skip

    def test_files_on_the_same_blocks_share_nothing(self, tmp_path: Path) -> None:
        path = self.ext(tmp_path, "-t", "ext2", "-b", "1024")
        first = int(disks.debugfs(path, "blocks /d/e/f").split("\n", 2)[1].split()[0])
        disks.debugfs(path, f"sif /g block[0] {first}", f"sif /g block[1] {first}", write=True)
        found = self.read(path)
        assert any("more than one file" in note for note in found.notes)
        assert not found.sound

    def test_an_indirect_block_that_names_itself_ends(self, tmp_path: Path) -> None:
        path = self.ext(tmp_path, "-t", "ext2", "-b", "1024")
        found = disks.debugfs(path, "stat /d/e/f")
        tree = int(found.split("(IND):")[1].split()[0].strip(","))
        disks.debugfs(path, f"sif /d/e/f block[DIND] {tree}", f"sif /d/e/f block[TIND] {tree}",
                      write=True)  # fmt: skip
        with path.open("r+b") as out:
            out.seek(tree * 1024)
            out.write(tree.to_bytes(4, "little") * 256)
        assert any("damaged" in note for note in self.read(path).notes)

    def test_a_size_beyond_everything_costs_nothing(self, tmp_path: Path) -> None:
        old = self.ext(tmp_path, "-t", "ext4")
        new = tmp_path / "new"
        new.write_bytes(old.read_bytes())
        disks.debugfs(new, f"sif /g size {1 << 62}", f"sif /d size {1 << 60}", write=True)
        began = time.monotonic()
        sums_hold(old, new, 4096)
        sums_hold(new, old, 4096)
        assert time.monotonic() - began < LONGEST

    @pytest.mark.slow
    @pytest.mark.parametrize("options", ["", "-O ^64bit,meta_bg,^resize_inode", "-O bigalloc"])
    def test_a_large_empty_file_system_costs_little(self, tmp_path: Path, options: str) -> None:
        """An empty one of 8 TiB in a sparse file."""
        size = 8 << 40
        more = ("-E", "lazy_itable_init=1,nodiscard", "-N", "1000000")
        began = time.monotonic()
        path = self.ext(tmp_path, "-t", "ext4", *options.split(), *more, size=size)
        made = time.monotonic() - began
        with volume(path) as (_, part):
            began = time.monotonic()
            found = read_ext(part)
            assert time.monotonic() - began < max(20.0, 2 * made)
        assert found.sound, found.notes
        assert int(found.spaces["length"].sum()) == size
