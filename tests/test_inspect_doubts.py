"""``inspect`` says what makes its figures doubtful, on whichever side it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support import disks
from tests.support.commandline import ok, refused

MIB = 1 << 20


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An ext4 and a later state of it: a file deleted and one more, both clean."""
    disks.require("mke2fs", "debugfs")
    home = tmp_path_factory.mktemp("doubts")
    tree, more = home / "tree", home / "more"
    tree.mkdir()
    (tree / "kept").write_bytes(b"k" * 300_000)
    (tree / "gone").write_bytes(b"g" * 300_000)
    more.write_bytes(b"m" * 700_000)
    old, new = home / "old.raw", home / "new.raw"
    disks.run("mke2fs", "-q", "-t", "ext4", "-d", tree, old, "32M")
    shutil.copyfile(old, new)
    disks.debugfs(new, f"write {more} /more", "rm /gone", write=True)
    return old, new


def copy(path: Path, folder: Path) -> Path:
    return Path(shutil.copyfile(path, folder / path.name))


def recovering(path: Path, folder: Path) -> Path:
    """A copy of a disk that was taken while it was mounted."""
    made = copy(path, folder)
    disks.debugfs(made, "feature needs_recovery", write=True)
    return made


def without_superblock(path: Path, folder: Path) -> Path:
    made = copy(path, folder)
    with made.open("r+b") as file:
        file.seek(1024)
        file.write(bytes(1024))
    return made


def summary(old: Path, new: Path) -> str:
    """The summary, its lines joined."""
    return " ".join(ok("inspect", old, new).out.split())


def test_clean_disks_leave_no_doubt(pair: tuple[Path, Path]) -> None:
    assert " ! " not in summary(*pair)
    assert ok("inspect", *pair, "--json").json["notes"] == []


def test_a_file_system_that_needs_recovery_is_named_with_its_side(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    old, new = pair
    told = "the disk (ext4) needs recovery"
    assert f"! OLD: {told}" in summary(recovering(old, tmp_path), new)
    doubtful = recovering(new, tmp_path)
    assert f"! NEW: {told}" in summary(old, doubtful)
    assert f"! OLD and NEW: {told}" in summary(tmp_path / old.name, doubtful)


def test_json_tree_and_page_have_the_doubts_too(pair: tuple[Path, Path], tmp_path: Path) -> None:
    old, page = recovering(pair[0], tmp_path), tmp_path / "page.html"
    told = "OLD: the disk (ext4) needs recovery"
    notes = ok("inspect", old, pair[1], "--json", "--html", page).json["notes"]
    assert any(note.startswith(told) for note in notes)
    assert told in page.read_text(encoding="utf-8")
    assert told in ok("inspect", old, pair[1], "--tree").out
    assert told in ok("inspect", old, pair[1], "--full").out


def test_an_old_that_lost_its_superblock_is_told(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert "! OLD: it has no partition table and no file system" in summary(
        without_superblock(pair[0], tmp_path), pair[1]
    )


def test_a_new_that_lost_its_superblock_is_told(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert "! NEW: it has no partition table and no file system" in summary(
        pair[0], without_superblock(pair[1], tmp_path)
    )


@pytest.fixture(scope="module")
def parted(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same two, each in the second partition of a disk."""
    disks.require("sfdisk")
    home = tmp_path_factory.mktemp("parted")
    made = []
    for source in pair:
        whole = disks.blank(home / source.name, 48 * MIB)
        disks.partition(whole, "gpt", [disks.Slot(1, 2, "L"), disks.Slot(4, 32, "L")])
        disks.put(whole, 4 * MIB, source)
        made.append(whole)
    return made[0], made[1]


def wiped(path: Path, folder: Path, *ranges: tuple[int, int]) -> Path:
    """A copy of a disk with ranges of it zeroed."""
    made = copy(path, folder)
    with made.open("r+b") as file:
        for start, length in ranges:
            file.seek(start)
            file.write(bytes(length))
    return made


def test_a_partition_that_holds_nothing_known_is_no_doubt(parted: tuple[Path, Path]) -> None:
    assert " ! " not in summary(*parted)


def test_a_partition_that_only_one_side_can_read_is_told(
    parted: tuple[Path, Path], tmp_path: Path
) -> None:
    old, new = (wiped(path, tmp_path, (4 * MIB + 1024, 1024)) for path in parted)
    assert "! partition 2 (ext4) was not read in OLD" in summary(old, parted[1])
    assert "! partition 2 (ext4) was not read in NEW" in summary(parted[0], new)


def test_an_old_that_lost_its_partition_table_is_told(
    parted: tuple[Path, Path], tmp_path: Path
) -> None:
    old = wiped(parted[0], tmp_path, (0, MIB), (47 * MIB, MIB))
    assert "! OLD: it has no partition table and no file system" in summary(old, parted[1])


def test_two_disks_of_which_nothing_is_known_leave_no_doubt(tmp_path: Path) -> None:
    old, new = tmp_path / "old.raw", tmp_path / "new.raw"
    old.write_bytes(bytes(MIB))
    new.write_bytes(b"x" * MIB)
    assert " ! " not in summary(old, new)
    assert ok("inspect", old, new, "--json").json["notes"]


def test_drop_free_is_advised_only_where_it_is_not_refused(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    old, new = pair
    # What is deleted lies in free space, and one more write makes it differ there.
    content = bytearray(new.read_bytes())
    at = content.index(b"g" * 200_000)
    content[at + 70_000 : at + 270_000] = b"h" * 200_000
    changed = tmp_path / "changed.raw"
    changed.write_bytes(content)
    assert "or use --drop-free" in summary(old, changed)
    doubtful = tmp_path / "doubtful"
    doubtful.mkdir()
    worse = recovering(changed, doubtful)
    text = summary(old, worse)
    assert "run fstrim" in text
    assert "--drop-free" not in text
    refused("diff", old, worse, "-o", tmp_path / "x.qcow2", "--drop-free")
