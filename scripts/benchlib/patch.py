"""The cases of `bench patch`: two images in, a patch out, and applied again.

The general tools are given raw images, their best case, but for one of them in the compressed case.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchlib import images
from benchlib.common import Setting, must_equal, qcowdelta
from benchlib.images import KIB, MIB, Pair
from benchlib.measure import Command, Contestant, Score, compete, speedup
from benchlib.report import Patched, Result, Target, at_least, at_most, size, size_at_most

DIFF_MEMORY = 768 * MIB
APPLY_MEMORY = 256 * MIB

# From this share of NEW on, an overlay is as much to write as NEW.
ALL_OF_IT = 0.95
USES = 3  # rounds of using patches for one of making them: they are short, and close to each other

# Debian's 4.3-23 peaked at 9 times the source, of 8 to 48 MiB; its manual says 17.
BSDIFF_MEMORY = 9
BSDIFF_LIMIT = 256 * MIB


@dataclass(frozen=True)
class Way:
    """A way to use a patch: `commands(old, patch, output)`; the output has NEW's format or this."""

    commands: Callable[[Path, Path, Path], Sequence[Command]]
    name: str = ""
    suffix: str | None = None


@dataclass(frozen=True)
class Program:
    """What makes a patch of a pair: `commands(pair, patch)`; the first way makes all of NEW."""

    name: str
    pair: Pair
    commands: Callable[[Pair, Path], Sequence[Command]]
    ways: Sequence[Way]
    suffix: str = ".patch"
    once: bool = False


# --- ours ------------------------------------------------------------------------------------


def _apply(old: Path, patch: Path, output: Path) -> list[Command]:
    return [[qcowdelta(), "apply", patch, "--base", old, "-o", output, "--quiet"]]


def _convert(old: Path, patch: Path, output: Path) -> list[Command]:
    return [[qcowdelta(), "convert", patch, "--base", old, "-o", output, "--quiet"]]


APPLY_TO_RAW = Way(_apply, "applied to raw", ".raw")
APPLY_TO_QCOW2 = Way(_apply, "applied to qcow2", ".qcow2")
CONVERT = Way(_convert, "converted to an overlay", ".qcow2")


def ours(pair: Pair, effort: str = "", ways: Sequence[Way] = (), *, once: bool = False) -> Program:
    options = [f"--effort={effort}"] if effort else []

    def commands(pair: Pair, patch: Path) -> list[Command]:
        return [[qcowdelta(), "diff", pair.old, pair.new, "-o", patch, "--quiet", *options]]

    ways = ways or (APPLY_TO_RAW, APPLY_TO_QCOW2, CONVERT)
    name = " ".join(["qcowdelta diff", *options])
    return Program(name, pair, commands, ways, ".qcpatch", once)


# --- peers -----------------------------------------------------------------------------------


def zstd(pair: Pair, level: int, *, once: bool = False) -> Program:
    def reference(old: Path) -> list[str]:
        return ["zstd", "-q", "--long=31", f"--patch-from={old}"]

    def commands(pair: Pair, patch: Path) -> list[Command]:
        return [[*reference(pair.old), f"-{level}", pair.new, "-o", patch]]

    def apply(old: Path, patch: Path, output: Path) -> list[Command]:
        return [[*reference(old), "-d", patch, "-o", output]]

    def apply_synced(old: Path, patch: Path, output: Path) -> list[Command]:
        return [*apply(old, patch, output), ["sync", output]]

    name = f"zstd -{level} --long=31 --patch-from"
    ways = [Way(apply)] if once else [Way(apply), Way(apply_synced, "the same, synced to the disk")]
    return Program(name, pair, commands, ways, once=once)


def zstd_alone(pair: Pair) -> Program:
    """NEW compressed, without OLD."""

    def commands(pair: Pair, patch: Path) -> list[Command]:
        return [["zstd", "-q", "-9", pair.new, "-o", patch]]

    def apply(_: Path, patch: Path, output: Path) -> list[Command]:
        return [["zstd", "-q", "-d", patch, "-o", output]]

    return Program("zstd -9 of NEW alone", pair, commands, [Way(apply)], once=True)


def xdelta3(pair: Pair) -> Program:
    window = f"-B{pair.old.stat().st_size}"

    def commands(pair: Pair, patch: Path) -> list[Command]:
        return [["xdelta3", "-1", "-e", window, "-s", pair.old, pair.new, patch]]

    def apply(old: Path, patch: Path, output: Path) -> list[Command]:
        return [["xdelta3", "-d", window, "-s", old, patch, output]]

    return Program("xdelta3 -1 -B (all of OLD)", pair, commands, [Way(apply)], once=True)


def rdiff(pair: Pair) -> Program:
    def commands(pair: Pair, patch: Path) -> list[Command]:
        signature = patch.with_suffix(".signature")
        return [
            ["rdiff", "--force", "signature", pair.old, signature],
            ["rdiff", "delta", signature, pair.new, patch],
        ]

    def apply(old: Path, patch: Path, output: Path) -> list[Command]:
        return [["rdiff", "patch", old, patch, output]]

    return Program("rdiff signature + delta", pair, commands, [Way(apply)])


