"""Making patches: what the index of blocks forgets or confuses is no harm; memory is bounded."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from qcowdelta import PatchFile
from qcowdelta.patch import blocks, encode, scan, table
from qcowdelta.patch.effort import Effort
from qcowdelta.patch.layout import OperationKind
from qcowdelta.patch.table import Table
from tests.support import hostile, patches, qemu
from tests.support.commandline import ok
from tests.support.patches import BLOCK, MIB

Keys = npt.NDArray[np.uint64]
EFFORTS: tuple[Effort, ...] = ("fast", "default", "best")


# --- the index -----------------------------------------------------------------------------------


def random_keys(count: int, seed: int = 1) -> Keys:
    keys: Keys = np.random.default_rng(seed).integers(1, 1 << 64, count, np.uint64)
    return keys


@pytest.fixture
def tiny_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every table has so few places that nearly all is forgotten."""
    monkeypatch.setattr(table, "_MIN_BITS", 6)
    monkeypatch.setattr(table, "_MAX_BITS", 6)


def test_table_knows_what_was_put_into_it() -> None:
    keys, offsets = random_keys(500), np.arange(500) * BLOCK
    found = Table(500, MIB * 2)
    assert (found.get(keys) == -1).all()
    found.put(keys, offsets)
    known = found.get(keys) >= 0
    assert known.mean() > 0.7
    assert (found.get(keys)[known] == offsets[known]).all()
    assert (found.get(random_keys(500, seed=2)) == -1).all()
    assert (found.get(np.zeros(1, np.uint64)) == -1).all()


