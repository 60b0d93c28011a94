"""Made-up attributions, to hold the reports to their word without any disk image.

What is made adds up like a real one: shares to the bytes changed, kinds to their share, and the
cells to both.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from qcowdelta.attribution.figures import (
    Advice,
    Attribution,
    Cells,
    FileChange,
    FileStatus,
    FileType,
    PartitionShare,
    SourceFacts,
)
from qcowdelta.delta import ChangeKind, DeltaStats, Summary
from qcowdelta.disk.kinds import Partition, SpaceKind, VolumeState
from qcowdelta.inspect import Extent, Inspection

MIB = 1 << 20
GRANULE = 64 << 10
HOSTILE_NAMES = (
    b"<script>window.hurt = 1</script>",
    b"</script><script>window.hurt = 2</script>",
    b"<img src=x onerror=window.hurt=3>",
    b"\"><svg onload='window.hurt=4'>",
    b"<!--<script>",
    b"${window.hurt=5}$policy",
    b"]]></title><b>",
    b"line\nbreak\r\ttab\x1b[31mred\x1b]0;title\x07",
    b"\xff\xfe not utf-8",
    "right\u202eto left\u2066".encode(),
    b"__proto__",
    b"constructor",
    b"&lt;b&gt;&amp;",
    b"[red]markup[/red] [/] \\[",
)
"""Names that a page, a terminal or a script may fall for."""

_FOLDERS = (
    "usr/bin", "usr/sbin", "usr/lib/x86_64-linux-gnu", "usr/lib/python3.13/asyncio",
    "usr/lib/python3.13/__pycache__", "usr/share/locale/de/LC_MESSAGES", "usr/share/doc/bash",
    "usr/share/perl/5.40", "usr/lib/modules/6.12/kernel/drivers/net", "var/lib/dpkg/info",
    "var/cache/apt/archives", "var/log/journal", "boot", "etc", "etc/apt", "home/ada/mail",
)  # fmt: skip
_STATUSES = (FileStatus.ADDED, FileStatus.MODIFIED, FileStatus.MODIFIED, FileStatus.DELETED,
             FileStatus.MOVED, FileStatus.METADATA)  # fmt: skip


@dataclass
class Made:
    """What a report takes."""

    attribution: Attribution
    inspection: Inspection
    extents: list[Extent] = field(default_factory=list)


def made(
    *,
    files: int = 400,
    cells: int = 8192,
    cell_size: int = MIB,
    names: Iterable[bytes] = (),
    seed: int = 5,
    bare: bool = False,
    advice: bool = True,
) -> Made:
    """Make an attribution of a disk with an EFI partition, a root, Windows, swap and a gap.

    Args:
        files: how many files changed.
        cells, cell_size: the disk.
        names: more files, in the root's own directory.
        seed: what it is made from.
        bare: one file system on the whole disk instead.
        advice: whether there is any.
    """
    random_ = random.Random(seed)
    size = cells * cell_size
    partitions = _bare(size) if bare else _partitions(size)
    changed, space = _cells(random_, partitions, cells, cell_size)
    listed = sorted(
        _files(random_, files, names, len(partitions)),
        key=lambda file: (-file.changed_bytes, -file.freed_bytes),
    )
    owner = np.full(cells, -1, np.int32)
    touched = np.flatnonzero(changed.sum(axis=0))
    if listed:
        owner[touched[::3]] = np.arange(touched[::3].size) % len(listed)
    grid = Cells(cell_size, changed, space, space, owner)
    found = _attribution(partitions, grid, listed, size, advice)
    return Made(found, _inspection(changed, size, grid), [])


def _bare(size: int) -> tuple[Partition, ...]:
    uuid = "0fc63daf-8483-4772-8e79-3d69d8477de4"
    return (Partition(0, 0, size, "none", "", "", "ext4", "rootfs", uuid, True, None,
                      VolumeState.CLEAN),)  # fmt: skip


def _partitions(size: int) -> tuple[Partition, ...]:
    unit = size // 64
    return (
        Partition(1, MIB, unit, "gpt", "EFI system", "EFI", "fat32", "ESP", "1A2B-3C4D", True,
                  None, VolumeState.CLEAN),
        Partition(2, 2 * unit, 36 * unit, "gpt", "Linux filesystem", "root", "ext4", "rootfs",
                  "0fc63daf-8483-4772-8e79-3d69d8477de4", True, None, VolumeState.NEEDS_RECOVERY),
        Partition(3, 39 * unit, 16 * unit, "gpt", "Basic data", "Windows <b>", "ntfs", "",
                  "6f1c27de4a", False, "not read: install qcowdelta[files]"),
        Partition(4, 56 * unit, 4 * unit, "gpt", "Linux swap", "", "swap", "", "", True, None,
                  VolumeState.CLEAN),
    )  # fmt: skip


def _cells(
    random_: random.Random, partitions: tuple[Partition, ...], cells: int, cell_size: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    noise = np.random.default_rng(random_.randrange(1 << 30))
    space = np.full(cells, SpaceKind.UNPARTITIONED, np.uint8)
    changed = np.zeros((len(ChangeKind), cells), np.int64)
    for partition in partitions:
        first, last = partition.start // cell_size, partition.stop // cell_size
        space[first:last] = (
            SpaceKind.SWAP if partition.filesystem == "swap" else
            SpaceKind.NOT_READ if not partition.read else SpaceKind.FREE
        )  # fmt: skip
        if partition.read and partition.filesystem != "swap":
            used = first + int((last - first) * 0.6)
            space[first:used] = SpaceKind.FILE_DATA
            space[first:last:97] = SpaceKind.INODE_TABLE
            space[first + 5 : first + 5 + (last - first) // 40] = SpaceKind.JOURNAL
        for _ in range(max(3, (last - first) // 60)):
            at = int(first + (last - first) * noise.beta(1.2, 3))
            length = min(int(noise.pareto(1.1) * 2) + 1, (last - first) // 6 + 1, last - at)
            kind = noise.choice(3, p=(0.45, 0.5, 0.05))
            amount = noise.integers(1, cell_size // GRANULE + 1, length) * GRANULE
            changed[:, at : at + length] = 0
            changed[kind, at : at + length] = amount
    changed[1, 0] = GRANULE
    space[0] = SpaceKind.PARTITION_TABLE if len(partitions) > 1 else SpaceKind.METADATA
    return changed, space


def _files(
    random_: random.Random, count: int, names: Iterable[bytes], partitions: int
) -> Iterable[FileChange]:
    root = 1 if partitions > 1 else 0
    for name in names:
        yield FileChange(b"/" + name, root, FileStatus.ADDED, FileType.FILE, None, 5000,
                         9 * MIB, 0, 7)  # fmt: skip
    for number in range(count):
        folder = random_.choice(_FOLDERS)
        base = f"lib{random_.choice('abcdefgh')}{number}.so.{number % 7}"
        path = f"/{folder}/{base}".encode()
        status = random_.choice(_STATUSES)
        length = int(random_.paretovariate(0.7) * 3000)
        own = -(-length // 4096) * 4096
        gone, still = status is FileStatus.DELETED, status is FileStatus.METADATA
        moved = status is FileStatus.MOVED
        yield FileChange(
            path,
            0 if folder == "boot" and partitions > 1 else root,
            status,
            FileType.SYMLINK if number % 40 == 0 else FileType.FILE,
            path + b".old" if moved else None,
            length,
            0 if gone or still else min(own, 80 * MIB),
            min(own, 80 * MIB) if gone or moved else 0,
            number + 11,
        )


def _attribution(
    partitions: tuple[Partition, ...], grid: Cells, files: list[FileChange], size: int, told: bool
) -> Attribution:
    total = grid.changed.sum(axis=0)
    place = np.full(total.size, -1)
    for index, partition in enumerate(partitions):
        place[partition.start // grid.size : partition.stop // grid.size] = index
    shares = []
    for index in [*range(len(partitions)), -1]:
        inside = place == index
        kinds = {
            SpaceKind(kind): int(total[inside & (grid.space == kind)].sum())
            for kind in range(len(SpaceKind))
        }
        by_kind = {kind: count for kind, count in kinds.items() if count}
        whose = partitions[index] if index >= 0 else None
        gone = grid.changed[ChangeKind.ZEROED - 1]
        zeroed = {kind: int(gone[inside & (grid.space == kind)].sum()) for kind in by_kind}
        zeroed = {kind: count for kind, count in zeroed.items() if count}
        shares.append(PartitionShare(whose, sum(by_kind.values()), by_kind, zeroed, {}))
    by_kind, zeroed = (
        {
            kind: sum(getattr(share, of).get(kind, 0) for share in shares)
            for kind in SpaceKind
            if any(kind in getattr(share, of) for share in shares)
        }
        for of in ("by_kind", "zeroed")
    )
    free = by_kind.get(SpaceKind.FREE, 0)
    advice = (
        Advice("free-space", free, (free, " of the change is free space that nobody needs"),
               "run fstrim before sealing, or diff --drop-free"),
        Advice("package-cache", 61 * MIB, ("packages in /var/cache/apt/archives: ", 61 * MIB),
               "run apt-get clean before sealing"),
        Advice("compressed", 0, ("OLD is compressed, NEW is not",)),
    )  # fmt: skip
    facts = [
        SourceFacts(
            f"/images/{name}.qcow2", "qcow2", size, size // 5, GRANULE, size // 8, size // 16
        )
        for name in ("golden-2026-10", "golden-2026-11")
    ]
    return Attribution(
        size=size,
        granularity=GRANULE,
        changed_bytes=int(total.sum()),
        by_kind=by_kind,
        zeroed=zeroed,
        partitions=partitions,
        by_partition=tuple(shares),
        files=files,
        cells=grid,
        sources=(facts[0], facts[1]),
        notes=("partition 3: not read: install qcowdelta[files]",) if len(partitions) > 1 else (),
        advice=advice if told else (),
    )


def _inspection(changed: npt.NDArray[np.int64], size: int, grid: Cells) -> Inspection:
    summary = Summary(size, GRANULE)
    for kind in ChangeKind:
        summary.length[kind] = int(changed[kind - 1].sum())
        summary.count[kind] = summary.length[kind] // GRANULE
    longest = (Extent(MIB, 3 * GRANULE, ChangeKind.MODIFIED), Extent(0, GRANULE, ChangeKind.ADDED))
    return Inspection(summary, DeltaStats(), longest, grid.changed, grid.size)
