"""Images in every format that is read through QEMU, made by qemu-img from one content."""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tests.support import qemu

KIB, MIB = 1 << 10, 1 << 20
SIZE = 4 * MIB
_TRIES = 30
SECRET = b"not \xc3\xa9asy to guess"


@dataclass(frozen=True)
class Variant:
    """A format, and how an image of it is made.

    Attributes:
        name: for the test's name.
        format: as qemu-img has it.
        options: as qemu-img's ``-o``.
        encrypt: the prefix of its encryption's options; None: it is not encrypted.
    """

    name: str
    format: str
    options: Mapping[str, str] = field(default_factory=dict)
    encrypt: str | None = None

    @property
    def told(self) -> list[str]:
        """The format, where it cannot be found out."""
        return [self.format] if self.name in ("vpc-fixed", "qcow") else []

    def make(self, raw: Path, path: Path) -> Path:
        """Make an image with the content of a raw one."""
        if self.encrypt is None:
            argv = [qemu.program("qemu-img"), "convert", "-q", "-f", "raw", "-O", self.format]
            qemu.run([*argv, *self._options(), str(raw), str(path)])
            return path
        # Making a LUKS key takes seconds, so all of a format have the same.
        path.write_bytes(_empty_encrypted(self.name, raw.stat().st_size))
        argv = [qemu.program("qemu-img"), "convert", "-q", "-n", *secret_object(path.parent)]
        source = f"driver=raw,file.filename={raw}"
        qemu.run([*argv, "--image-opts", source, "--target-image-opts", self.judged(path)])
        return path

    def _options(self, **more: str) -> list[str]:
        given = ",".join(f"{key}={value}" for key, value in {**self.options, **more}.items())
        return ["-o", given] if given else []

    def make_empty(self, path: Path, size: int) -> None:
        """Make an empty image that is encrypted."""
        key = {f"{self.encrypt}key-secret": "s"}
        argv = [qemu.program("qemu-img"), "create", "-q", *secret_object(path.parent)]
        run_patiently([*argv, "-f", self.format, *self._options(**key), str(path), str(size)])

    def judged(self, path: Path) -> str:
        """The image for qemu-img's --image-opts."""
        key = "" if self.encrypt is None else f",{self.encrypt}key-secret=s"
        kind = f",{self.encrypt}format={self.options['encrypt.format']}" if self.encrypt else ""
        return f"driver={self.format},file.filename={path}{kind}{key}"


def _vmdk(subformat: str) -> Variant:
    return Variant(f"vmdk-{subformat}", "vmdk", {"subformat": subformat})


_FAST_KEY = {"iter-time": "10"}
VARIANTS = {
    each.name: each
    for each in (
        _vmdk("monolithicSparse"),
        _vmdk("monolithicFlat"),
        _vmdk("twoGbMaxExtentSparse"),
        _vmdk("twoGbMaxExtentFlat"),
        _vmdk("streamOptimized"),
        Variant("vdi", "vdi"),
        Variant("vdi-static", "vdi", {"static": "on"}),
        Variant("vhdx", "vhdx"),
        Variant("vhdx-fixed", "vhdx", {"subformat": "fixed"}),
        Variant("vpc", "vpc", {"force_size": "on"}),
        Variant("vpc-chs", "vpc"),
        Variant("vpc-fixed", "vpc", {"subformat": "fixed", "force_size": "on"}),
        Variant("qed", "qed"),
        Variant("qcow", "qcow"),
        Variant("parallels", "parallels"),
        Variant("luks", "luks", _FAST_KEY, ""),
        Variant(
            "qcow2-luks", "qcow2", {"encrypt.format": "luks", "encrypt.iter-time": "10"}, "encrypt."
        ),
        Variant("qcow2-aes", "qcow2", {"encrypt.format": "aes"}, "encrypt."),
    )
}


@cache
def _empty_encrypted(name: str, size: int) -> bytes:
    with tempfile.TemporaryDirectory(prefix="qcowdelta-") as folder:
        path = Path(folder, "empty")
        VARIANTS[name].make_empty(path, size)
        return path.read_bytes()


ENCRYPTED = [name for name, variant in VARIANTS.items() if variant.encrypt is not None]


def secret_file(folder: Path) -> Path:
    """The file with the secret of every encrypted image."""
    path = folder / "secret"
    if not path.exists():
        path.write_bytes(SECRET)
    return path


def secret_object(folder: Path) -> list[str]:
    """The words that give a program of QEMU's the secret, as ``s``."""
    return ["--object", f"secret,id=s,file={secret_file(folder)}"]


def write_pair(folder: Path, size: int = SIZE) -> tuple[Path, Path]:
    """Write OLD and NEW as raw: random content with holes; changed, added and zeroed in NEW."""
    chance = random.Random(size)
    old, new = bytearray(size), bytearray(size)
    for start, length in ((0, 512 * KIB), (MIB, 384 * KIB), (3 * MIB - 4096, 200 * KIB)):
        old[start : start + length] = chance.randbytes(length)
    new[:] = old
    new[64 * KIB : 128 * KIB] = chance.randbytes(64 * KIB)
    new[MIB + 4096 : MIB + 4608] = chance.randbytes(512)
    new[MIB + 128 * KIB : MIB + 256 * KIB] = bytes(128 * KIB)
    new[2 * MIB : 2 * MIB + 100 * KIB] = chance.randbytes(100 * KIB)
    paths = folder / "old.raw", folder / "new.raw"
    for path, content in zip(paths, (old, new), strict=True):
        path.write_bytes(content)
    return paths


def compare(a: str, b: str, secrets: Path) -> bool:
    """Whether two images, as --image-opts, read the same, a tail of zeros aside."""
    argv = [qemu.program("qemu-img"), "compare", "-q", *secret_object(secrets), "--image-opts"]
    done = subprocess.run([*argv, a, b], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode == 0


def run_patiently(argv: list[str]) -> None:
    """Run a program that makes a LUKS key, again where QEMU could not time its own work."""
    for _ in range(_TRIES):
        try:
            qemu.run(argv)
            return
        except qemu.QemuError as error:
            if "accurate CPU usage" not in error.output:
                raise
    qemu.run(argv)


MARK = "QCOWDELTA_TEST_MARK"
"""A variable of the environment by which the processes of one run are found."""


def marked(mark: str) -> list[int]:
    """The processes, other than this one, that have the mark in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def wait_until_none(mark: str, seconds: float = 5.0) -> list[int]:
    """Wait until no process has the mark; return those that stay."""
    until = time.monotonic() + seconds
    while (left := marked(mark)) and time.monotonic() < until:
        time.sleep(0.01)
    return left
