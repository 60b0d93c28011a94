"""Disks with partitions and file systems, and later states of them, made without root.

Each file system is made in a file of its own by its own tools, changed there, and then put into its
partition. Nothing depends on the machine or the time: what is random has a seed.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from qcowdelta.disk.contents import Contents

MIB = 1 << 20
TIMEOUT = 300.0
PACKAGES = {
    "mke2fs": "e2fsprogs", "debugfs": "e2fsprogs", "dumpe2fs": "e2fsprogs", "e2fsck": "e2fsprogs",
    "sfdisk": "fdisk", "mkfs.ntfs": "ntfs-3g", "ntfscp": "ntfs-3g", "mkfs.fat": "dosfstools",
    "mcopy": "mtools", "mmd": "mtools", "mdel": "mtools", "mren": "mtools",
    "mkswap": "util-linux",
}  # fmt: skip

Tree = Mapping[str, bytes]


class ToolError(Exception):
    """A tool failed: its command line and what it printed."""


def find(name: str) -> str | None:
    """Where a tool is; many of these are not on a user's PATH."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def require(*names: str) -> None:
    """Skip the calling test, naming the tool, unless all are here."""
    for name in names:
        if find(name) is None:
            pytest.skip(f"{name} is not installed (package {PACKAGES.get(name, name)})")


def run(name: str, *arguments: str | Path, stdin: str = "", accept: Iterable[int] = (0,)) -> str:
    """Run a tool in the C locale and at a fixed time; return its standard output."""
    argv = [find(name) or name, *map(str, arguments)]
    done = subprocess.run(
        argv, input=stdin, text=True, errors="surrogateescape", capture_output=True, check=False,
        timeout=TIMEOUT,
        env={**os.environ, "LC_ALL": "C.UTF-8", "MTOOLS_SKIP_CHECK": "1",
             "E2FSPROGS_FAKE_TIME": "1700000000", "SOURCE_DATE_EPOCH": "1700000000"},
    )  # fmt: skip
    if done.returncode not in accept:
        raise ToolError(f"{' '.join(argv)}: {done.returncode}: {done.stderr}{done.stdout}")
    return done.stdout


def content(seed: int, length: int) -> bytes:
    """Bytes without zeros among them, so that each block of them differs from a hole."""
    return random.Random(seed).randbytes(length).replace(b"\0", b"\1")


def write_tree(folder: Path, tree: Tree) -> None:
    """Write files by their paths; a path that ends in ``/`` is an empty folder."""
    for name, data in tree.items():
        path = folder / name.lstrip("/")
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def blank(path: Path, length: int) -> Path:
    """Make an empty file of a length."""
    with path.open("wb") as out:
        out.truncate(length)
    return path


# --- file systems in files of their own ---------------------------------------------------------


def make_ext(path: Path, length: int, *options: str, folder: Path | None = None) -> Path:
    """Make an ext2, ext3 or ext4 file system with a folder's content."""
    blank(path, length)
    filled = () if folder is None else ("-d", str(folder))
    run("mke2fs", "-q", "-F", "-U", "01234567-89ab-cdef-0123-456789abcdef", "-E",
        "hash_seed=01234567-89ab-cdef-0123-456789abcdef", *options, *filled, path)  # fmt: skip
    return path


def debugfs(path: Path, *commands: str, write: bool = False) -> str:
    """Run debugfs commands."""
    script = "\n".join(commands) + "\n"
    return run("debugfs", *(["-w"] if write else []), "-f", "-", path, stdin=script)


def make_ntfs(path: Path, length: int, label: str) -> Path:
    """Make an empty NTFS."""
    run("mkfs.ntfs", "-F", "-q", "-L", label, "-s", "512", blank(path, length))
    return path


def put_ntfs(path: Path, scratch: Path, name: str, data: bytes) -> None:
    """Write a file into an NTFS, or over one."""
    source = scratch / "ntfs-source"
    source.write_bytes(data)
    run("ntfscp", "-f", "-q", path, source, name)


def make_fat(path: Path, length: int, bits: int, label: str) -> Path:
    """Make an empty FAT file system."""
    run("mkfs.fat", f"-F{bits}", "-n", label, "-i", "12345678", blank(path, length))
    return path


def put_fat(path: Path, scratch: Path, name: str, data: bytes) -> None:
    """Write a file into a FAT file system, or over one."""
    source = scratch / "fat-source"
    source.write_bytes(data)
    run("mcopy", "-o", "-i", path, source, f"::{name}")


# --- partition tables ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Slot:
    """A partition to be: MiB, and sfdisk's type."""

    start: int
    length: int
    type: str
    name: str = ""


