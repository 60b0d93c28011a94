"""Attribution: whose the changed bytes are. Every sum is exact; the files are the right ones."""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from qcowdelta import Image, ImageDelta, PatchFile, open_image, open_patched, write_patch
from qcowdelta.attribution.advice import advise
from qcowdelta.attribution.attribute import attribute
from qcowdelta.attribution.figures import (
    Advice,
    Attribution,
    FileChange,
    FileStatus,
    FileType,
    directory_tree,
)
from qcowdelta.disk import compare
from qcowdelta.disk.diskmap import read_disk
from qcowdelta.disk.kinds import SpaceKind, VolumeState
from qcowdelta.output import AtomicOutput
from qcowdelta.patch.describe import PatchChanges
from qcowdelta.report.words import advice_text
from tests.support import disks, qemu
from tests.support.disks import EXT, FAT, LOCKED, MIB, NTFS, SWAP, Disk
from tests.test_filesystems import mounted


@contextmanager
def pair(old: Path, new: Path) -> Iterator[tuple[Image, Image]]:
    with open_image(old) as first, open_image(new) as second:
        yield first, second


def attributed(old: Path, new: Path, granularity: int = 4096, cells: int = 200) -> Attribution:
    with pair(old, new) as (first, second):
        delta = ImageDelta(first, second, granularity=granularity)
        found = attribute(delta, first, second, cells=cells)
        wanted = sum(int(window.changes["length"].sum()) for window in delta.windows())
    assert found.changed_bytes == wanted
    holds(found)
    return found


def holds(found: Attribution) -> None:
    """Hold every sum of an attribution against the others."""
    assert sum(found.by_kind.values()) == found.changed_bytes
    assert sum(share.changed_bytes for share in found.by_partition) == found.changed_bytes
    for share in found.by_partition:
        assert sum(share.by_kind.values()) == share.changed_bytes
        assert all(share.zeroed[kind] <= share.by_kind[kind] for kind in share.zeroed)
        length = 0 if share.partition is None else share.partition.length
        assert sum(share.space.values()) == length or share.partition is None
    assert sum(sum(share.space.values()) for share in found.by_partition) == found.size
    for kind in SpaceKind:
        total = sum(share.by_kind.get(kind, 0) for share in found.by_partition)
        assert total == found.by_kind.get(kind, 0)
    owned = found.by_kind.get(SpaceKind.FILE_DATA, 0) + found.by_kind.get(SpaceKind.DIRECTORY, 0)
    assert sum(file.changed_bytes for file in found.files) == owned
    assert int(found.cells.changed.sum()) == found.changed_bytes
    order = [(-file.changed_bytes, -file.freed_bytes) for file in found.files]
    assert order == sorted(order)
    for number in range(len(found.partitions)):
        mine = [file for file in found.files if file.partition == number]
        tree = directory_tree(found.files, number)
        assert tree.changed_bytes == sum(file.changed_bytes for file in mine)
        assert tree.freed_bytes == sum(file.freed_bytes for file in mine)
        assert sum(tree.count.values()) == len(mine)
    assert all(0 <= advice.bytes <= found.changed_bytes for advice in found.advice)


def by_path(found: Attribution) -> dict[tuple[int, bytes], FileChange]:
    """The files by the number of their partition and their path."""
    return {(found.partitions[f.partition].number, f.path): f for f in found.files}


def codes(found: Attribution) -> dict[str, Advice]:
    return {advice.code: advice for advice in found.advice}


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    disks.require(*disks.PACKAGES)
    pytest.importorskip("pytsk3", reason="pytsk3 is not installed (qcowdelta[files])")
    return disks.make_disk(tmp_path_factory.mktemp("disk"))


