"""Each proof of equality is used where it holds, so that little is read."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from qcowdelta import ImageDelta, open_image
from qcowdelta.delta import DeltaStats
from tests.support import judge, qemu

MIB = 1 << 20
CLUSTER = 65536


def compare(old: Path, new: Path) -> tuple[DeltaStats, int]:
    """Return how the delta was found, and how many bytes differ."""
    with open_image(old) as a, open_image(new) as b:
        delta = ImageDelta(a, b)
        changed = sum(int(w.changes["length"].sum()) for w in delta.windows())
        return delta.stats, changed


def test_what_two_overlays_share_is_not_read(tmp_path: Path) -> None:
    base, old, new = (tmp_path / f"{name}.qcow2" for name in ("base", "old", "new"))
    qemu.create(base, 16 * MIB)
    qemu.write(base, 0, 16 * MIB, 0x11)
    for path, offset in ((old, 1), (new, 3)):
        qemu.create(path, None, backing=base, backing_fmt="qcow2")
        qemu.write(path, offset * MIB, CLUSTER, 0x22)
    stats, changed = compare(old, new)
    assert changed == 2 * CLUSTER
    assert stats.shared_layer == 16 * MIB - 2 * CLUSTER
    assert stats.bytes_read_old == stats.bytes_read_new == 2 * CLUSTER


def test_two_snapshots_of_one_file_share_what_did_not_change(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    qemu.create(path, 8 * MIB)
    qemu.write(path, 0, 8 * MIB, 0x11)
    qemu.snapshot(path, "before")
    qemu.write(path, MIB, CLUSTER, 0x22)
    with open_image(path, snapshot="before") as old, open_image(path) as new:
        delta = ImageDelta(old, new)
        assert [int(w.changes["length"].sum()) for w in delta.windows()] == [CLUSTER]
        assert delta.stats.bytes_read_new == CLUSTER


def test_equal_payloads_are_not_inflated_wherever_they_lie(tmp_path: Path) -> None:
    raws = [tmp_path / f"{name}.raw" for name in ("old", "new")]
    text = b"".join(f"{i:>15d}\n".encode() for i in range(8 * MIB // 16))
    for raw in raws:
        raw.write_bytes(text)
    with raws[1].open("r+b") as file:  # shorter payloads there, so all others move
        file.write(b"x" * CLUSTER)
    images = [raw.with_suffix(".qcow2") for raw in raws]
    for raw, image in zip(raws, images, strict=True):
        qemu.convert(raw, image, source_fmt="raw", target_fmt="qcow2", compressed=True)
    stats, changed = compare(*images)
    assert changed == CLUSTER
    assert stats.equal_payload >= 8 * MIB - 2 * CLUSTER
    assert stats.bytes_read_new <= 2 * CLUSTER


def test_holes_of_preallocated_images_are_not_read(tmp_path: Path) -> None:
    images = [tmp_path / f"{name}.qcow2" for name in ("old", "new")]
    for image in images:
        qemu.create(image, 256 * MIB, preallocation="metadata")
    qemu.write(images[1], 100 * MIB, CLUSTER, 0x33)
    stats, changed = compare(*images)
    assert changed == CLUSTER
    assert stats.bytes_read_new <= 4 * CLUSTER
    assert stats.bytes_read_old == 0


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system that shares blocks between files."""
    if shutil.which("mkfs.xfs") is None:
        pytest.skip("mkfs.xfs is missing")
    image, folder = tmp_path / "xfs.img", tmp_path / "xfs"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(400 * MIB)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], check=True)
    mounted = subprocess.run(["mount", "-o", "loop", image, folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting needs CAP_SYS_ADMIN")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_blocks_that_the_file_system_shares_are_not_read(xfs: Path) -> None:
    old, new = xfs / "old.qcow2", xfs / "new.qcow2"
    qemu.create(old, 64 * MIB)
    qemu.write(old, 0, 64 * MIB, 0x11)
    subprocess.run(["cp", "--reflink=always", old, new], check=True)
    qemu.write(new, 20 * MIB, CLUSTER, 0x22)
    stats, changed = compare(old, new)
    assert changed == CLUSTER
    assert stats.shared_extent >= 64 * MIB - 4 * CLUSTER
    assert stats.bytes_read_new <= 4 * CLUSTER
    overlay = xfs / "overlay.qcow2"
    with open_image(old) as a, open_image(new) as b:
        judge.make_overlay(a, b, overlay, judge.options_over(old, "qcow2"))
    assert qemu.compare(overlay, new, "qcow2", "qcow2")