def partition(path: Path, label: str, slots: Sequence[Slot]) -> None:
    """Write a partition table over a disk."""
    lines = [f"label: {label}", "label-id: 01234567-89ab-cdef-0123-456789abcdef"]
    if label == "dos":
        lines[1] = "label-id: 0x12345678"
    for number, slot in enumerate(slots, 1):
        named = f', name="{slot.name}"' if slot.name else ""
        if label == "gpt":
            named += f", uuid=01234567-89ab-cdef-0123-{number:012x}"
        lines.append(f"start={slot.start}MiB, size={slot.length}MiB, type={slot.type}{named}")
    run("sfdisk", "-q", "--no-reread", "--no-tell-kernel", path, stdin="\n".join(lines) + "\n")


def put(disk: Path, offset: int, source: Path) -> None:
    """Copy a file into a disk, leaving holes where it has only zeros."""
    with disk.open("r+b") as out, source.open("rb") as data:
        at = offset
        while piece := data.read(MIB):
            if piece.strip(b"\0"):
                out.seek(at)
                out.write(piece)
            else:
                out.seek(at)
                out.write(piece) if out.read(len(piece)).strip(b"\0") else None
            at += len(piece)


# --- the disk that has everything ---------------------------------------------------------------

EXT, NTFS, FAT, SWAP, LOCKED = 2, 3, 1, 4, 5
"""The numbers of its partitions."""

SLOTS = (
    Slot(1, 16, "U", "EFI"),
    Slot(17, 64, "L", "root"),
    Slot(81, 24, "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7", "data"),
    Slot(105, 8, "S", "swap"),
    Slot(113, 4, "CA7D7CCB-63ED-4C53-861C-1742536059CC", "locked"),
)
DISK_SIZE = 120 * MIB

HOSTILE_NAME = "<img src=x onerror=alert(1)>\x1b[31m&'.txt"

OLD_TREE: Tree = {
    "/etc/hostname": b"old\n",
    "/etc/passwd": content(1, 3000),
    "/usr/bin/tool": content(2, 700_000),
    "/usr/lib/same.so": content(3, 400_000),
    "/usr/lib/gone.so": content(4, 300_000),
    "/usr/share/doc/a/readme": content(5, 50_000),
    "/usr/share/doc/moves": content(6, 200_000),
    "/home/user/mode": content(7, 10_000),
    "/var/log/syslog": content(8, 100_000),
    "/var/cache/apt/archives/": b"",
}
ADDED = content(20, 900_000)
APT = content(21, 1_500_000)
GREW = content(8, 100_000) + content(22, 80_000)
TOOL = content(23, 710_000)
STALE = content(24, 2_000_000)
"""What a file had that is not there any more: in NEW's free space."""


@dataclass(frozen=True)
class Disk:
    """The disk, its later self, and what became of its files: (partition, path) to status."""

    old: Path
    new: Path
    became: Mapping[tuple[int, bytes], str] = field(default_factory=dict)


BECAME = {
    (EXT, b"/usr/bin/tool"): "modified",
    (EXT, b"/usr/bin/added"): "added",
    (EXT, b"/usr/lib/gone.so"): "deleted",
    (EXT, b"/usr/share/doc/moved"): "moved",
    (EXT, b"/home/user/mode"): "metadata",
    (EXT, b"/var/log/syslog"): "modified",
    (EXT, b"/var/cache/apt/archives/big.deb"): "added",
    (EXT, b"/" + HOSTILE_NAME.encode()): "added",
    (NTFS, b"/report.bin"): "modified",
    (NTFS, b"/new.bin"): "added",
    (NTFS, b"/small.txt"): "modified",
    (FAT, b"/EFI/loader.efi"): "modified",
    (FAT, b"/old.txt"): "deleted",
    (FAT, b"/a long name.cfg"): "added",
}


def make_disk(folder: Path, say: Callable[[str], None] = lambda _: None) -> Disk:
    """Make a disk with GPT, FAT, ext4, NTFS, swap and an encrypted partition, and its later self.

    Args:
        folder: where ``old.raw`` and ``new.raw`` are put.
        say: is told what is being made.
    """
    scratch = folder / "parts"
    scratch.mkdir()
    say("file systems")
    volumes = {
        FAT: _old_fat(scratch), EXT: _old_ext(scratch), NTFS: _old_ntfs(scratch),
        SWAP: _old_swap(scratch), LOCKED: _locked(scratch, 30),
    }  # fmt: skip
    say("old.raw")
    old = _assemble(folder / "old.raw", volumes)
    say("changes")
    _change_fat(volumes[FAT], scratch)
    _change_ext(volumes[EXT], scratch)
    _change_ntfs(volumes[NTFS], scratch)
    _change_swap(volumes[SWAP])
    volumes[LOCKED] = _locked(scratch, 31)
    say("new.raw")
    new = _assemble(folder / "new.raw", volumes)
    with new.open("r+b") as out:
        out.seek(118 * MIB)  # behind the last partition
        out.write(content(40, 12_288))
    shutil.rmtree(scratch)
    return Disk(old, new, BECAME)


