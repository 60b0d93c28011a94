"""`apply` gives a whole output or none, and `--resume` goes on with what a killed run left."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from tests.support import patches, qemu
from tests.support.commandline import WAYS, Result, ok, other_name, refused, run
from tests.support.hostile import MIB, command
from tests.support.killing import LIMIT, calls_of, killed_at, points_of
from tests.test_atomic_output import small_folder, what_is_there

__all__ = ["small_folder"]

SIZE = 24 * MIB
CHANGED = 10
PRECIOUS = b"what was there before"
IDENTITY, WORD = 32, 8
COPY, THREADS = 8 * MIB, 2
Format = Literal["raw", "qcow2"]


@dataclass(frozen=True)
class Work:
    """A patch, its base, what it leads to, and where the output goes: a folder of its own."""

    patch: Path
    base: Path
    new: Path
    output: Path

    def words(self, *more: str | Path) -> list[str | Path]:
        return ["apply", self.patch, "--base", self.base, "-o", self.output, "-q", *more]

    def run(self, *more: str | Path) -> Result:
        return run(*self.words(*more))

    def refused(self, *more: str | Path) -> str:
        return refused(*self.words(*more))

    @property
    def partial(self) -> Path:
        return self.output.with_name(f".{self.output.name}.qcowdelta-partial")

    @property
    def journal(self) -> Path:
        return self.output.with_name(f".{self.output.name}.qcowdelta-journal")

    @property
    def leftovers(self) -> list[str]:
        return sorted([self.partial.name, self.journal.name])

    def beside_output(self) -> list[str]:
        return sorted(os.listdir(self.output.parent))

    def steps_done(self) -> int:
        """How many steps the journal of a killed run tells."""
        length = self.journal.stat().st_size if self.journal.exists() else 0
        return max(0, length - IDENTITY) // WORD

    def is_whole(self) -> bool:
        """Whether QEMU finds NEW in the output, and nothing wrong with it."""
        fmt = self.output.suffix[1:]
        if fmt == "raw":
            return self.output.read_bytes() == self.new.read_bytes()
        report = qemu.check(self.output)
        sound = not report["corruptions"] and not report["leaks"]
        return sound and qemu.compare(self.output, self.new, fmt, "raw")

    def assert_finished(self) -> None:
        assert self.is_whole()
        assert self.beside_output() == [self.output.name]


@dataclass(frozen=True)
class Pair:
    old: Path
    new: Path
    patch: Path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """OLD and NEW differ in ten stretches of a MiB; half of OLD is noise, half compressible."""
    folder = tmp_path_factory.mktemp("pair")
    chance = random.Random(11)
    parts = [chance.randbytes(MIB) for _ in range(3)]
    soft = [part.translate(bytes(byte & 0x83 for byte in range(256))) for part in parts]
    content = bytearray()
    for number in range(SIZE // MIB):
        piece = (parts if number % 2 else soft)[number % 3]
        content += number.to_bytes(4, "big") + piece[4 + number : MIB] + bytes(number)
    old, new, patch = folder / "old.raw", folder / "new.raw", folder / "x.qcpatch"
    old.write_bytes(content)
    for number in range(CHANGED):
        at = (2 * number + 1) * MIB
        content[at : at + MIB] = chance.randbytes(MIB)
    new.write_bytes(content)
    patches.make(old, new, patch, "fast")
    return Pair(old, new, patch)


@pytest.fixture(params=["raw", "qcow2"])
def work(pair: Pair, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Work]:
    """What is to be done; the inputs must be the same afterwards, down to their times."""
    if request.param == "qcow2":
        qemu.require("qemu-img")
    yield from _work(pair, tmp_path, request.param)


@pytest.fixture
def raw_work(pair: Pair, tmp_path: Path) -> Iterator[Work]:
    yield from _work(pair, tmp_path, "raw")


def _work(pair: Pair, tmp_path: Path, fmt: Format) -> Iterator[Work]:
    folder = tmp_path / "out"
    folder.mkdir()
    before = [_state(path) for path in (pair.old, pair.patch)]
    yield Work(pair.patch, pair.old, pair.new, folder / f"out.{fmt}")
    assert [_state(path) for path in (pair.old, pair.patch)] == before


def _state(path: Path) -> tuple[int, int, str]:
    info = path.stat()
    return info.st_mtime_ns, info.st_size, hashlib.sha256(path.read_bytes()).hexdigest()


# --- from a pipe ---------------------------------------------------------------------------------


def piped(work: Work, data: bytes | None, temporary: Path) -> subprocess.CompletedProcess[bytes]:
    """Apply what is on standard input; None means that there is none."""
    words = command("apply", "-", *work.words()[2:])
    env = os.environ | {"TMPDIR": str(temporary)}
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env,
        preexec_fn=None if data is not None else lambda: os.close(0),
    ) as process:  # fmt: skip
        out, errors = process.communicate(data, timeout=LIMIT)
    return subprocess.CompletedProcess(words, process.returncode, out, errors)


def test_patch_may_come_from_a_pipe(work: Work, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    done = piped(work, work.patch.read_bytes(), temporary)
    assert done.returncode == 0, done.stderr
    work.assert_finished()
    assert os.listdir(temporary) == []


def test_pipe_that_is_named_is_refused_with_what_to_do(raw_work: Work, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    words = [tmp_path / "pipe" if word == raw_work.patch else word for word in raw_work.words()]
    assert "give - as PATCH" in refused(*words)


@pytest.mark.parametrize("command_name", ["apply", "convert"])
def test_output_is_no_stream(raw_work: Work, command_name: str) -> None:
    words: list[str | Path] = [command_name, raw_work.patch]
    words += ["--base", raw_work.base, "-o", "-"]
    assert "has to be a file" in refused(*words)


def test_output_may_have_the_longest_name_there_is(raw_work: Work) -> None:
    output = raw_work.output.with_name("n" * 251 + ".raw")
    ok(*[output if word == raw_work.output else word for word in raw_work.words()])
    assert output.read_bytes() == raw_work.new.read_bytes()
    assert raw_work.beside_output() == [output.name]


def test_folder_that_is_not_there_is_told_by_the_name_that_was_given(raw_work: Work) -> None:
    output = raw_work.output.parent / "no folder" / "new.raw"
    words = [output if word == raw_work.output else word for word in raw_work.words()]
    assert f"{output}: No such file" in refused(*words)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["nothing", "half", "all but a byte", "more", "other", "closed"])
def test_pipe_that_gives_no_whole_patch_leaves_nothing(
    raw_work: Work, tmp_path: Path, what: str
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    data = raw_work.patch.read_bytes()
    given = {
        "nothing": b"", "half": data[: len(data) // 2], "all but a byte": data[:-1],
        "more": data + b"\0", "other": b"x" * 100_000, "closed": None,
    }[what]  # fmt: skip
    done = piped(raw_work, given, temporary)
    assert done.returncode == 2
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1
    assert "internal error" not in lines[0]
    assert raw_work.beside_output() == os.listdir(temporary) == []


@pytest.mark.slow
def test_resume_works_with_a_pipe_too(raw_work: Work, leave: Leave) -> None:
    leave(raw_work)
    words = ["apply", "-", *raw_work.words("--resume")[2:]]
    done = subprocess.run(
        command(*words), input=raw_work.patch.read_bytes(), check=False, timeout=LIMIT
    )
    assert done.returncode == 0
    raw_work.assert_finished()


# --- killed --------------------------------------------------------------------------------------


def killed_in_the_middle(work: Work, log: Path, least: int = 2) -> int:
    """Leave behind what a run that was killed half-way leaves; return how many steps it did."""
    calls = [name for name, _ in calls_of(work.words(), log) if name != "decode"]
    work.output.unlink()
    assert work.beside_output() == []
    for point in range(len(calls) // 2, len(calls)):
        assert killed_at(work.words(), point, log) == -signal.SIGKILL
        assert not work.output.exists()
        if work.steps_done() >= least:
            return work.steps_done()
        for name in work.beside_output():
            (work.output.parent / name).unlink()
    raise AssertionError("never half-way")


Leave = Callable[[Work], None]


@pytest.fixture(scope="module")
def leave(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Leave:
    """Puts beside an output what a run that was killed half-way left: there is one a format."""
    kept: dict[str, Work] = {}

    def copy(work: Work) -> None:
        fmt = work.output.suffix
        if fmt not in kept:
            folder = tmp_path_factory.mktemp("killed")
            kept[fmt] = Work(pair.patch, pair.old, pair.new, folder / f"out{fmt}")
            killed_in_the_middle(kept[fmt], folder.with_suffix(".calls"))
        for source, target in (
            (kept[fmt].partial, work.partial),
            (kept[fmt].journal, work.journal),
        ):
            shutil.copyfile(source, target)

    return copy


@pytest.mark.slow
def test_kill_at_any_write_leaves_no_output_that_is_not_whole(work: Work, tmp_path: Path) -> None:
    """What it leaves beside it harms no later run, and such a run takes it away."""
    log = tmp_path / "calls"
    points = points_of(work.words(), log, last=10)
    work.output.unlink()
    for point in points:
        assert killed_at(work.words(), point, log) == -signal.SIGKILL
        if work.output.exists():
            assert work.is_whole(), point
            work.output.unlink()
        assert set(work.beside_output()) <= set(work.leftovers), point
        assert work.run().status == 0
        work.assert_finished()
        work.output.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("force", [False, True])
def test_resume_after_a_kill_at_any_write_finishes(work: Work, tmp_path: Path, force: bool) -> None:
    log, forced = tmp_path / "calls", ["--force"] if force else []
    if force:
        work.output.write_bytes(PRECIOUS)
    points = points_of(work.words(*forced), log, last=10)
    work.output.unlink()
    for point in points:
        if force:
            work.output.write_bytes(PRECIOUS)
        assert killed_at(work.words(*forced), point, log) == -signal.SIGKILL
        if force:
            assert work.output.read_bytes() == PRECIOUS or work.is_whole(), point
        if work.output.exists() and not force:
            assert work.is_whole(), point
            work.output.unlink()
        done = work.run("--resume", *forced)
        assert done.status == 0, (point, done.err)
        work.assert_finished()
        work.output.unlink()


@pytest.mark.slow
def test_resume_again_and_again_finishes(work: Work, tmp_path: Path) -> None:
    log = tmp_path / "calls"
    count = len(calls_of(work.words(), log))
    work.output.unlink()
    steps = []
    for part in range(1, 6):
        killed_at(work.words("--resume"), count * part // 12, log)
        if work.output.exists():  # at most there was something left to remove
            break
        steps.append(work.steps_done())
    assert steps == sorted(steps)
    assert work.run("--resume", "--force").status == 0
    work.assert_finished()


@pytest.mark.slow
def test_resume_redoes_no_more_than_a_segment_for_each_thread(
    raw_work: Work, tmp_path: Path
) -> None:
    """Counted in bytes written, steps noted, and payloads decoded."""
    work, log = raw_work, tmp_path / "calls"
    whole = calls_of(work.words(), log)
    steps = [result for name, result in whole if (name, result) == ("pwrite", WORD)]
    assert sum(name == "decode" for name, _ in whole) == CHANGED
    assert bytes_written(whole) == SIZE
    work.output.unlink()
    done = killed_in_the_middle(work, log, least=len(steps) // 2)
    resumed = calls_of(work.words("--resume"), log)
    again = [result for name, result in resumed if (name, result) == ("pwrite", WORD)]
    assert len(again) == len(steps) - done
    assert 0 < bytes_written(resumed) <= len(again) * COPY
    assert bytes_written(resumed) < SIZE
    decoded = sum(name == "decode" for name, _ in resumed)
    assert decoded <= len(again) + THREADS
    work.assert_finished()


def bytes_written(calls: list[tuple[str, int]]) -> int:
    """Bytes of content that were written: neither journal nor headers."""
    return sum(
        result for name, result in calls if name in ("pwrite", "copy_file_range") and result >= 4096
    )


@pytest.mark.slow
def test_without_resume_what_is_left_is_not_trusted(work: Work, leave: Leave) -> None:
    leave(work)
    data = bytearray(work.partial.read_bytes())
    work.partial.write_bytes(bytes(byte ^ 0xFF for byte in data) + bytes(MIB) + b"more")
    assert work.run().status == 0
    work.assert_finished()


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage", ["content", "cut off", "empty", "lost", "journal of all", "journal torn"]
)
def test_damage_to_what_is_left_is_refused_or_made_good(
    work: Work, leave: Leave, damage: str
) -> None:
    leave(work)
    partial = bytearray(work.partial.read_bytes())
    journal = work.journal.read_bytes()
    match damage:
        case "content":
            work.partial.write_bytes(bytes(byte ^ 1 for byte in partial))
        case "cut off":
            work.partial.write_bytes(partial[: MIB + 5])
        case "empty":
            work.partial.write_bytes(b"")
        case "lost":
            work.partial.unlink()
        case "journal of all":
            steps = b"".join(n.to_bytes(WORD, "little") for n in range(10_000))
            work.journal.write_bytes(journal[:IDENTITY] + steps)
        case _:
            work.journal.write_bytes(journal[:-3])
    done = work.run("--resume")
    if damage in ("journal torn", "empty", "lost"):
        assert done.status == 0
    else:
        assert done.status == 2
        assert done.err.count("\n") == 1
        assert "without --resume" in done.err
        assert not work.output.exists()
        assert work.run().status == 0
    work.assert_finished()


@pytest.mark.slow
@pytest.mark.parametrize("left", ["journal of another work", "no journal", "noise", "links"])
def test_what_another_work_left_is_begun_anew(
    work: Work, leave: Leave, tmp_path: Path, left: str
) -> None:
    leave(work)
    outside = tmp_path / "outside"
    match left:
        case "journal of another work":
            journal = work.journal.read_bytes()
            work.journal.write_bytes(bytes(IDENTITY) + journal[IDENTITY:])
            work.partial.write_bytes(b"\xee" * SIZE)
        case "no journal":
            work.journal.unlink()
            work.partial.write_bytes(b"\xee" * SIZE)
        case "noise":
            work.journal.write_bytes(os.urandom(100))
            work.partial.write_bytes(b"\xee" * SIZE)
        case _:
            outside.write_bytes(PRECIOUS)
            work.partial.unlink()
            os.link(outside, work.partial)
    done = work.run("--resume")
    if left == "links":
        assert outside.read_bytes() == PRECIOUS
    assert done.status == 0, done.err
    work.assert_finished()


def test_links_put_where_work_is_kept_are_not_followed(work: Work, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(PRECIOUS)
    for place in (work.partial, work.journal):
        place.symlink_to(outside)
        for more in ((), ("--resume",), ("--force",)):
            work.run(*more)
            assert outside.read_bytes() == PRECIOUS
            work.output.unlink(missing_ok=True)
        place.unlink(missing_ok=True)


@pytest.mark.slow
def test_kill_before_the_second_name_is_gone_puts_the_output_at_no_risk(
    work: Work, tmp_path: Path
) -> None:
    """Just before the end the output has two names; a later run must not write through the other.

    Here the output is moved away, or is to be replaced by a run that is killed.
    """
    log = tmp_path / "calls"
    points = points_of(work.words(), log, spread=1, last=10)
    work.output.unlink()
    for point in points:
        for more in ([], ["--resume"]):
            assert killed_at(work.words(), point, log) == -signal.SIGKILL
            if work.output.exists():
                moved = tmp_path / "moved"
                os.rename(work.output, moved)
                for later in (8, 12, 16):
                    killed_at(work.words(*more), later, log)
                content = moved.read_bytes()
                os.rename(moved, work.output)
                assert content == work.output.read_bytes()
                assert work.is_whole(), (point, more)
            for name in work.beside_output():
                (work.output.parent / name).unlink()


@pytest.mark.slow
@pytest.mark.parametrize("base", ["compressed", "plain"])
def test_base_stored_otherwise_is_no_danger_to_a_resumed_output(
    work: Work, leave: Leave, tmp_path: Path, base: str
) -> None:
    """The same content lies elsewhere then, and other steps are other parts of the work."""
    qemu.require("qemu-img")
    leave(work)
    other = tmp_path / "other.qcow2"
    qemu.convert(
        work.base, other, source_fmt="raw", target_fmt="qcow2", compressed=base == "compressed"
    )
    words = [other if word == work.base else word for word in work.words("--resume")]
    ok(*words)
    work.assert_finished()


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_signal_at_any_time_leaves_no_output_or_all(work: Work, signum: signal.Signals) -> None:
    begun = time.monotonic()
    assert work.run().status == 0
    duration = time.monotonic() - begun
    for number in range(6):
        work.output.unlink(missing_ok=True)
        with subprocess.Popen(
            command(*work.words()), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process:
            time.sleep(duration * (0.4 + 0.6 * number / 6))
            process.send_signal(signum)
            _, errors = process.communicate(timeout=LIMIT)
        assert b"Exception ignored" not in errors
        if work.output.exists():
            assert work.is_whole()
        if signum == signal.SIGINT:
            assert set(work.beside_output()) <= {work.output.name}
        assert set(work.beside_output()) <= {work.output.name, *work.leftovers}


# --- two at once ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--resume"], ["--force"]], ids=["plain", "resume", "force"])
def test_two_at_once_have_one_winner(work: Work, more: list[str]) -> None:
    for delay in (0, 0, 0.05, 0.1, 0.2, 0.3):
        work.output.unlink(missing_ok=True)
        both = []
        for _ in range(2):
            both.append(subprocess.Popen(command(*work.words(*more)), stderr=subprocess.PIPE))
            time.sleep(delay)
        errors = [process.communicate(timeout=LIMIT)[1] for process in both]
        statuses = sorted(process.returncode for process in both)
        assert statuses in ([0, 2], [0, 0] if more == ["--force"] else [0, 2]), errors
        said = [error for error in errors if error]
        for error in said:
            assert len(error.splitlines()) == 1
            assert work.output.name.encode() in error
            assert b"another qcowdelta is writing it" in error or b"exists already" in error
        work.assert_finished()


# --- no room -------------------------------------------------------------------------------------


@pytest.mark.parametrize("small_folder", ["64k", "1m", "8m", "20m"], indirect=True)
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_no_space_ends_in_one_line_and_leaves_nothing(
    pair: Pair, small_folder: Path, fmt: str
) -> None:
    work = Work(pair.patch, pair.old, pair.new, small_folder / f"out.{fmt}")
    message = work.refused()
    assert os.strerror(errno.ENOSPC) in message
    assert work.output.name in message
    assert work.beside_output() == []
    assert shutil.disk_usage(small_folder).used == 0


@pytest.mark.parametrize("small_folder", ["1m", "12m"], indirect=True)
def test_no_space_keeps_what_force_would_replace(pair: Pair, small_folder: Path) -> None:
    work = Work(pair.patch, pair.old, pair.new, small_folder / "out.qcow2")
    work.output.write_bytes(PRECIOUS)
    assert os.strerror(errno.ENOSPC) in work.refused("--force")
    assert work.output.read_bytes() == PRECIOUS
    assert work.beside_output() == [work.output.name]


@pytest.mark.slow
@pytest.mark.parametrize("limit", [4096, 300_000, 9 * MIB, SIZE - 4096])
def test_resume_goes_on_after_a_failure_too(work: Work, limit: int) -> None:
    done = subprocess.run(
        command(*work.words("--resume")), capture_output=True, check=False, timeout=LIMIT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 2
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1
    assert os.strerror(errno.EFBIG) in lines[0]
    assert not work.output.exists()
    assert set(work.beside_output()) <= set(work.leftovers)
    assert work.run("--resume").status == 0
    work.assert_finished()


# --- refused -------------------------------------------------------------------------------------


def test_existing_output_is_refused_without_force(work: Work) -> None:
    work.output.write_bytes(PRECIOUS)
    for more in ((), ("--resume",)):
        assert "--force" in work.refused(*more)
        assert work.output.read_bytes() == PRECIOUS
        assert work.beside_output() == [work.output.name]
    assert work.run("--force").status == 0
    work.assert_finished()


@pytest.mark.parametrize("kind", ["folder", "fifo", "link", "dangling link"])
def test_what_is_no_regular_file_is_never_replaced(
    kind: str, raw_work: Work, tmp_path: Path
) -> None:
    target, output = tmp_path / "target", raw_work.output
    match kind:
        case "folder":
            output.mkdir()
        case "fifo":
            os.mkfifo(output)
        case _:
            if kind == "link":
                target.write_bytes(PRECIOUS)
            output.symlink_to(target)
    before = what_is_there(output)
    for more in ((), ("--force",), ("--force", "--resume")):
        assert output.name in raw_work.refused(*more)
        assert what_is_there(output) == before
        assert raw_work.beside_output() == [output.name]
    assert target.exists() == (kind == "link")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("which", ["base", "patch", "backing file"])
@pytest.mark.parametrize("command_name", ["apply", "convert", "invert", "compose"])
def test_input_is_never_overwritten(
    which: str, way: str, command_name: str, pair: Pair, tmp_path: Path
) -> None:
    qemu.require("qemu-img")
    base, top, patch = tmp_path / "base.raw", tmp_path / "top.qcow2", tmp_path / "x.qcpatch"
    shutil.copyfile(pair.old, base)
    shutil.copyfile(pair.patch, patch)
    qemu.create(top, None, backing="base.raw", backing_fmt="raw")
    victim = {"base": top, "patch": patch, "backing file": base}[which]
    output = other_name(victim, way)
    words: dict[str, list[str | Path]] = {
        "apply": ["apply", patch],
        "convert": ["convert", patch, "--to", "overlay"],
        "invert": ["invert", patch],
        "compose": ["compose", patch, patch],
    }
    before = {path: _state(path) for path in tmp_path.iterdir() if path.is_file()}
    for more in ((), ("--force",)):
        message = refused(*words[command_name], "--base", top, "-o", output, *more)
    assert "input" in message
    assert {path: _state(path) for path in tmp_path.iterdir() if path.is_file()} == before


def test_missing_output_folder_is_named(raw_work: Work, tmp_path: Path) -> None:
    lost = Work(raw_work.patch, raw_work.base, raw_work.new, tmp_path / "nowhere" / "out.raw")
    assert "nowhere" in lost.refused()
    assert not lost.output.parent.exists()
