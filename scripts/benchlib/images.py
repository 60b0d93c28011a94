"""The disk images the benchmarks run on, each made once and kept."""

import os
import random
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from benchlib.measure import BenchError, call

KIB, MIB, GIB, TIB = (1 << shift for shift in (10, 20, 30, 40))
CLUSTER = 64 * KIB

QEMU_IMG = os.environ.get("QCOWDELTA_QEMU_IMG", "qemu-img")
QEMU_IO = os.environ.get("QCOWDELTA_QEMU_IO", "qemu-io")
SCRIPTS = Path(__file__).parent.parent


@dataclass(frozen=True)
class Pair:
    """What is compared."""

    old: Path
    new: Path


@dataclass(frozen=True)
class Write:
    """A guest write of one repeated byte."""

    offset: int
    length: int
    pattern: int

    def __str__(self) -> str:
        return f"write -P {self.pattern} {self.offset} {self.length}"


def create(image: Path, size: int, *options: str) -> None:
    call([QEMU_IMG, "create", "-q", "-f", "qcow2", *options, image, str(size)])


def create_overlay(image: Path, base: Path) -> None:
    """An empty overlay beside its base, which it names relative to itself."""
    call([QEMU_IMG, "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base.name, image])


def apply_writes(image: Path, writes: Sequence[Write]) -> None:
    script = "".join(f"{write}\n" for write in writes)
    command = [QEMU_IO, "-f", "qcow2", str(image)]
    result = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
    if result.returncode != 0 or "failed" in result.stdout + result.stderr:
        raise BenchError(f"{' '.join(command)}: {result.stderr or result.stdout}")


def copy(source: Path, target: Path, reflink: str = "auto") -> None:
    call(["cp", "--sparse=auto", f"--reflink={reflink}", source, target])


def create_random(image: Path, size: int, extents: Sequence[range]) -> None:
    """A qcow2 image whose given ranges hold random data (the same each time)."""
    raw = image.with_suffix(".raw")
    source = random.Random(image.name)
    with raw.open("wb") as file:
        file.truncate(size)
        for extent in extents:
            for offset in range(extent.start, extent.stop, MIB):
                file.seek(offset)
                file.write(source.randbytes(min(MIB, extent.stop - offset)))
    call([QEMU_IMG, "convert", "-f", "raw", "-O", "qcow2", raw, image])
    raw.unlink()


def made_once(folder: Path, make: Callable[[Path, Path], None]) -> Pair:
    """OLD and NEW of a folder; `make(old, new)` is called where they are missing."""
    old, new, complete = folder / "old.qcow2", folder / "new.qcow2", folder / "complete"
    if not complete.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        make(old, new)
        complete.touch()
    return Pair(old, new)


def shared_base(old: Path, new: Path) -> None:
    """Two overlays over 256 MiB of random data, different in a few places, equal in others."""
    base = old.with_name("base.qcow2")
    create_random(base, 256 * MIB, [range(256 * MIB)])
    both = [Write(MIB * n, CLUSTER, 0x11) for n in (3, 70, 200)]
    differently = [(MIB * n, 2 * CLUSTER) for n in (10, 99, 131, 255)]
    create_overlay(old, base)
    create_overlay(new, base)
    apply_writes(old, both + [Write(*at, 0x22) for at in differently] + [Write(0, CLUSTER, 0x33)])
    apply_writes(new, [Write(*at, 0x44) for at in differently] + both[::-1])


SPARSE_CHANGE = Write(5 * TIB + 3 * CLUSTER, CLUSTER, 0x5A)


def sparse(old: Path, new: Path) -> None:
    """8 TiB of nothing but one cluster, which changed."""
    create(old, 8 * TIB)
    apply_writes(old, [replace(SPARSE_CHANGE, pattern=0x11)])
    copy(old, new)
    apply_writes(new, [SPARSE_CHANGE])


TABLES_CHANGE = Write(777 * GIB, CLUSTER, 0x5A)


def full_tables(old: Path, new: Path, size: int) -> None:
    """Every cluster allocated, none ever written (a hole in the file), and one that changed."""
    create(old, size, "-o", "preallocation=metadata")
    copy(old, new)
    apply_writes(new, [TABLES_CHANGE])


def scattered_writes() -> list[Write]:
    """500 writes of 4 KiB, none on another, all where `scattered` has data."""
    places = random.Random(4096).sample(range(GIB // (4 * KIB)), 500)
    return [
        Write(place % 256 * 4 * KIB + place // 256 * 4 * MIB, 4 * KIB, 0x5A) for place in places
    ]


def scattered(old: Path, new: Path) -> None:
    """1 GiB of data spread over 4 GiB, and 4 KiB writes here and there in it."""
    create_random(old, 4 * GIB, [range(at, at + MIB) for at in range(0, 4 * GIB, 4 * MIB)])
    copy(old, new)
    apply_writes(new, scattered_writes())


REFLINK_CHANGES = [Write(n * MIB, CLUSTER, 0x5A) for n in (7, 8, 100, 311, 511)]
REFLINK_DATA = 512 * MIB


def reflinked(old: Path, new: Path) -> None:
    """A copy which shares its blocks with the original, but for a few clusters written since."""
    create_random(old, REFLINK_DATA, [range(REFLINK_DATA)])
    copy(old, new, reflink="always")
    apply_writes(new, REFLINK_CHANGES)


LARGE = 100 * GIB
LARGE_CHANGES = [Write(n * GIB + 5 * MIB, MIB, n + 1) for n in range(100)]


def large(old: Path, new: Path) -> None:
    """100 GiB of data in a file of 1 GiB, since every GiB of the disk maps the same clusters.

    NEW is an overlay in which one MiB of each GiB was written. Refcounts are left out: it is only
    read.
    """
    copied, count = 1 << 63, GIB // CLUSTER
    tables = LARGE // CLUSTER * 8 // CLUSTER
    l1, refcounts, l2 = (n * CLUSTER for n in (1, 2, 3))
    data = l2 + tables * CLUSTER
    fields = (b"QFI\xfb", 3, 0, 0, 16, LARGE, 0, tables, l1, refcounts, 1, 0, 0, 0, 0, 0, 4, 104)
    source = random.Random("large")
    with old.open("wb") as file:
        file.write(struct.pack(">4sIQIIQIIQQIIQQQQII", *fields))
        file.seek(l1)
        file.write(struct.pack(f">{tables}Q", *(copied | l2 + n * CLUSTER for n in range(tables))))
        file.seek(l2)
        entries = struct.pack(f">{count}Q", *(copied | data + n * CLUSTER for n in range(count)))
        for _ in range(LARGE // GIB):
            file.write(entries)
        for _ in range(GIB // MIB):
            file.write(source.randbytes(MIB))
    create_overlay(new, old)
    apply_writes(new, LARGE_CHANGES)


BLOCK = 4 * KIB
NEW_FILE = 256 * KIB
_TRIES = 10_000


def touch(old: Path, new: Path) -> None:
    """A raw image with a few edits: some bytes of 64 blocks, 16 whole blocks, a small new file."""
    copy(old, new)
    source = random.Random("touch")
    with new.open("r+b") as file:
        blocks = [_find(file, source, BLOCK, is_free=False) for _ in range(80)]
        for at in blocks[:64]:
            _overwrite(file, at + source.randrange(BLOCK - 200), source.randbytes(200))
        for at in blocks[64:]:
            _overwrite(file, at, source.randbytes(BLOCK))
        text = source.randbytes(NEW_FILE // 2).hex().encode()
        _overwrite(file, _find(file, source, NEW_FILE, is_free=True), text)


def _find(file: BinaryIO, source: random.Random, length: int, *, is_free: bool) -> int:
    """The offset of a random piece that is all zeros, or is not."""
    count = file.seek(0, os.SEEK_END) // length
    for _ in range(_TRIES):
        at = source.randrange(count) * length
        file.seek(at)
        if is_free == (not any(file.read(length))):
            return at
    raise BenchError(f"{file.name} has no {'free' if is_free else 'used'} piece of {length} bytes")


def _overwrite(file: BinaryIO, offset: int, data: bytes) -> None:
    file.seek(offset)
    file.write(data)


@contextmanager
def xfs(disk: Path) -> Iterator[Path]:
    """A fresh XFS with reflinks, mounted; gone afterwards. Needs root."""
    disk.unlink(missing_ok=True)
    disk.parent.mkdir(parents=True, exist_ok=True)
    with disk.open("wb") as file:
        file.truncate(3 * GIB)
    call(["mkfs.xfs", "-q", "-m", "reflink=1", disk])
    folder = disk.with_suffix(".mounted")
    folder.mkdir(exist_ok=True)
    call(["mount", "-o", "loop", disk, folder])
    try:
        yield folder
    finally:
        call(["umount", folder])
        folder.rmdir()
        disk.unlink()


def to_qcow2(raw: Path) -> Path:
    """The same as qcow2, beside it."""
    image = raw.with_suffix(".qcow2")
    call([QEMU_IMG, "convert", "-f", "raw", "-O", "qcow2", raw, image])
    return image


def golden(folder: Path) -> Path:
    """The Debian before and after its upgrade."""
    result = subprocess.run(
        [SCRIPTS / "golden-pair", folder], stdin=subprocess.DEVNULL, check=False
    )
    if result.returncode != 0:
        raise BenchError("the golden pair could not be made (its message is above)")
    return folder