def _assemble(path: Path, volumes: Mapping[int, Path]) -> Path:
    blank(path, DISK_SIZE)
    partition(path, "gpt", SLOTS)
    for number, volume in volumes.items():
        put(path, SLOTS[number - 1].start * MIB, volume)
    return path


def _old_ext(scratch: Path) -> Path:
    tree = scratch / "tree"
    write_tree(tree, OLD_TREE)
    for path in (tree, *sorted(tree.rglob("*"))):
        os.utime(path, (1_600_000_000, 1_600_000_000))
        path.chmod(0o755 if path.is_dir() else 0o644)
    volume = scratch / "ext"
    return make_ext(volume, 64 * MIB, "-t", "ext4", "-L", "root", "-J", "size=4", folder=tree)


def _change_ext(volume: Path, scratch: Path) -> None:
    files = {"added": ADDED, "big": APT, "grew": GREW, "tool": TOOL, "stale": STALE}
    for name, data in files.items():
        (scratch / name).write_bytes(data)
    debugfs(
        volume,
        "rm /usr/bin/tool",
        f"write {scratch}/tool /usr/bin/tool",
        f"write {scratch}/added /usr/bin/added",
        f"write {scratch}/big /var/cache/apt/archives/big.deb",
        f"write {scratch}/stale /stale",
        "rm /stale",
        "rm /usr/lib/gone.so",
        "rm /var/log/syslog",
        f"write {scratch}/grew /var/log/syslog",
        "ln /usr/share/doc/moves /usr/share/doc/moved",
        "unlink /usr/share/doc/moves",
        "sif /home/user/mode mode 0100600",
        write=True,
    )
    (scratch / "hostile").write_bytes(b"<b>hello</b>\n" * 10)
    debugfs(volume, f'write {scratch}/hostile "/{HOSTILE_NAME}"', write=True)
    # debugfs takes no care of what its own commands free last.
    run("e2fsck", "-fy", volume, accept=(0, 1))


def _old_ntfs(scratch: Path) -> Path:
    volume = make_ntfs(scratch / "ntfs", 24 * MIB, "Daten")
    put_ntfs(volume, scratch, "report.bin", content(50, 600_000))
    put_ntfs(volume, scratch, "kept.bin", content(51, 300_000))
    put_ntfs(volume, scratch, "small.txt", b"hello\n")
    return volume


def _change_ntfs(volume: Path, scratch: Path) -> None:
    put_ntfs(volume, scratch, "report.bin", content(52, 600_000))
    put_ntfs(volume, scratch, "new.bin", content(53, 250_000))
    put_ntfs(volume, scratch, "small.txt", b"goodbye\n")


def _old_fat(scratch: Path) -> Path:
    volume = make_fat(scratch / "fat", 16 * MIB, 16, "BOOT")
    run("mmd", "-i", volume, "::EFI")
    put_fat(volume, scratch, "EFI/loader.efi", content(60, 200_000))
    put_fat(volume, scratch, "EFI/kept.efi", content(61, 100_000))
    put_fat(volume, scratch, "old.txt", content(62, 30_000))
    return volume


def _change_fat(volume: Path, scratch: Path) -> None:
    run("mdel", "-i", volume, "::old.txt")
    put_fat(volume, scratch, "EFI/loader.efi", content(63, 200_000))
    put_fat(volume, scratch, "a long name.cfg", content(64, 5_000))


def _old_swap(scratch: Path) -> Path:
    volume = blank(scratch / "swap", 8 * MIB)
    run("mkswap", "-q", "-L", "swap", "-U", "01234567-89ab-cdef-0123-456789abcdef", volume)
    return volume


def _change_swap(volume: Path) -> None:
    with volume.open("r+b") as out:
        out.seek(MIB)
        out.write(content(70, 500_000))


def _locked(scratch: Path, seed: int) -> Path:
    """A partition that says it is LUKS, and is noise."""
    volume = scratch / f"locked{seed}"
    header = b"LUKS\xba\xbe\0\x01".ljust(168, b"\0") + b"01234567-89ab-cdef-0123-456789abcdef"
    volume.write_bytes(header.ljust(4096, b"\0") + content(seed, 4 * MIB - 4096))
    return volume


def main() -> None:
    """Make the disk in the folder that is named on the command line."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: make-disk FOLDER")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    missing = sorted({PACKAGES[name] for name in PACKAGES if find(name) is None})
    if missing:
        sys.exit(f"make-disk: needs these packages: {' '.join(missing)}")
    disk = make_disk(folder, lambda what: print(f"make-disk: {what}"))
    print(f"make-disk: made {disk.old} and {disk.new}")


def must_tile(contents: Contents, length: int) -> None:
    """Hold that what a volume is used for is told of each of its bytes once."""
    rows = contents.spaces
    assert int(rows["start"][0]) == 0
    assert (rows["length"] > 0).all()
    assert (rows["start"][1:] == (rows["start"] + rows["length"])[:-1]).all()
    assert int(rows["length"].sum()) == length
