"""Leaving out what lies in free space: the files are NEW's, and the rest of the disk is OLD's."""

from __future__ import annotations

import hashlib
import struct
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from tests.support import disks, qemu
from tests.support.commandline import ok, refused
from tests.support.disks import MIB

LENGTH = 128 * MIB


@dataclass(frozen=True)
class Pair:
    """A file system and its later self, in which much was written and deleted again; raw."""

    folder: Path
    old: Path
    new: Path

    def diff(
        self, name: str, *options: str, new: Path | None = None
    ) -> tuple[Path, dict[str, Any]]:
        out = self.folder / name
        done = ok("diff", self.old, new or self.new, "-o", out, "--force", "--json", *options)
        return out, done.json


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    disks.require("mke2fs", "debugfs", "e2fsck")
    qemu.require("qemu-img")
    folder = tmp_path_factory.mktemp("dropfree")
    tree, source = folder / "tree", folder / "source"
    files = {f"/lib/{n}": disks.content(n, 40_000 + 7_001 * n) for n in range(60)}
    disks.write_tree(tree, files)
    old = disks.make_ext(folder / "old.raw", LENGTH, "-t", "ext4", folder=tree)
    new = folder / "new.raw"
    qemu.run(["cp", "--sparse=always", str(old), str(new)])
    commands = []
    for number in range(8):
        (folder / f"source{number}").write_bytes(disks.content(100 + number, 3_000_000))
        commands.append(f"write {source}{number} /stale{number}")
    commands += [f"rm /stale{number}" for number in range(7)]
    commands += [f"rm /lib/{number}" for number in range(0, 60, 7)]
    disks.debugfs(new, *commands, write=True)
    disks.run("e2fsck", "-fy", new, accept=(0, 1))
    return Pair(folder, old, new)


def files_of(image: Path, folder: Path) -> dict[str, str]:
    """The hash of every file of a raw ext4 image, as debugfs reads it."""
    folder.mkdir()
    disks.debugfs(image, f"rdump / {folder}")
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in found
    }


def as_raw(image: Path, name: str) -> Path:
    raw = image.with_name(name)
    qemu.convert(image, raw, source_fmt="qcow2", target_fmt="raw")
    return raw


def test_files_are_those_of_new_and_the_file_system_is_clean(pair: Pair) -> None:
    overlay, figures = pair.diff("files.qcow2", "--drop-free")
    assert qemu.check(overlay)["corruptions"] == 0
    raw = as_raw(overlay, "files.raw")
    disks.run("e2fsck", "-fn", raw)
    wanted = files_of(pair.new, pair.folder / "files-new")
    assert len(wanted) > 40
    assert files_of(raw, pair.folder / "files-ours") == wanted
    assert not qemu.compare(overlay, pair.new, "qcow2", "raw"), "nothing was left out"
    dropped = figures["dropped_free"]
    assert 7 * 2_900_000 < dropped["dropped_bytes"] < dropped["free_bytes"]


def test_free_space_is_what_it_was_in_old(pair: Pair) -> None:
    raw = as_raw(pair.diff("free.qcow2", "--drop-free")[0], "free.raw")
    free = disks.run("dumpe2fs", pair.new).split("Group 0:")[1]
    ranges = [line.split(":")[1] for line in free.splitlines() if "Free blocks:" in line]
    blocks = [part.strip() for line in ranges for part in line.split(",") if part.strip()]
    size = int(disks.run("dumpe2fs", "-h", pair.new).split("Block size:")[1].split()[0])
    checked = 0
    with raw.open("rb") as ours, pair.old.open("rb") as old:
        for part in blocks:
            first, _, last = part.partition("-")
            start, stop = int(first) * size, (int(last or first) + 1) * size
            for file in (ours, old):
                file.seek(start)
            assert ours.read(stop - start) == old.read(stop - start), part
            checked += stop - start
    assert checked > 50 * MIB


