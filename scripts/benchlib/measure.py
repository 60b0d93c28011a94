"""Run programs in turns; what each took."""

import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

Command = Sequence[str | Path]


class BenchError(Exception):
    """The benchmark cannot go on: a program failed or is missing."""


@dataclass(frozen=True)
class Sample:
    """One run: wall and processor seconds, and the most memory it held at a time."""

    wall: float
    user: float
    system: float
    peak: int

    @property
    def cpu(self) -> float:
        return self.user + self.system


@dataclass(frozen=True)
class Contestant:
    """Commands which, run one after the other, make `output`.

    A slow one runs `once`, which counts. `judge` is called after the last run, and raises if the
    output is wrong.
    """

    name: str
    commands: Sequence[Command]
    output: Path
    once: bool = False
    judge: Callable[[], None] | None = None


@dataclass(frozen=True)
class Score:
    """All runs of one contestant."""

    contestant: Contestant
    samples: list[Sample]
    output_size: int
    output_allocated: int
    stdout: bytes

    @property
    def name(self) -> str:
        return self.contestant.name

    @property
    def is_once(self) -> bool:
        return self.contestant.once

    @property
    def wall(self) -> float:
        return median(sample.wall for sample in self.samples)

    @property
    def cpu(self) -> float:
        return median(sample.cpu for sample in self.samples)

    @property
    def user(self) -> float:
        return median(sample.user for sample in self.samples)

    @property
    def system(self) -> float:
        return median(sample.system for sample in self.samples)

    @property
    def peak(self) -> int:
        return max(sample.peak for sample in self.samples)


def speedup(slow: Score, fast: Score) -> float:
    """How many times longer `slow` takes than `fast`: median over the rounds both ran in."""
    return median(a.wall / b.wall for a, b in zip(slow.samples, fast.samples, strict=True))


def call(command: Command) -> bytes:
    """Run a command outside of any measurement; its standard output."""
    result = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    if result.returncode != 0:
        raise BenchError(_failure(command, result.returncode, result.stderr))
    return result.stdout


def compete(contestants: Sequence[Contestant], runs: int) -> list[Score]:
    """Every contestant in turn, `runs` times, after a round which does not count.

    Output is removed and the disk synced before each run, so that none pays for another's writes.
    """
    samples: list[list[Sample]] = [[] for _ in contestants]
    scores: list[Score] = []
    for round_number in range(runs + 1):
        is_last = round_number == runs
        for number, contestant in enumerate(contestants):
            if contestant.once and not is_last:
                continue
            sample, stdout = _run_once(contestant)
            if round_number > 0:
                samples[number].append(sample)
            if is_last:
                scores.append(_judged(contestant, samples[number], stdout))
    return scores


def _judged(contestant: Contestant, samples: list[Sample], stdout: bytes) -> Score:
    if contestant.judge is not None:
        contestant.judge()
    stat = contestant.output.stat()
    return Score(contestant, samples, stat.st_size, stat.st_blocks * 512, stdout)


def _run_once(contestant: Contestant) -> tuple[Sample, bytes]:
    contestant.output.unlink(missing_ok=True)
    os.sync()
    user, system, peak, stdout = 0.0, 0.0, 0, b""
    start = time.perf_counter()
    for command in contestant.commands:
        usage, stdout = _run_measured(command)
        user += usage.ru_utime
        system += usage.ru_stime
        peak = max(peak, usage.ru_maxrss * 1024)
    return Sample(time.perf_counter() - start, user, system, peak), stdout


def _run_measured(command: Command) -> tuple[resource.struct_rusage, bytes]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode != 0:
            raise BenchError(_failure(command, process.returncode, err.read()))
        return usage, out.read()


def _failure(command: Command, status: int, message: bytes) -> str:
    words = " ".join(str(word) for word in command)
    return f"{words}: status {status}: {message.decode(errors='replace').strip()}"
