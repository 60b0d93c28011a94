"""A real Debian, changed in place: the overlay boots, and what boots is NEW."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import hostile, qemu
from tests.support.debian import Debian, debugfs

BOOT_LIMIT = 150.0
OLD_MARKER, NEW_MARKER = "qcowdelta-marker-old", "qcowdelta-marker-new"

# Runs as process 1: says which disk this is and what its payload reads as, and turns it off.
INIT = """#!/bin/sh
mount -t proc proc /proc
echo "{marker} $(sha256sum /srv/payload)" >/dev/ttyS0
sync
echo o >/proc/sysrq-trigger
sleep 60
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Pair:
    """A bootable pair, and the Debian that both are."""

    folder: Path
    old: Path
    new: Path
    debian: Debian
    old_digest: str
    new_digest: str


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    debian = Debian.get(tmp_path_factory)
    folder = tmp_path_factory.mktemp("boot")
    try:
        yield _build(folder, debian)
    finally:
        shutil.rmtree(folder)


def _build(folder: Path, debian: Debian) -> Pair:
    raw, old, new = folder / "disk.raw", folder / "old.qcow2", folder / "new.qcow2"
    debian.copy(raw)
    old_digest = _change(raw, folder, OLD_MARKER, 3 << 20)
    qemu.convert(raw, old, source_fmt="raw", target_fmt="qcow2")
    debugfs(raw, "rm /marker-init", "rm /srv/payload")
    new_digest = _change(raw, folder, NEW_MARKER, 5 << 20)
    qemu.convert(raw, new, source_fmt="raw", target_fmt="qcow2")
    raw.unlink()
    return Pair(folder, old, new, debian, old_digest, new_digest)


def _change(raw: Path, folder: Path, marker: str, length: int) -> str:
    """Write a marker and a payload into the file system, in place; return the payload's digest."""
    init, payload = folder / "init", folder / "payload"
    init.write_text(INIT.format(marker=marker))
    payload.write_bytes(os.urandom(length))
    debugfs(
        raw, f"write {init} marker-init", "sif /marker-init mode 0100755",
        "cd /srv", f"write {payload} payload",
    )  # fmt: skip
    return hashlib.sha256(payload.read_bytes()).hexdigest()


def _boot(pair: Pair, image: Path) -> str:
    """What the guest says on its serial line; the image is not written."""
    log = pair.folder / "serial.log"
    argv: list[str | Path] = [
        qemu.program("qemu-system"), "-accel", "tcg", "-m", "512", "-nodefaults",
        "-display", "none", "-nic", "none", "-no-reboot", "-serial", f"file:{log}", "-snapshot",
        "-drive", f"file={image},format=qcow2,if=virtio",
        "-kernel", pair.debian.kernel, "-initrd", pair.debian.initrd,
        "-append", "root=/dev/vda rw console=ttyS0 init=/marker-init panic=-1 quiet",
    ]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, timeout=BOOT_LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    return log.read_text(errors="replace")


def test_overlay_without_free_space_boots_as_new(pair: Pair) -> None:
    overlay = pair.folder / "dropped.qcow2"
    done = hostile.cli("diff", pair.old, pair.new, "-o", overlay, "--drop-free", limit=60)
    assert done.status == 0, done.stderr
    assert not qemu.compare(overlay, pair.new, "qcow2", "qcow2"), "nothing was left out"
    said = _boot(pair, overlay)
    assert f"{NEW_MARKER} {pair.new_digest}" in said, said[-2000:]
    assert qemu.check(overlay)["corruptions"] == 0


def test_overlay_boots_as_new(pair: Pair) -> None:
    overlay = pair.folder / "overlay.qcow2"
    before = [hashlib.sha256(path.read_bytes()).digest() for path in (pair.old, pair.new)]
    done = hostile.cli("diff", pair.old, pair.new, "-o", overlay, limit=60)
    assert done.status == 0, done.stderr
    assert overlay.stat().st_size < 32 << 20
    assert qemu.compare(overlay, pair.new, "qcow2", "qcow2", strict=True)
    pair.new.unlink()  # all that boots is OLD and the overlay
    said = _boot(pair, overlay)
    assert NEW_MARKER in said, said[-2000:]
    assert f"{NEW_MARKER} {pair.new_digest}" in said
    assert OLD_MARKER not in said
    assert hashlib.sha256(pair.old.read_bytes()).digest() == before[0]
    assert qemu.check(overlay)["corruptions"] == 0