def test_saves_what_trimming_would_have_saved(pair: Pair) -> None:
    trimmed = pair.folder / "trimmed.raw"
    qemu.run(["cp", "--sparse=always", str(pair.new), str(trimmed)])
    disks.run("e2fsck", "-fy", "-E", "discard", trimmed, accept=(0, 1))
    plain = pair.diff("plain.qcow2")[0].stat().st_size
    dropped = pair.diff("dropped.qcow2", "--drop-free")[0].stat().st_size
    trim = pair.diff("trim.qcow2", new=trimmed)[0].stat().st_size
    assert plain - trim > 15 * MIB
    assert plain - dropped >= 0.9 * (plain - trim)


def test_saves_what_inspect_said_that_it_would(pair: Pair) -> None:
    found = ok("inspect", pair.old, pair.new, "--json", "--cluster-size", "64k").json
    told = next(one for one in found["advice"] if one["code"] == "free-space")["bytes"]
    _, plain = pair.diff("plain-64k.qcow2", "--cluster-size", "64k")
    _, dropped = pair.diff("dropped-64k.qcow2", "--cluster-size", "64k", "--drop-free")
    saved = plain["data_bytes"] - dropped["data_bytes"]
    # Where free space is all that differs in a cluster, it is left out with the rest.
    assert 15 * MIB < told <= saved <= told + MIB


def test_patch_leads_to_the_same_disk_as_the_overlay(pair: Pair) -> None:
    overlay, _ = pair.diff("same.qcow2", "--drop-free")
    patch, _ = pair.diff("same.qcpatch", "--drop-free")
    applied = pair.folder / "same-applied.qcow2"
    ok("apply", patch, "--base", pair.old, "-o", applied)
    assert qemu.compare(overlay, applied, "qcow2", "qcow2")


def test_says_that_the_result_is_not_identical(pair: Pair) -> None:
    done = ok("diff", pair.old, pair.new, "-o", pair.folder / "say.qcow2", "--force", "--drop-free")
    assert "is not block-identical to NEW" in done.out
    assert "left out" in done.out


def refusal(pair: Pair, new: Path) -> str:
    out = pair.folder / "refused.qcow2"
    said = refused("diff", pair.old, new, "-o", out, "--drop-free")
    assert not out.exists()
    return said


def changed(pair: Pair, name: str, *commands: str) -> Path:
    copy = pair.folder / name
    qemu.run(["cp", "--sparse=always", str(pair.new), str(copy)])
    disks.debugfs(copy, *commands, write=True)
    return copy


def test_refuses_a_file_system_that_was_not_unmounted(pair: Pair) -> None:
    dirty = changed(pair, "dirty.raw", "set_super_value state 0")
    said = refusal(pair, dirty)
    assert "does not tell what is free" in said
    assert "shut down" in said


def test_refuses_a_journal_that_has_to_be_replayed(pair: Pair) -> None:
    needs = changed(pair, "needs.raw", "feature needs_recovery")
    assert "does not tell what is free" in refusal(pair, needs)


def test_refuses_bitmaps_that_contradict_the_files(pair: Pair) -> None:
    freed = changed(pair, "freed.raw", "freeb 2000 4000")
    said = refusal(pair, freed)
    assert "does not tell what is free" in said
    assert "fsck" in said


def test_refuses_a_disk_on_which_nothing_is_known(pair: Pair) -> None:
    noise = pair.folder / "noise.raw"
    noise.write_bytes(disks.content(9, 2 * MIB))
    said = refusal(pair, noise)
    assert "not understood" in said
    assert "fsck" not in said