@pytest.mark.slow
class TestTheDiskThatHasEverything:
    @pytest.mark.slow
    @pytest.mark.parametrize("granularity", [512, 4096, 65536, 2 * MIB])
    def test_all_sums_are_exact(self, disk: Disk, granularity: int) -> None:
        attributed(disk.old, disk.new, granularity)

    @pytest.mark.slow
    @pytest.mark.parametrize("cells", [1, 7, 4096, 10**6])
    def test_the_map_has_every_byte_once(self, disk: Disk, cells: int) -> None:
        found = attributed(disk.old, disk.new, 512, cells)
        assert found.cells.changed.shape[1] <= cells
        assert found.cells.changed.shape[1] * found.cells.size >= found.size

    def test_each_partition_is_told(self, disk: Disk) -> None:
        found = attributed(disk.old, disk.new)
        told = {p.number: (p.filesystem, p.label, p.name, p.read) for p in found.partitions}
        assert told == {
            FAT: ("fat16", "BOOT", "EFI", True),
            EXT: ("ext4", "root", "root", True),
            NTFS: ("ntfs", "Daten", "data", True),
            SWAP: ("swap", "swap", "swap", True),
            LOCKED: ("luks", "", "locked", False),
        }
        assert all(p.state is VolumeState.CLEAN for p in found.partitions if p.read)

    def test_each_partition_is_attributed(self, disk: Disk) -> None:
        found = attributed(disk.old, disk.new, 512)
        shares = {s.partition.number if s.partition else 0: s for s in found.by_partition}
        assert set(shares[SWAP].by_kind) == {SpaceKind.SWAP}
        assert shares[SWAP].changed_bytes == -(-500_000 // 512) * 512
        assert set(shares[LOCKED].by_kind) == {SpaceKind.NOT_READ}
        assert shares[0].by_kind == {SpaceKind.UNPARTITIONED: 12_288}
        for number in (FAT, EXT, NTFS):
            assert SpaceKind.FILE_DATA in shares[number].by_kind
            assert SpaceKind.UNKNOWN not in shares[number].by_kind
        stale = -(-len(disks.STALE) // 1024) * 1024
        free = shares[EXT].by_kind[SpaceKind.FREE]
        assert stale - 64 * 1024 <= free <= stale + 64 * 1024

    def test_each_file_is_told(self, disk: Disk) -> None:
        found = attributed(disk.old, disk.new, 512)
        files = by_path(found)
        became = {key: files[key].status.value for key in disk.became}
        assert became == dict(disk.became)
        rest = {
            key: file.status
            for key, file in files.items()
            if key not in disk.became and file.type is not FileType.DIRECTORY
        }
        assert set(rest.values()) <= {FileStatus.UNCHANGED}
        assert files[EXT, b"/usr/share/doc/moved"].old_path == b"/usr/share/doc/moves"

    def test_bytes_of_files_are_those_of_their_blocks(self, disk: Disk) -> None:
        files = by_path(attributed(disk.old, disk.new, 512))
        added = files[EXT, b"/usr/bin/added"]
        assert len(disks.ADDED) - 1024 <= added.changed_bytes <= len(disks.ADDED) + 1024
        assert added.size == len(disks.ADDED)
        gone = files[EXT, b"/usr/lib/gone.so"]
        assert (gone.changed_bytes, gone.freed_bytes) == (0, -(-gone.size // 1024) * 1024)
        assert files[EXT, b"/usr/share/doc/moved"].changed_bytes == 0
        assert files[EXT, b"/usr/share/doc/moved"].freed_bytes == 0

    def test_advice_is_what_was_measured(self, disk: Disk) -> None:
        found = attributed(disk.old, disk.new)
        advice = codes(found)
        assert advice["free-space"].bytes == found.droppable_bytes
        assert len(disks.STALE) * 0.9 < found.droppable_bytes <= found.by_kind[SpaceKind.FREE]
        assert advice["swap"].bytes == found.by_kind[SpaceKind.SWAP]
        assert advice["encrypted"].bytes == found.by_kind[SpaceKind.NOT_READ]
        cached = sum(f.changed_bytes for f in found.files if f.path.startswith(b"/var/cache/apt/"))
        assert advice["package-cache"].bytes == cached > 1_400_000
        assert advice["logs"].bytes > 0
        worth = [one.bytes for one in found.advice]
        assert worth == sorted(worth, reverse=True)

    def test_free_space_is_told_for_each_file_system(self, disk: Disk) -> None:
        with open_image(disk.new) as image:
            found = read_disk(image)
            reader = image.reader()
            for index, part in enumerate(found.partitions):
                free = found.free(index)
                assert (free[:, 0] < free[:, 1]).all()
                assert (free[1:, 0] >= free[:-1, 1]).all()
                assert found.contents[index].sound == part.read or part.number == SWAP
                if free.size:
                    assert part.start <= free[0, 0]
                    assert free[-1, 1] <= part.stop
            index = [p.number for p in found.partitions].index(EXT)
            data = b"".join(reader.read(a, b - a) for a, b in found.free(index).tolist())
        assert disks.STALE[100_000:101_000] in data
        assert disks.ADDED[100_000:101_000] not in data

    def test_the_other_way_round_adds_what_was_deleted(self, disk: Disk) -> None:
        files = by_path(attributed(disk.new, disk.old, 512))
        assert files[EXT, b"/usr/lib/gone.so"].status is FileStatus.ADDED
        assert files[EXT, b"/usr/bin/added"].status is FileStatus.DELETED
        assert files[EXT, b"/usr/share/doc/moves"].status is FileStatus.MOVED

    def test_nothing_changed_is_nothing(self, disk: Disk) -> None:
        found = attributed(disk.new, disk.new)
        assert (found.changed_bytes, list(found.files), found.advice) == (0, [], ())

    def test_a_partition_that_is_gone_has_its_files_deleted(
        self, disk: Disk, tmp_path: Path
    ) -> None:
        new = tmp_path / "new.raw"
        shutil.copyfile(disk.old, new)
        disks.partition(new, "gpt", disks.SLOTS[:1])
        found = attributed(disk.old, new)
        gone = [part for part in found.partitions if part.gone]
        assert [part.number for part in gone] == [EXT, NTFS, SWAP, LOCKED]
        files = by_path(found)
        assert files[EXT, b"/usr/bin/tool"].status is FileStatus.DELETED
        assert files[EXT, b"/usr/bin/tool"].freed_bytes > 0

    def test_a_new_partition_has_its_files_added(self, disk: Disk, tmp_path: Path) -> None:
        old = tmp_path / "old.raw"
        shutil.copyfile(disk.new, old)
        with old.open("r+b") as out:
            out.seek(disks.SLOTS[EXT - 1].start * MIB)
            out.write(bytes(disks.SLOTS[EXT - 1].length * MIB))
        disks.partition(old, "gpt", disks.SLOTS[:1])
        files = by_path(attributed(old, disk.new))
        assert {f.status for (n, _), f in files.items() if n == EXT} == {FileStatus.ADDED}


@pytest.mark.slow
class TestSources:
    def test_an_overlay_is_held_against_its_backing_file(self, disk: Disk, tmp_path: Path) -> None:
        overlay = tmp_path / "overlay.qcow2"
        shutil.copyfile(disk.old, tmp_path / "old.raw")
        qemu.convert(disk.new, tmp_path / "new.qcow2", source_fmt="raw", target_fmt="qcow2")
        qemu.convert(disk.new, overlay, source_fmt="raw", target_fmt="qcow2", backing="old.raw",
                     backing_fmt="raw")  # fmt: skip
        wanted = attributed(disk.old, disk.new)
        with open_image(overlay) as image:
            base = Image(image.layers[1:])
            found = attribute(ImageDelta(base, image, granularity=4096), base, image)
        holds(found)
        assert found.by_kind == wanted.by_kind
        assert by_path(found) == by_path(wanted)

    def test_a_patch_over_its_base_is_attributed_like_its_target(
        self, disk: Disk, tmp_path: Path
    ) -> None:
        path = tmp_path / "new.qcpatch"
        with pair(disk.old, disk.new) as (old, new), AtomicOutput(path) as output:
            write_patch(ImageDelta(old, new, granularity=4096), output)
        wanted = attributed(disk.old, disk.new)
        with open_image(disk.old) as old, open_patched(PatchFile.open(path), old) as new:
            found = attribute(ImageDelta(old, new, granularity=4096), old, new)
        holds(found)
        assert found.by_kind == wanted.by_kind
        assert by_path(found) == by_path(wanted)

    def test_a_patch_alone_is_not_attributed_and_says_so(self, disk: Disk, tmp_path: Path) -> None:
        path = tmp_path / "new.qcpatch"
        with pair(disk.old, disk.new) as (old, new), AtomicOutput(path) as output:
            write_patch(ImageDelta(old, new, granularity=4096), output)
        with PatchFile.open(path) as patch:
            found = attribute(PatchChanges(patch), None, None)
        holds(found)
        assert set(found.by_kind) == {SpaceKind.UNKNOWN}
        assert found.partitions == ()
        assert "without its base" in found.notes[0]
        assert found.sources == (None, None)

    def test_a_compressed_old_and_a_plain_new_are_advised_on(self, tmp_path: Path) -> None:
        raw, old, new = (tmp_path / name for name in ("raw", "old.qcow2", "new.qcow2"))
        raw.write_bytes(b"all the same again " * 60_000)
        qemu.convert(raw, old, source_fmt="raw", target_fmt="qcow2", compressed=True)
        qemu.convert(raw, new, source_fmt="raw", target_fmt="qcow2")
        found = attributed(old, new)
        assert found.changed_bytes == 0
        assert codes(found)["compression-differs"].text == ("OLD is compressed, NEW is not",)
        first, second = found.sources
        assert first is not None
        assert second is not None
        assert first.compressed_bytes > 0 == second.compressed_bytes
        assert second.data_bytes > 0


class TestFiles:
    """One file system without a partition table, changed in one way."""

    TREE: ClassVar[disks.Tree] = {
            "/a/one": disks.content(1, 50_000), "/a/two": disks.content(2, 60_000),
            "/b/three": disks.content(3, 5_000), "/b/four": b"", "/c/": b""}  # fmt: skip

    def change(self, tmp_path: Path, *commands: str, made: str = "-t ext4 -b 1024") -> Attribution:
        disks.require("mke2fs", "debugfs", "e2fsck")
        disks.write_tree(tmp_path / "tree", self.TREE)
        old = disks.make_ext(tmp_path / "old", 16 * MIB, *made.split(), folder=tmp_path / "tree")
        new = tmp_path / "new"
        shutil.copyfile(old, new)
        disks.debugfs(new, *commands, write=True)
        disks.run("e2fsck", "-fy", new, accept=(0, 1))
        return attributed(old, new, 512)

    def status(self, found: Attribution, path: bytes) -> FileStatus | None:
        file = by_path(found).get((0, path))
        return file.status if file else None

    def test_a_renamed_directory_moves_what_is_in_it(self, tmp_path: Path) -> None:
        found = self.change(tmp_path, "ln /a /z", "unlink /a")
        files = by_path(found)
        assert files[0, b"/z/one"].status is FileStatus.MOVED
        assert files[0, b"/z/one"].old_path == b"/a/one"
        assert files[0, b"/z"].status is FileStatus.MOVED
        assert (0, b"/a/one") not in files

    def test_the_same_content_under_another_name_is_moved(self, tmp_path: Path) -> None:
        (tmp_path / "copy").write_bytes(self.TREE["/a/one"])
        found = self.change(tmp_path, f"write {tmp_path}/copy /c/copy", "rm /a/one")
        assert by_path(found)[0, b"/c/copy"].status is FileStatus.MOVED
        assert by_path(found)[0, b"/c/copy"].old_path == b"/a/one"

    def test_the_same_content_written_again_elsewhere_is_moved(self, tmp_path: Path) -> None:
        (tmp_path / "copy").write_bytes(self.TREE["/a/one"])
        (tmp_path / "block").write_bytes(disks.content(9, 2_000))
        found = self.change(
            tmp_path,
            f"write {tmp_path}/copy /c/new",
            "rm /a/one",
            f"write {tmp_path}/block /c/first",
            "ln /c/new /a/one",
            "unlink /c/new",
        )
        one = by_path(found)[0, b"/a/one"]
        assert (one.status, one.old_path) == (FileStatus.MOVED, b"/a/one")
        assert one.changed_bytes > 0
        assert codes(found)["same-content-elsewhere"].bytes == one.changed_bytes

    def test_a_file_with_two_names_is_one_file(self, tmp_path: Path) -> None:
        found = self.change(tmp_path, "ln /a/one /c/second", "sif /a/one links_count 2")
        files = by_path(found)
        assert files[0, b"/a/one"].status is FileStatus.METADATA
        assert (0, b"/c/second") not in files

    def test_rights_are_metadata_and_the_last_access_is_nothing(self, tmp_path: Path) -> None:
        found = self.change(
            tmp_path, "sif /a/one uid 77", "sif /a/two atime 1", "sif /b/three mtime 5"
        )
        assert self.status(found, b"/a/one") is FileStatus.METADATA
        assert self.status(found, b"/a/two") is None
        assert self.status(found, b"/b/three") is FileStatus.METADATA

    def test_attributes_are_metadata(self, tmp_path: Path) -> None:
        long = "x" * 500
        found = self.change(
            tmp_path, "ea_set /a/one user.note short", f"ea_set /a/two user.note {long}"
        )
        assert self.status(found, b"/a/one") is FileStatus.METADATA
        assert self.status(found, b"/a/two") is FileStatus.METADATA

    @pytest.mark.parametrize("made", ["-t ext2 -b 1024", "-t ext4 -O inline_data"])
    def test_a_file_in_its_place_with_other_content_is_modified(
        self, tmp_path: Path, made: str
    ) -> None:
        (tmp_path / "small").write_bytes(b"tiny")
        (tmp_path / "other").write_bytes(disks.content(8, 5_000))
        found = self.change(
            tmp_path,
            "rm /b/four", f"write {tmp_path}/small /b/four",
            "rm /b/three", f"write {tmp_path}/other /b/three",
            made=made,
        )  # fmt: skip
        assert self.status(found, b"/b/four") is FileStatus.MODIFIED
        assert self.status(found, b"/b/three") is FileStatus.MODIFIED
        assert self.status(found, b"/a/one") is None

    def test_a_hole_and_zeros_are_the_same_content(self, tmp_path: Path) -> None:
        tree = {"/zeros": disks.content(1, 8192) + bytes(65536) + disks.content(2, 8192)}
        disks.require("mke2fs", "debugfs")
        disks.write_tree(tmp_path / "tree", tree)
        old = disks.make_ext(tmp_path / "old", 16 * MIB, "-t", "ext4", folder=tmp_path / "tree")
        new = disks.make_ext(tmp_path / "new", 16 * MIB, "-t", "ext4")
        data = tree["/zeros"]
        with (tmp_path / "whole").open("wb") as out:
            out.write(data)
        disks.debugfs(new, f"write {tmp_path}/whole /zeros", write=True)
        file = by_path(attributed(old, new)).get((0, b"/zeros"))
        assert file is None or file.status in (FileStatus.MOVED, FileStatus.METADATA)

    def test_a_changed_journal_is_journal(self, tmp_path: Path) -> None:
        found = self.change(tmp_path, made="-t ext4 -b 1024 -J size=1")
        assert found.changed_bytes == 0 or SpaceKind.FILE_DATA not in found.by_kind
        old = tmp_path / "old"
        journal = int(disks.debugfs(old, "blocks <8>").split("\n", 2)[1].split()[5])
        with (tmp_path / "new").open("r+b") as out:
            out.seek(journal * 1024)
            out.write(disks.content(3, 1024))
        found = attributed(old, tmp_path / "new", 512)
        assert found.by_kind[SpaceKind.JOURNAL] == 1024


class TestChangedInItsPlace:
    """Content written over, seen through clusters that hold more than what changed."""

    TREE: ClassVar[disks.Tree] = {f"/d/f{n}": disks.content(n, 4000) for n in range(20)}
    TARGET = "where/this/points/to/" * 5  # too long to be in the inode

    def make(self, tmp_path: Path) -> Path:
        disks.require("mke2fs")
        disks.write_tree(tmp_path / "tree", self.TREE)
        (tmp_path / "tree" / "link").symlink_to(self.TARGET)
        return disks.make_ext(
            tmp_path / "old", 16 * MIB, "-t", "ext4", "-b", "1024", folder=tmp_path / "tree"
        )

    def written_over(self, old: Path, new: Path, what: bytes) -> Attribution:
        data = bytearray(old.read_bytes())
        at = data.index(what) + 50
        data[at : at + 14] = b"CHANGEDCONTENT"
        new.write_bytes(data)
        return attributed(old, new, 65536)

    @pytest.mark.parametrize("path", ["/d/f7", "/link"])
    def test_only_what_was_written_over_is_modified(self, path: str, tmp_path: Path) -> None:
        content = self.TREE.get(path, self.TARGET.encode())[:100]
        found = self.written_over(self.make(tmp_path), tmp_path / "new", content)
        modified = {f.path for f in found.files if f.status is FileStatus.MODIFIED}
        assert modified == {path.encode()}
        assert len(found.files) > 1
        assert not found.doubts

    def test_in_fat_too(self, tmp_path: Path) -> None:
        disks.require("mkfs.fat", "mcopy")
        old = disks.make_fat(tmp_path / "old", 16 * MIB, 16, "OVER")
        for number in range(8):
            disks.put_fat(old, tmp_path, f"F{number}", disks.content(number, 4000))
        found = self.written_over(old, tmp_path / "new", disks.content(5, 4000)[:100])
        modified = {f.path for f in found.files if f.status is FileStatus.MODIFIED}
        assert modified == {b"/F5"}
        assert len(found.files) > 1

    def test_what_cannot_be_compared_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        old = self.make(tmp_path)
        monkeypatch.setattr(compare, "_affordable", lambda table, rows, volume: rows < 0)
        found = self.written_over(old, tmp_path / "new", self.TREE["/d/f7"][:100])
        unchanged = [f for f in found.files if f.status is FileStatus.UNCHANGED]
        assert b"/d/f7" in {f.path for f in unchanged}
        count = sum(f.type in (FileType.FILE, FileType.SYMLINK) for f in unchanged)
        assert found.doubts == (
            f"{count} files share clusters with what changed and could not be compared, being "
            "compressed, encrypted or too large, and count as unchanged, or as changed in metadata "
            "only",
        )

    def test_files_of_a_partition_that_moved_are_moved(self, tmp_path: Path) -> None:
        disks.require("sfdisk")
        body = self.make(tmp_path).read_bytes()
        paths = tmp_path / "one", tmp_path / "two"
        for path, start in zip(paths, (1, 2), strict=True):
            path.write_bytes(bytes(start * MIB) + body + bytes((4 - start) * MIB))
            disks.run("sfdisk", "-q", path, stdin=f"label: dos\n{start * 2048},32768,83\n")
        found = attributed(*paths, 65536)
        assert {f.type for f in found.files} == {*FileType} - {FileType.OTHER}
        assert {f.status for f in found.files if f.path != b"/"} == {FileStatus.MOVED}


# --- a system that was upgraded -----------------------------------------------------------------


def host_tree(root: Path, limit: int) -> None:
    """Copy some of this machine's files: a tree as a system has it."""
    left = limit
    for top in ("/usr/lib/python3", "/usr/share/perl5", "/usr/share/doc", "/etc", "/usr/bin",
                "/usr/lib/x86_64-linux-gnu"):  # fmt: skip
        for folder, names, files in os.walk(top):
            names.sort()
            for name in sorted(files):
                path = Path(folder, name)
                if path.is_symlink() or not path.is_file() or left <= 0:
                    continue
                left -= path.stat().st_size
                target = root / str(path).lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


def upgrade(root: Path, seed: int) -> None:
    """Replace, add, delete and rename files as package managers do."""
    choose = random.Random(seed)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    for path in choose.sample(files, len(files) // 3):
        what = choose.choice(["replace", "replace", "append", "delete", "rename", "touch", "add"])
        if what == "replace":
            beside = path.with_name(path.name + ".dpkg-new")
            beside.write_bytes(choose.randbytes(path.stat().st_size + choose.randrange(9000)))
            beside.rename(path)
        elif what == "append":
            with path.open("ab") as out:
                out.write(choose.randbytes(choose.randrange(20_000)))
        elif what == "delete":
            path.unlink()
        elif what == "rename":
            path.rename(path.with_name(path.name + ".moved"))
        elif what == "touch":
            os.utime(path, (1, 1))
        else:
            path.with_name(path.name + ".added").write_bytes(
                choose.randbytes(choose.randrange(400_000))
            )


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A file system as it was, and after the kernel wrote an upgrade to it."""
    disks.require("mke2fs", "debugfs")
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    folder = tmp_path_factory.mktemp("upgraded")
    old = disks.make_ext(folder / "old.raw", 400 * MIB, "-t", "ext4", "-b", "4096")
    with mounted(old, folder / "mnt") as root:
        host_tree(root, 150 * MIB)
    new = folder / "new.raw"
    shutil.copyfile(old, new)
    with mounted(new, folder / "mnt") as root:
        upgrade(root, 1)
    return old, new


def content_by_path(image: Path, where: Path) -> dict[bytes, tuple[int, bytes]]:
    """Inode and content of every file, as the kernel reads them."""
    with mounted(image, where, "ro", "noload") as root:
        return {
            b"/" + bytes(path.relative_to(root)): (path.stat().st_ino, path.read_bytes())
            for path in root.rglob("*")
            if path.is_file() and not path.is_symlink()
        }


_EXTENT = re.compile(r"^ *\d+/ *\d+ +\d+/ *\d+ +\d+ - +\d+ +(\d+) - +(\d+)", re.MULTILINE)


def blocks_of(image: Path, inodes: list[int]) -> dict[int, list[int]]:
    """The blocks of content of files, as debugfs tells them."""
    said = disks.debugfs(image, *(f"dump_extents -l <{number}>" for number in inodes))
    out: dict[int, list[int]] = {}
    for number, part in zip(inodes, said.split("debugfs: dump_extents")[1:], strict=True):
        rows = re.findall(
            r"^ *\d+/ *\d+ +\d+/ *\d+ +\d+ - +\d+ +(\d+) - +(\d+)", part, re.MULTILINE
        )
        out[number] = [b for first, last in rows for b in range(int(first), int(last) + 1)]
    return out


@pytest.mark.slow
class TestUpgraded:
    def test_sums_are_exact(self, upgraded: tuple[Path, Path]) -> None:
        for granularity in (512, 4096, 65536):
            attributed(*upgraded, granularity)

    def test_files_are_what_the_kernel_says(
        self, upgraded: tuple[Path, Path], tmp_path: Path
    ) -> None:
        old, new = (content_by_path(path, tmp_path / "mnt") for path in upgraded)
        found = {key[1]: f for key, f in by_path(attributed(*upgraded)).items()}
        gone = {p for p in old if p not in new}
        came = {p for p in new if p not in old}
        differ = {p for p in new if p in old and old[p][1] != new[p][1]}
        same = {p for p in new if p in old and old[p][1] == new[p][1]}
        assert gone
        assert came
        assert differ
        told: dict[FileStatus, set[bytes]] = {status: set() for status in FileStatus}
        for path, file in found.items():
            if file.type is FileType.FILE:
                told[file.status].add(path)
        renamed = {p for p in told[FileStatus.MOVED] if found[p].old_path != p}
        assert told[FileStatus.MODIFIED] == differ
        assert told[FileStatus.ADDED] | renamed == came
        assert told[FileStatus.DELETED] | {found[p].old_path for p in renamed} == gone
        assert told[FileStatus.METADATA] <= same
        assert told[FileStatus.MOVED] - renamed <= same
        for path in renamed:
            assert old[found[path].old_path or b""][1] == new[path][1]

    def test_the_largest_ten_are_those_that_a_comparison_of_blocks_finds(
        self, upgraded: tuple[Path, Path], tmp_path: Path
    ) -> None:
        contents = content_by_path(upgraded[1], tmp_path / "mnt")
        one, other = (np.memmap(path, np.uint8, "r").reshape(-1, 4096) for path in upgraded)
        differs = (one != other).any(axis=1)
        inode = {path: number for path, (number, data) in contents.items() if data}
        blocks = blocks_of(upgraded[1], sorted(set(inode.values())))
        wanted = {p: 4096 * int(differs[blocks[number]].sum()) for p, number in inode.items()}
        found = [f for f in attributed(*upgraded).files if f.type is FileType.FILE]
        assert {f.path: f.changed_bytes for f in found if f.changed_bytes} == {
            path: count for path, count in wanted.items() if count
        }
        largest = sorted(wanted.values(), reverse=True)[:10]
        assert [file.changed_bytes for file in found[:10]] == largest


def test_advice_on_one_file_speaks_of_one(disk: Disk) -> None:
    wanted = attributed(disk.old, disk.new)
    file = next(file for file in wanted.files if file.changed_bytes > wanted.changed_bytes // 200)
    for status, code in (
        (FileStatus.UNCHANGED, "unchanged-neighbours"),
        (FileStatus.MOVED, "same-content-elsewhere"),
    ):
        alone = file._replace(status=status, old_path=file.path)
        told = {each.code: each for each in advise(replace(wanted, files=[alone]))}
        assert " is 1 file " in advice_text(told[code])


def test_an_attribution_can_be_made_up_for_a_report(disk: Disk) -> None:
    found = attributed(disk.old, disk.new)
    shorter = replace(found, files=found.files[:3])
    assert directory_tree(shorter.files, 1).count
