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

RELEASE = "bookworm"
DISK_SIZE = "1G"
BUILD_LIMIT, BOOT_LIMIT = 240.0, 150.0
OLD_MARKER, NEW_MARKER = "qcowdelta-marker-old", "qcowdelta-marker-new"
PAYLOAD = "/srv/payload"

# Runs as process 1: says which disk this is and what its payload reads as, and turns it off.
INIT = """#!/bin/sh
mount -t proc proc /proc
echo "{marker} $(sha256sum {payload})" >/dev/ttyS0
sync
echo o >/proc/sysrq-trigger
sleep 60
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Debian:
    """A bootable pair, and the kernel to boot it by."""

    folder: Path
    old: Path
    new: Path
    kernel: Path
    initrd: Path
    old_digest: str
    new_digest: str


def _tool(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def _run(*argv: str | Path, stdin: str = "") -> None:
    done = subprocess.run(
        argv, input=stdin, text=True, capture_output=True, timeout=BUILD_LIMIT, check=False
    )
    assert done.returncode == 0, f"{argv[0]}: {done.stderr[-2000:]}"


def _payload(path: Path, length: int) -> str:
    content = os.urandom(length)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Debian]:
    qemu.require("qemu-img", "qemu-system")
    mmdebstrap, mke2fs, debugfs = map(_tool, ("mmdebstrap", "mke2fs", "debugfs"))
    if os.geteuid() != 0:
        pytest.skip("building a Debian needs root")
    folder = tmp_path_factory.mktemp("debian")
    try:
        yield _build(folder, mmdebstrap, mke2fs, debugfs)
    finally:
        shutil.rmtree(folder)


def _build(folder: Path, mmdebstrap: str, mke2fs: str, debugfs: str) -> Debian:
    tree = folder / "tree"
    _run(mmdebstrap, "--quiet", "--mode=root", "--variant=minbase",
         "--include=linux-image-cloud-amd64", "--dpkgopt=path-exclude=/usr/share/doc/*",
         "--dpkgopt=path-exclude=/usr/share/locale/*", RELEASE, tree)  # fmt: skip
    old_digest = _payload(tree / PAYLOAD.lstrip("/"), 3 << 20)
    init = tree / "marker-init"
    init.write_text(INIT.format(marker=OLD_MARKER, payload=PAYLOAD))
    init.chmod(0o755)
    kernel, initrd = folder / "kernel", folder / "initrd"
    shutil.copyfile(next((tree / "boot").glob("vmlinuz-*")), kernel)
    shutil.copyfile(next((tree / "boot").glob("initrd.img-*")), initrd)
    raw = folder / "disk.raw"
    _run(mke2fs, "-q", "-F", "-t", "ext4", "-d", tree, raw, DISK_SIZE)
    shutil.rmtree(tree)
    old, new = folder / "old.qcow2", folder / "new.qcow2"
    qemu.convert(raw, old, source_fmt="raw", target_fmt="qcow2")
    new_digest = _change(raw, folder, debugfs)
    qemu.convert(raw, new, source_fmt="raw", target_fmt="qcow2")
    raw.unlink()
    return Debian(folder, old, new, kernel, initrd, old_digest, new_digest)


def _change(raw: Path, folder: Path, debugfs: str) -> str:
    """Write another marker and a longer payload into the file system, in place."""
    init, payload = folder / "init", folder / "payload"
    init.write_text(INIT.format(marker=NEW_MARKER, payload=PAYLOAD))
    digest = _payload(payload, 5 << 20)
    commands = [
        "rm /marker-init", f"write {init} marker-init", "sif /marker-init mode 0100755",
        f"rm {PAYLOAD}", "cd /srv", f"write {payload} payload",
    ]  # fmt: skip
    _run(debugfs, "-w", "-f", "-", raw, stdin="\n".join(commands) + "\n")
    return digest


def _boot(debian: Debian, image: Path) -> str:
    """What the guest says on its serial line; the image is not written."""
    log = debian.folder / "serial.log"
    argv: list[str | Path] = [
        qemu.program("qemu-system"), "-accel", "tcg", "-m", "512", "-nodefaults",
        "-display", "none", "-nic", "none", "-no-reboot", "-serial", f"file:{log}", "-snapshot",
        "-drive", f"file={image},format=qcow2,if=virtio",
        "-kernel", debian.kernel, "-initrd", debian.initrd,
        "-append", "root=/dev/vda rw console=ttyS0 init=/marker-init panic=-1 quiet",
    ]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, timeout=BOOT_LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    return log.read_text(errors="replace")


def test_overlay_boots_as_new(debian: Debian) -> None:
    overlay = debian.folder / "overlay.qcow2"
    before = [hashlib.sha256(path.read_bytes()).digest() for path in (debian.old, debian.new)]
    done = hostile.cli("diff", debian.old, debian.new, "-o", overlay, limit=60)
    assert done.status == 0, done.stderr
    assert overlay.stat().st_size < 32 << 20
    assert qemu.compare(overlay, debian.new, "qcow2", "qcow2", strict=True)
    debian.new.unlink()  # all that boots is OLD and the overlay
    said = _boot(debian, overlay)
    assert NEW_MARKER in said, said[-2000:]
    assert f"{NEW_MARKER} {debian.new_digest}" in said
    assert OLD_MARKER not in said
    assert hashlib.sha256(debian.old.read_bytes()).digest() == before[0]
    assert qemu.check(overlay)["corruptions"] == 0