def two_partitions(pair: Pair, path: Path, first: int, length: int, size: int) -> Path:
    """A disk with NEW's file system at 1 MiB, and a second partition in MiB, of another one."""
    disks.partition(disks.blank(path, 400 * MIB), "dos", [disks.Slot(1, 128, "L")])
    disks.put(path, MIB, pair.new)
    disks.put(path, first * MIB, disks.make_ext(pair.folder / "other", 40 * MIB, "-t", "ext4"))
    entry = struct.pack("<B3xB3xII", 0, 0x83, first * MIB // 512, length * MIB // 512)
    with path.open("r+b") as out:
        out.seek(446 + 16)
        out.write(entry)
        out.truncate(size * MIB)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "length", "size", "why"),
    [
        (81, 100, 200, "overlaps the partition before it"),
        (81, 40, 200, "inside another"),
        (140, 100, 200, "ends beyond the disk"),
    ],
)
def test_refuses_partitions_that_overlap_or_are_cut(
    pair: Pair, tmp_path: Path, first: int, length: int, size: int, why: str
) -> None:
    disks.require("sfdisk")
    said = refusal(pair, two_partitions(pair, tmp_path / "new.raw", first, length, size))
    assert "not understood" in said
    assert why in said


def test_refuses_a_partition_in_which_the_partition_table_lies(pair: Pair, tmp_path: Path) -> None:
    disks.require("sfdisk")
    path = disks.blank(tmp_path / "new.raw", 130 * MIB)
    disks.partition(path, "gpt", [disks.Slot(1, 128, "L")])
    disks.put(path, MIB, pair.new)
    with path.open("r+b") as out:
        set_gpt_end(out, 130 * MIB // 512 - 1)
    assert "overlaps the partition table" in refusal(pair, path)


def test_refuses_a_gpt_of_which_both_copies_are_gone(pair: Pair, tmp_path: Path) -> None:
    disks.require("sfdisk")
    path = disks.blank(tmp_path / "new.raw", 130 * MIB)
    disks.partition(path, "gpt", [disks.Slot(1, 128, "L")])
    disks.put(path, MIB, pair.new)
    with path.open("r+b") as out:
        for place in (512, 130 * MIB - 512):
            out.seek(place)
            out.write(bytes(512))
    assert "the GPT is damaged" in refusal(pair, path)


def set_gpt_end(disk: BinaryIO, last: int) -> None:
    """Have the first partition end in a sector, with the checksums that go with it."""
    disk.seek(512)
    header, entries = bytearray(disk.read(512)), bytearray(disk.read(128 * 128))
    struct.pack_into("<Q", entries, 40, last)
    struct.pack_into("<I", header, 88, zlib.crc32(entries))
    struct.pack_into("<I", header, 16, 0)
    struct.pack_into("<I", header, 16, zlib.crc32(header[:92]))
    disk.seek(512)
    disk.write(header + entries)


@pytest.mark.slow
def test_refuses_a_disk_with_a_partition_that_is_not_read(pair: Pair, tmp_path: Path) -> None:
    disks.require("sfdisk", "mkfs.ntfs", "ntfscp", "mkfs.fat", "mcopy", "mkswap")
    disk = disks.make_disk(tmp_path)
    said = refusal(pair, disk.new)
    assert "partition 5 (luks)" in said
    assert "fsck" not in said


@pytest.mark.slow
def test_leaves_alone_a_partition_without_anything_known(pair: Pair, tmp_path: Path) -> None:
    disks.require("sfdisk")
    slots = (disks.Slot(1, 1, "21686148-6449-6E6F-744E-656564454649"), disks.Slot(2, 128, "L"))
    images = []
    for name, root, boot in (("old", pair.old, 1), ("new", pair.new, 2)):
        path = disks.blank(tmp_path / f"{name}.raw", 132 * MIB)
        disks.partition(path, "gpt", slots)
        with path.open("r+b") as file:
            file.seek(MIB)
            file.write(disks.content(boot, 40_000))
        disks.put(path, 2 * MIB, root)
        images.append(path)
    out = tmp_path / "out.qcow2"
    figures = ok("diff", *images, "-o", out, "--drop-free", "--json").json
    assert figures["dropped_free"]["untouched_partitions"] == [1]
    assert figures["dropped_free"]["dropped_bytes"] > 7 * 2_900_000
    head = subprocess.run(
        ["cmp", "--bytes", str(2 * MIB), as_raw(out, "out.raw"), images[1]], check=False
    )
    assert head.returncode == 0
