"""A small real Debian on one ext4 file system, built once for all tests of a run."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import qemu

RELEASE = "bookworm"
DISK_SIZE = "1G"
BUILD_LIMIT = 240.0
TOOLS = ("mmdebstrap", "mke2fs", "debugfs", "e2fsck")


@dataclass(frozen=True)
class Debian:
    """A raw disk that boots with `kernel` and `initrd`; it is shared, so it must not be written."""

    disk: Path
    kernel: Path
    initrd: Path

    @classmethod
    def get(cls, factory: pytest.TempPathFactory) -> Debian:
        """The one of this run, which the first caller of all workers builds."""
        qemu.require("qemu-img", "qemu-system")
        for name in TOOLS:
            tool(name)
        if os.geteuid() != 0:
            pytest.skip("building a Debian needs root")
        folder = factory.getbasetemp()
        if "PYTEST_XDIST_WORKER" in os.environ:
            folder = folder.parent
        with (folder / "debian.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = cls(*(folder / f"debian.{part}" for part in ("raw", "kernel", "initrd")))
            if not found.disk.exists():
                found._build(folder / "debian.tree")
        return found

    def copy(self, target: Path) -> None:
        """Make a disk of one's own, as sparse as this one."""
        run("cp", "--sparse=always", "--reflink=auto", self.disk, target)

    def _build(self, tree: Path) -> None:
        run(tool("mmdebstrap"), "--quiet", "--mode=root", "--variant=minbase",
            "--include=linux-image-cloud-amd64", "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*", RELEASE, tree)  # fmt: skip
        shutil.copyfile(next((tree / "boot").glob("vmlinuz-*")), self.kernel)
        shutil.copyfile(next((tree / "boot").glob("initrd.img-*")), self.initrd)
        begun = self.disk.with_suffix(".begun")
        run(tool("mke2fs"), "-q", "-F", "-t", "ext4", "-d", tree, begun, DISK_SIZE)
        shutil.rmtree(tree)
        begun.rename(self.disk)


def tool(name: str) -> str:
    """Where a program is that root has; a test that lacks it is skipped."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*argv: str | Path, stdin: str = "", accept: tuple[int, ...] = (0,)) -> str:
    """Run a program and return its standard output."""
    done = subprocess.run(
        argv, input=stdin, text=True, capture_output=True, timeout=BUILD_LIMIT, check=False
    )
    assert done.returncode in accept, f"{argv[0]}: {done.stdout[-1000:]}{done.stderr[-2000:]}"
    return done.stdout


def debugfs(disk: Path, *commands: str) -> None:
    """Change a file system in place by commands of debugfs."""
    run(tool("debugfs"), "-w", "-f", "-", disk, stdin="\n".join(commands) + "\n")


def read_file(disk: Path, name: str) -> str:
    """What a file in the file system says."""
    return run(tool("debugfs"), "-R", f"cat {name}", disk)
