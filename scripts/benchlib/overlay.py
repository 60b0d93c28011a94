"""The cases of `bench overlay`: two images in, a native overlay out."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

from benchlib import floor, images
from benchlib.common import Setting, must_equal, qcowdelta
from benchlib.images import CLUSTER, MIB, QEMU_IMG, QEMU_IO, TIB, Pair, Write
from benchlib.measure import BenchError, Command, Contestant, Score, call, compete, speedup
from benchlib.report import Result, Target, at_least, at_most, seconds_below, size_at_most

# --- contestants -----------------------------------------------------------------------------


def ours(pair: Pair, output: Path, *options: str) -> Contestant:
    command: Command = [
        qcowdelta(),
        "diff",
        pair.old,
        pair.new,
        "-o",
        output,
        "--force",
        "--json",
        *options,
    ]
    return Contestant(" ".join(["qcowdelta diff", *options]), [command], output)


def rebase(pair: Pair, output: Path, *options: str) -> Contestant:
    """The known trick: an empty overlay of NEW, moved onto OLD."""
    formats = ["-f", "qcow2", "-F", "qcow2"]
    commands: list[Command] = [
        [QEMU_IMG, "create", "-q", *formats, "-b", pair.new, output],
        [QEMU_IMG, "rebase", *options, *formats, "-b", pair.old, output],
    ]
    return Contestant(" ".join(["qemu-img create + rebase", *options]), commands, output)


def least_possible(pair: Pair, output: Path, length: int) -> Contestant:
    """Reading both inputs' data and writing as much as an overlay takes, nothing else."""
    program: list[str | Path] = [sys.executable, "-I", "-S", Path(floor.__file__)]
    command: Command = [*program, output, str(length), pair.old, pair.new]
    return Contestant("floor: read both, write as much", [command], output)


# --- judges ----------------------------------------------------------------------------------


def must_hold(overlay: Path, write: Write) -> None:
    """For images too large to compare: the changed bytes are there."""
    question = f"read -P {write.pattern} {write.offset} {write.length}"
    answer = call([QEMU_IO, "-r", "-f", "qcow2", "-c", question, overlay])
    if b"verification failed" in answer:
        raise BenchError(f"{overlay}: wrong content at {write.offset}")


def bytes_read(score: Score) -> int:
    """The guest bytes which `qcowdelta diff --json` says it read."""
    figures = json.loads(score.stdout)
    return int(figures["bytes_read_old"]) + int(figures["bytes_read_new"])


# --- cases -----------------------------------------------------------------------------------


def plain(setting: Setting) -> Result:
    """The Debian pair as it is."""
    golden = images.golden(setting.golden)
    pair = Pair(golden / "old.qcow2", golden / "new.qcow2")
    overlay, other = setting.folder / "ours.qcow2", setting.folder / "other.qcow2"
    length = compete([ours(pair, overlay)], runs=0)[0].output_size
    must_equal(pair.new, overlay)
    mine, peer, least = compete(
        [ours(pair, overlay), rebase(pair, other), least_possible(pair, other, length)],
        setting.runs,
    )
    targets = [
        at_least("faster than create + rebase", speedup(peer, mine), 1.7),
        at_most("of the floor's time", speedup(mine, least), 1.6),
    ]
    return Result("plain pair", [peer, mine, least], targets)


def inspecting(setting: Setting) -> Result:
    """The Debian pair, told apart by file and kind of space."""
    golden = images.golden(setting.golden)
    pair = Pair(golden / "old.qcow2", golden / "new.qcow2")
    report = setting.folder / "report.txt"
    script = 'exec "$0" inspect "$1" "$2" >"$3"'
    command: Command = ["sh", "-c", script, qcowdelta(), pair.old, pair.new, report]
    mine, plainly = compete(
        [
            Contestant("qcowdelta inspect", [command], report),
            ours(pair, setting.folder / "o.qcow2"),
        ],
        setting.runs,
    )
    target = at_most("inspect, of diff's time", speedup(mine, plainly), 1.5)
    return Result("inspect, plain pair", [mine, plainly], [target])


def can_rebase_compressed(folder: Path) -> bool:
    """Whether this qemu-img has `rebase -c` (QEMU 8.2)."""
    base, overlay = folder / "base.qcow2", folder / "overlay.qcow2"
    images.create(base, MIB)
    images.create_overlay(overlay, base)
    try:
        call([QEMU_IMG, "rebase", "-c", "-f", "qcow2", "-F", "qcow2", "-b", base, overlay])
    except BenchError:
        return False
    finally:
        base.unlink()
        overlay.unlink()
    return True


def compressed(setting: Setting) -> Result:
    """The Debian pair, both compressed with zlib by qemu-img."""
    golden = images.golden(setting.golden)
    pair = Pair(golden / "old.c.qcow2", golden / "new.c.qcow2")
    overlay, other = setting.folder / "ours.qcow2", setting.folder / "other.qcow2"
    has_c = can_rebase_compressed(setting.folder)
    contestants = [ours(pair, overlay), rebase(pair, other, *(["-c"] if has_c else []))]
    mine, peer = compete(contestants, setting.runs)
    must_equal(pair.new, overlay)
    name = peer.name.removeprefix("qemu-img ")
    targets = [
        at_least(f"faster than {name}", speedup(peer, mine), 12 if has_c else 4),
        size_at_most("output no larger", mine.output_size, peer.output_size),
    ]
    return Result("both compressed", [peer, mine], targets)