def bsdiff(pair: Pair) -> Program:
    def commands(pair: Pair, patch: Path) -> list[Command]:
        return [["bsdiff", pair.old, pair.new, patch]]

    def apply(old: Path, patch: Path, output: Path) -> list[Command]:
        return [["bspatch", old, output, patch]]

    return Program("bsdiff", pair, commands, [Way(apply)], once=True)


def why_no_bsdiff(pair: Pair) -> str:
    """Why bsdiff does not run on this pair; nothing where it does."""
    length = pair.old.stat().st_size
    needed, available = BSDIFF_MEMORY * length, available_memory()
    if needed > available:
        return f"it needs {size(needed)} of memory, of which {size(available)} are available"
    if length > BSDIFF_LIMIT:
        took = "it took 1 to 2 s for each MiB of smaller images"
        return f"OLD's {size(length)} are over the limit of {size(BSDIFF_LIMIT)}: {took}"
    return ""


def available_memory() -> int:
    match = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
    return int(match[1]) * KIB if match else 0


def peers(pair: Pair) -> tuple[list[Program], list[str]]:
    """All that can run on this pair, and why others cannot."""
    programs = [
        zstd(pair, 3),
        zstd(pair, 9, once=True),
        xdelta3(pair),
        rdiff(pair),
        zstd_alone(pair),
    ]
    reason = why_no_bsdiff(pair)
    if reason:
        return programs, [f"bsdiff skipped, {reason}"]
    return [*programs, bsdiff(pair)], []


def versions() -> Iterator[str]:
    """The peers that are installed."""
    for name, *command in (
        ("zstd", "zstd", "--version"),
        ("xdelta3", "xdelta3", "-V"),
        ("librsync", "rdiff", "--version"),
    ):
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        number = re.search(r"\d+(\.\d+)+", answer.stdout + answer.stderr)
        yield f"{name} {number[0] if number else 'of unknown version'}"


# --- running ---------------------------------------------------------------------------------


def contest(folder: Path, programs: Sequence[Program], runs: int) -> dict[str, Patched]:
    """Every program's patch, then every patch used in each way, in turns; by program."""
    made = compete([_maker(folder, program) for program in programs], runs)
    users = [user for program in programs for user in _users(folder, program)]
    used = iter(compete(users, USES * runs))
    return {
        score.name: Patched(score, [next(used) for _ in program.ways])
        for program, score in zip(programs, made, strict=True)
    }


def _patch(folder: Path, program: Program) -> Path:
    return folder / (re.sub(r"\W+", "-", program.name) + program.suffix)


def _maker(folder: Path, program: Program) -> Contestant:
    patch = _patch(folder, program)
    return Contestant(program.name, program.commands(program.pair, patch), patch, program.once)


def _users(folder: Path, program: Program) -> Iterator[Contestant]:
    for way in program.ways:
        output = folder / f"output{way.suffix or program.pair.new.suffix}"
        commands = way.commands(program.pair.old, _patch(folder, program), output)
        judge = partial(must_equal, program.pair.new, output)
        yield Contestant(way.name, commands, output, program.once, judge)


def patch_size(folder: Path, pair: Pair) -> int:
    """How large our patch of a pair is."""
    (score,) = compete([_maker(folder, ours(pair))], runs=0)
    score.contestant.output.unlink()
    return score.output_size


@contextmanager
def outputs(setting: Setting) -> Iterator[Path]:
    """A folder for what is made; gone afterwards."""
    with tempfile.TemporaryDirectory(dir=setting.folder, prefix="patch-") as folder:
        yield Path(folder)


# --- targets ---------------------------------------------------------------------------------


def memory_targets(mine: Iterable[Patched]) -> list[Target]:
    mine = list(mine)
    diff = max(patched.made.peak for patched in mine)
    apply = max(score.peak for patched in mine for score in patched.used)
    return [
        size_at_most("diff's peak memory", diff, DIFF_MEMORY),
        size_at_most("apply's and convert's peak memory", apply, APPLY_MEMORY),
    ]


def convert_target(mine: Patched) -> Target:
    """Converting is faster since it writes less; where it cannot, it must take about as long."""
    *applied, converted = mine.used
    ratio = speedup(min(applied, key=lambda score: score.wall), converted)
    if converted.output_size > ALL_OF_IT * applied[-1].output_size:
        return at_least("convert, of apply's speed, all of NEW being written", ratio, 0.9)
    return at_least("convert faster than apply", ratio, 1)


def apply_target(mine: Patched, peer: Patched) -> Target:
    ratio = speedup(peer.used[0], mine.used[0])
    return at_least("apply to raw, of zstd -d's speed", ratio, 0.7)


def smaller(mine: Score, peer: Score) -> float:
    return mine.output_size / peer.output_size


