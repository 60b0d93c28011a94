"""Figures for readers: Markdown that can be pasted into the README, or JSON."""

import json
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from benchlib.images import QEMU_IMG
from benchlib.measure import Score, call

TIMES = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class Target:
    """One line that must hold."""

    what: str
    measured: str
    wanted: str
    holds: bool


@dataclass(frozen=True)
class Patched:
    """What making a patch took, and each way of using it."""

    made: Score
    used: Sequence[Score]


@dataclass(frozen=True)
class Result:
    """What one case showed. `skipped` says why it could not run; `notes` are for the reader."""

    case: str
    scores: Sequence[Score] = ()
    targets: Sequence[Target] = ()
    skipped: str = ""
    patches: Sequence[Patched] = ()
    notes: Sequence[str] = ()


def at_least(what: str, measured: float, wanted: float) -> Target:
    return Target(what, f"{measured:.2f}{TIMES}", f"≥ {wanted:g}{TIMES}", measured >= wanted)


def at_most(what: str, measured: float, wanted: float) -> Target:
    return Target(what, f"{measured:.2f}{TIMES}", f"≤ {wanted:g}{TIMES}", measured <= wanted)


def size_at_most(what: str, measured: int, wanted: int) -> Target:
    return Target(what, size(measured), f"≤ {size(wanted)}", measured <= wanted)


def seconds_below(what: str, measured: float, wanted: float) -> Target:
    return Target(what, f"{measured:.2f} s", f"< {wanted:g} s", measured < wanted)


def size(count: float) -> str:
    """Three digits or so, in the unit that suits."""
    unit = "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if count >= 100 or unit == "B" else f"{count:.1f} {unit}"


def machine(peers: Iterable[str] = ()) -> str:
    """Where this was measured, with which versions of which programs."""
    qemu = call([QEMU_IMG, "--version"]).decode().split()[2]
    cpus = len(os.sched_getaffinity(0))
    python = platform.python_version()
    parts = [f"{cpus} CPUs", f"Linux {platform.release()}", f"QEMU {qemu}", f"Python {python}"]
    return ", ".join([*parts, *peers])


def markdown(results: Sequence[Result], command: str, peers: Sequence[str]) -> str:
    return "\n".join(_markdown_lines(results, command, peers))


RUN_HEAD = ["case", "program", "time", "CPU", "peak memory", "output"]
PATCH_HEAD = [
    *["case", "program", "patch", "time", "CPU: user + system", "peak memory"],
    *["apply: time", "CPU", "peak memory"],
]


def _markdown_lines(results: Sequence[Result], command: str, peers: Sequence[str]) -> Iterator[str]:
    yield f"Made by `{command}` on {machine(peers)}; page cache warm, medians.\n"
    if any(result.scores for result in results):
        yield from _table(RUN_HEAD, _runs(results))
        yield ""
    if any(result.patches for result in results):
        yield from _table(PATCH_HEAD, _patches(results))
        yield ""
    yield from _table(["case", "target", "measured", "wanted", ""], _targets(results))
    for result in results:
        if result.skipped:
            yield f"\n{result.case}: skipped, {result.skipped}"
        for note in result.notes:
            yield f"\n{result.case}: {note}"
    once = {p.made.name: None for result in results for p in result.patches if p.made.is_once}
    if once:
        yield f"\nRan once: {', '.join(once)}."


def _patches(results: Sequence[Result]) -> Iterator[list[str]]:
    for result in results:
        for patched in result.patches:
            first, *others = patched.used
            made = patched.made
            making = [size(made.output_size), *_cost(made)]
            name = f"{made.name}, {first.name}" if first.name else made.name
            yield [result.case, name, *making, *_cost(first)]
            for score in others:
                yield [result.case, f"… {score.name}", *[""] * len(making), *_cost(score)]


def _cost(score: Score) -> list[str]:
    processor = f"{score.user:.2f} + {score.system:.2f} s"
    return [f"{score.wall:.2f} s", processor, size(score.peak)]


def _runs(results: Sequence[Result]) -> Iterator[list[str]]:
    for result in results:
        for score in result.scores:
            times = [f"{score.wall:.2f} s", f"{score.cpu:.2f} s"]
            yield [result.case, score.name, *times, size(score.peak), size(score.output_allocated)]


def _targets(results: Sequence[Result]) -> Iterator[list[str]]:
    for result in results:
        for target in result.targets:
            verdict = "PASS" if target.holds else "FAIL"
            yield [result.case, target.what, target.measured, target.wanted, verdict]


def _table(head: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def as_json(results: Sequence[Result], command: str, peers: Sequence[str]) -> str:
    cases = [
        {
            "case": result.case,
            "skipped": result.skipped or None,
            "notes": result.notes,
            "runs": [_run_as_json(score) for score in result.scores],
            "patches": [
                {
                    "made": _run_as_json(patched.made),
                    "used": [_run_as_json(score) for score in patched.used],
                }
                for patched in result.patches
            ],
            "targets": [asdict(target) for target in result.targets],
        }
        for result in results
    ]
    figures = {"command": command, "machine": machine(peers), "cases": cases}
    return json.dumps(figures, indent=2)


def _run_as_json(score: Score) -> dict[str, object]:
    return {
        "name": score.name,
        "wall_seconds": score.wall,
        "cpu_seconds": score.cpu,
        "peak_bytes": score.peak,
        "output_bytes": score.output_size,
        "output_allocated_bytes": score.output_allocated,
        "samples": [asdict(sample) for sample in score.samples],
    }