@pytest.mark.usefixtures("tiny_tables")
def test_crowded_table_knows_an_even_sample_and_nothing_wrong() -> None:
    count = 20_000
    keys, offsets = random_keys(count), np.arange(count) * BLOCK
    found = Table(count, count * BLOCK)
    assert found.crowded
    for i in range(0, count, 1000):
        found.put(keys[i : i + 1000], offsets[i : i + 1000])
    answers = found.get(keys)
    known = answers >= 0
    assert 60 <= known.sum() <= 64
    assert (answers[known] == offsets[known]).all()
    halves = known[: count // 2].sum(), known[count // 2 :].sum()
    assert min(halves) > 20, "what came last has driven out what came first"


@pytest.mark.usefixtures("tiny_tables")
def test_put_new_leaves_what_is_there_and_takes_the_first_of_equal_ones() -> None:
    keys = random_keys(1)
    found = Table(1, MIB)
    found.put_new(np.repeat(keys, 3), np.array([5, 6, 7]) * BLOCK)
    assert found.get(keys).tolist() == [5 * BLOCK]
    found.put_new(keys, np.array([8 * BLOCK]))
    assert found.get(keys).tolist() == [5 * BLOCK]
    assert not found.crowded
    found.put(keys, np.array([9 * BLOCK]))
    assert found.get(keys).tolist() == [9 * BLOCK]


def test_table_does_not_grow_with_what_is_expected() -> None:
    found = Table(1 << 40, 1 << 60)
    assert found.crowded
    assert found._block.nbytes + found._check.nbytes <= 128 * MIB


def moved_pair(folder: Path) -> tuple[Path, Path]:
    """NEW has OLD's blocks in long runs elsewhere, some twice, and a few that are new."""
    chance = random.Random(4)
    content = chance.randbytes(3 * MIB)
    runs = [(1 << 20, 700_416), (40_960, 409_600), (2_097_152, 1_048_576), (0, 204_800)]
    new = b"".join(content[at : at + length] for at, length in runs)
    new += chance.randbytes(50_000) + content[: 5 * BLOCK] + bytes(200_000)
    old, target = folder / "old.raw", folder / "new.raw"
    old.write_bytes(content)
    target.write_bytes(new[: len(new) // 512 * 512])
    return old, target


def assert_right(old: Path, new: Path, folder: Path, effort: Effort) -> int:
    """Assert that a patch gives NEW; return how many bytes it copies from OLD."""
    patch, out = folder / f"{effort}.qcpatch", folder / f"{effort}.raw"
    patches.make(old, new, patch, effort)
    patches.apply(patch, old, out, "raw")
    assert out.read_bytes() == new.read_bytes()
    with PatchFile.open(patch) as opened:
        rows = [each.of_kind(OperationKind.COPY_BASE) for each in opened.segments()]
    return sum(int(each["length"].sum()) for each in rows)


@pytest.mark.usefixtures("tiny_tables")
@pytest.mark.parametrize("effort", EFFORTS)
def test_runs_are_found_by_the_few_blocks_that_are_known(effort: Effort, tmp_path: Path) -> None:
    old, new = moved_pair(tmp_path)
    assert assert_right(old, new, tmp_path, effort) > 2 * MIB


@pytest.mark.slow
@pytest.mark.parametrize("mask", [0, 1, 0xFF], ids=["none", "a bit", "a byte"])
@pytest.mark.parametrize("effort", EFFORTS)
def test_hashes_that_collide_are_no_harm(
    effort: Effort, mask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hash only says where to look: what is found is compared."""

    def few(content: blocks.Blocks) -> Keys:
        keys: Keys = (blocks.block_keys(content) & np.uint64(mask)) | np.uint64(2)
        return keys

    for module in (scan, encode):
        monkeypatch.setattr(module, "block_keys", few)
    old, new = moved_pair(tmp_path)
    assert_right(old, new, tmp_path, effort)


def test_zeros_are_told_from_what_hashes_as_zeros_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (scan, encode):
        monkeypatch.setattr(module, "block_keys", lambda content: np.zeros(len(content), np.uint64))
    old, new = moved_pair(tmp_path)
    assert_right(old, new, tmp_path, "default")


@pytest.mark.parametrize("effort", EFFORTS)
def test_image_whose_blocks_all_moved_has_a_small_patch(effort: Effort, tmp_path: Path) -> None:
    old, new, patch = (tmp_path / name for name in ("old.raw", "new.raw", "x.qcpatch"))
    content = random.Random(5).randbytes(8 * MIB)
    old.write_bytes(content)
    new.write_bytes(content[3 * MIB + BLOCK :] + content[: 3 * MIB + BLOCK])
    patches.make(old, new, patch, effort)
    # Without dictionaries, what the table of blocks has no place for is stored whole.
    assert patch.stat().st_size < (8 * MIB) // (5 if effort == "fast" else 100)


@pytest.mark.parametrize("effort", EFFORTS)
def test_patch_is_never_larger_than_new_compressed_alone(effort: Effort, tmp_path: Path) -> None:
    """Here OLD gives nothing; what is stored must not cost more than what it is stored for."""
    old, new, patch = (tmp_path / name for name in ("old.raw", "new.raw", "x.qcpatch"))
    chance = random.Random(6)
    old.write_bytes(chance.randbytes(2 * MIB))
    new.write_bytes(chance.randbytes(2 * MIB))
    patches.make(old, new, patch, effort)
    assert patch.stat().st_size < 2 * MIB + 2048


# --- memory --------------------------------------------------------------------------------------

OLD_SIZE, NEW_SIZE = 2048 * MIB, 1024 * MIB
MAKING, APPLYING = 768 * MIB, 256 * MIB


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """OLD: 2 GiB in which no block comes twice. NEW: 1 GiB of it, moved, and 128 MiB changed."""
    folder = tmp_path_factory.mktemp("large")
    old, new = folder / "old.raw", folder / "new.raw"
    noise = np.random.default_rng(7)
    part = np.frombuffer(noise.bytes(64 * MIB), np.uint64).copy()
    with old.open("wb") as file:
        for _ in range(OLD_SIZE // part.nbytes):
            part *= np.uint64(0x9E3779B97F4A7C15)
            part ^= part >> np.uint64(29)
            file.write(part.data)
    with old.open("rb") as source, new.open("wb") as file:
        for number in range(NEW_SIZE // (64 * MIB)):
            source.seek(number * 96 * MIB + 20 * BLOCK)
            data = bytearray(source.read(64 * MIB))
            data[: 4 * MIB] = noise.bytes(4 * MIB)
            for at in range(8 * MIB, 12 * MIB, 3000):
                data[at] ^= 1
            file.write(data)
    yield old, new
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.xdist_group("large")
@pytest.mark.parametrize("effort", ["fast", "default"])
def test_making_and_applying_a_patch_of_large_images_takes_bounded_memory(
    large: tuple[Path, Path], tmp_path: Path, effort: str
) -> None:
    old, new = large
    patch, out = tmp_path / "x.qcpatch", tmp_path / "out.raw"
    done = hostile.cli("diff", old, new, "-o", patch, "--effort", effort, "-q", limit=400.0)
    assert done.status == 0, done
    assert done.memory < MAKING
    done = hostile.cli("apply", patch, "--base", old, "-o", out, "-q", limit=200.0)
    assert done.status == 0, done
    assert done.memory < APPLYING
    done = hostile.cli("convert", patch, "--base", old, "-o", tmp_path / "o.qcow2", limit=200.0)
    assert done.status == 0, done
    assert done.memory < APPLYING
    with out.open("rb") as ours, new.open("rb") as theirs:
        while piece := ours.read(16 * MIB):
            assert piece == theirs.read(16 * MIB)
        assert not theirs.read(1)
    out.unlink()


@pytest.mark.slow
def test_patch_of_a_huge_sparse_disk_takes_no_more_than_what_it_holds(tmp_path: Path) -> None:
    """64 TiB of nothing but two blocks: time and memory follow what is there."""
    old, new, patch = (tmp_path / name for name in ("old.qcow2", "new.qcow2", "x.qcpatch"))
    qemu.require("qemu-img", "qemu-io")
    for path in (old, new):
        qemu.create(path, 64 << 40)
    words: list[tuple[str | Path, ...]] = [
        ("diff", old, new, "-o", patch),
        ("apply", patch, "--base", old, "-o", tmp_path / "out.qcow2"),
        ("verify", patch, "--base", old, "--target", new),
    ]
    qemu.write(new, 7 << 40, BLOCK, 7)
    qemu.write(old, 63 << 40, BLOCK, 8)
    for each in words:
        done = hostile.cli(*each)
        assert done.status == 0, done
        assert done.memory < 512 * MIB
        assert done.seconds < hostile.SECONDS
    assert ok("info", patch, "--json").json["segments"] == 2