# --- cases -----------------------------------------------------------------------------------

OURS = "qcowdelta diff"
ZSTD_3 = "zstd -3 --long=31 --patch-from"
ZSTD_9 = "zstd -9 --long=31 --patch-from"


def golden_pair(setting: Setting, new: str = "new", suffix: str = ".qcow2") -> Pair:
    golden = images.golden(setting.golden)
    return Pair(golden / f"old{suffix}", golden / f"{new}{suffix}")


def plain(setting: Setting) -> Result:
    """The Debian pair as it is."""
    programs, notes = peers(golden_pair(setting, suffix=".raw"))
    with outputs(setting) as folder:
        patches = contest(folder, [ours(golden_pair(setting)), *programs], setting.runs)
    mine, peer = patches[OURS], patches[ZSTD_3]
    targets = [
        at_most("of zstd -3's size", smaller(mine.made, peer.made), 0.9),
        at_most("of zstd -3's time", speedup(mine.made, peer.made), 1.2),
        *memory_targets([mine]),
        apply_target(mine, peer),
        convert_target(mine),
    ]
    return _result("plain pair", patches, targets, notes)


def compressed(setting: Setting) -> Result:
    """The Debian pair, both compressed with zlib by qemu-img."""
    pair = golden_pair(setting, suffix=".c.qcow2")
    with outputs(setting) as folder:
        wanted = patch_size(folder, golden_pair(setting))
        patches = contest(folder, [ours(pair), zstd(pair, 3)], setting.runs)
    mine = patches[OURS]
    targets = [
        at_most("of the plain pair's patch", mine.made.output_size / wanted, 1.05),
        *memory_targets([mine]),
        convert_target(mine),
    ]
    return _result("both compressed", patches, targets)


def rebuilt(setting: Setting) -> Result:
    """The new system laid out afresh."""
    programs, notes = peers(golden_pair(setting, "rebuilt", ".raw"))
    with outputs(setting) as folder:
        wanted = patch_size(folder, golden_pair(setting))
        mine_first = [ours(golden_pair(setting, "rebuilt")), *programs]
        patches = contest(folder, mine_first, setting.runs)
    mine, peer = patches[OURS], patches[ZSTD_3]
    targets = [
        at_most("of the plain pair's patch", mine.made.output_size / wanted, 1.3),
        *memory_targets([mine]),
        apply_target(mine, peer),
        convert_target(mine),
    ]
    return _result("laid out afresh", patches, targets, notes)


def tiny(setting: Setting) -> Result:
    """A few blocks edited, one small file added."""
    old = golden_pair(setting, suffix=".raw").old
    with outputs(setting) as folder:
        new = folder / "new.raw"
        images.touch(old, new)
        programs, notes = peers(Pair(old, new))
        pair = Pair(old.with_suffix(".qcow2"), images.to_qcow2(new))
        patches = contest(folder, [ours(pair), *programs], setting.runs)
    mine, peer = patches[OURS], patches[ZSTD_3]
    targets = [*memory_targets([mine]), apply_target(mine, peer), convert_target(mine)]
    return _result("tiny change", patches, targets, notes)


def effort(setting: Setting) -> Result:
    """The Debian pair, with each effort."""
    pair, raw = golden_pair(setting), golden_pair(setting, suffix=".raw")
    fast, default, best = (
        ours(pair, name, [APPLY_TO_RAW], once=name == "best")
        for name in ("fast", "default", "best")
    )
    with outputs(setting) as folder:
        contestants = [fast, default, best, zstd(raw, 3), zstd(raw, 9, once=True)]
        patches = contest(folder, contestants, setting.runs)
    quick, small = patches[fast.name], patches[best.name]
    targets = [
        at_least("fast faster than zstd -3", speedup(patches[ZSTD_3].made, quick.made), 3),
        at_most("best, of zstd -9's size", smaller(small.made, patches[ZSTD_9].made), 0.85),
        *memory_targets(patches[program.name] for program in (fast, default, best)),
    ]
    return _result("plain pair, by effort", patches, targets)


def large(setting: Setting) -> Result:
    """100 GiB of old data, of which 100 MiB changed: little of it may be kept in memory."""
    pair = images.made_once(setting.folder / "large", images.large)
    with outputs(setting) as folder:
        (made,) = compete([replace(_maker(folder, ours(pair)), once=True)], runs=1)
    target = size_at_most("diff's peak memory", made.peak, DIFF_MEMORY)
    return Result("100 GiB of old data", scores=[made], targets=[target])


def _result(
    case: str, patches: Mapping[str, Patched], targets: Sequence[Target], notes: Sequence[str] = ()
) -> Result:
    return Result(case, patches=list(patches.values()), targets=targets, notes=notes)


CASES: dict[str, Callable[[Setting], Result]] = {
    "plain": plain,
    "compressed": compressed,
    "rebuilt": rebuilt,
    "tiny": tiny,
    "effort": effort,
    "large": large,
}