Place = tuple[int, int] | None


def places(image: Path) -> list[tuple[int, Place]]:
    """Where each range of the guest lies: (its end, (layer from the bottom, offset) or no data)."""
    mapped = json.loads(call([QEMU_IMG, "map", "-f", "qcow2", "--output=json", image]))
    return [
        (
            entry["start"] + entry["length"],
            None if entry["zero"] else (entry["depth"], entry["offset"] - entry["start"]),
        )
        for entry in mapped
    ]


def lying_apart(pair: Pair) -> int:
    """Bytes of guest ranges whose two sides lie in different places, as qemu-img sees them."""
    old, new = places(pair.old), places(pair.new)
    borders = sorted({0} | {end for end, _ in old + new})
    total = 0
    for start, end in pairwise(borders):
        here = next(place for stop, place in old if stop > start)
        there = next(place for stop, place in new if stop > start)
        on_top = any(place is not None and place[0] == 0 for place in (here, there))
        if here != there or on_top:
            total += end - start
    return total


def shared_base(setting: Setting) -> Result:
    """Two overlays over one base."""
    pair = images.made_once(setting.folder / "shared-base", images.shared_base)
    overlay, other = setting.folder / "ours.qcow2", setting.folder / "other.qcow2"
    mine, peer = compete([ours(pair, overlay), rebase(pair, other)], setting.runs)
    must_equal(pair.new, overlay)
    apart = lying_apart(pair)
    target = at_most("guest bytes read, of those lying apart", bytes_read(mine) / (2 * apart), 1.1)
    return Result("two overlays, one base", [peer, mine], [target])


def sparse(setting: Setting) -> Result:
    """8 TiB of nothing, and one changed cluster."""
    pair = images.made_once(setting.folder / "sparse", images.sparse)
    overlay = setting.folder / "ours.qcow2"
    (mine,) = compete([ours(pair, overlay)], setting.runs)
    must_hold(overlay, images.SPARSE_CHANGE)
    targets = [
        seconds_below("time", mine.wall, 1),
        size_at_most("peak memory", mine.peak, 200 * MIB),
    ]
    return Result("8 TiB sparse, one cluster changed", [mine], targets)


def full_tables(setting: Setting) -> Result:
    """Every cluster allocated: do L2 tables stream?"""
    overlay = setting.folder / "ours.qcow2"
    scores = []
    for tebibytes in (1, 8):
        make = partial(images.full_tables, size=tebibytes * TIB)
        pair = images.made_once(setting.folder / f"tables-{tebibytes}t", make)
        (score,) = compete([ours(pair, overlay)], min(setting.runs, 2))
        must_hold(overlay, images.TABLES_CHANGE)
        scores.append(renamed(score, f"qcowdelta diff, {tebibytes} TiB"))
    small, large = scores
    targets = [
        at_most("peak memory of 8 TiB, of that of 1 TiB", large.peak / small.peak, 1.15),
    ]
    return Result("fully allocated L2 tables", scores, targets)


def scattered(setting: Setting) -> Result:
    """500 writes of 4 KiB each, with sub-clusters."""
    pair = images.made_once(setting.folder / "scattered", images.scattered)
    overlay, other = setting.folder / "ours.qcow2", setting.folder / "other.qcow2"
    contestants = [ours(pair, overlay, "--subclusters"), rebase(pair, other)]
    mine, peer = compete(contestants, setting.runs)
    must_equal(pair.new, overlay)
    allowed = peer.output_allocated // 8
    target = size_at_most("overlay, of ⅛ of rebase's", mine.output_allocated, allowed)
    return Result("scattered 4 KiB writes", [peer, mine], [target])


def reflinked(setting: Setting) -> Result:
    """A reflinked copy on XFS, a few clusters written since."""
    case = "reflinked copies on XFS"
    if os.geteuid() != 0:
        return Result(case, skipped="it needs root, to mount an XFS")
    if shutil.which("mkfs.xfs") is None:
        return Result(case, skipped="it needs mkfs.xfs, of the package xfsprogs")
    with images.xfs(setting.folder / "reflink.xfs") as folder:
        pair = images.made_once(folder / "pair", images.reflinked)
        overlay, other = folder / "ours.qcow2", folder / "other.qcow2"
        mine, peer = compete([ours(pair, overlay), rebase(pair, other)], setting.runs)
        must_equal(pair.new, overlay)
    return Result(case, [peer, mine], _reflink_targets(mine))


def _reflink_targets(mine: Score) -> list[Target]:
    changed = len(images.REFLINK_CHANGES) * CLUSTER
    unchanged = images.REFLINK_DATA - changed
    shared = int(json.loads(mine.stdout)["decided"]["shared_extent"])
    return [
        at_least("unchanged bytes decided by shared extents", shared / unchanged, 1),
        at_most("guest bytes read, of those changed", bytes_read(mine) / (2 * changed), 1.1),
    ]


def renamed(score: Score, name: str) -> Score:
    return replace(score, contestant=replace(score.contestant, name=name))


CASES: dict[str, Callable[[Setting], Result]] = {
    "plain": plain,
    "compressed": compressed,
    "shared-base": shared_base,
    "sparse": sparse,
    "full-tables": full_tables,
    "scattered": scattered,
    "inspect": inspecting,
    "reflinked": reflinked,
}
