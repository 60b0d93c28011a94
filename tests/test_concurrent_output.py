"""Several that write one output: one wins, and each of the others says why it did not."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from qcowdelta import AtomicOutput
from qcowdelta.errors import OutputError
from qcowdelta.resumable import ResumableOutput
from tests.support import qemu
from tests.support.commandline import ok
from tests.support.hostile import MIB, command
from tests.support.killing import LIMIT

pytestmark = pytest.mark.slow

ROUNDS, SEVERAL = 10, 4
SIZE = 4 * MIB
PRECIOUS = b"what was there before"
Maker = Callable[[Path, bool], AtomicOutput]


def atomic(path: Path, force: bool) -> AtomicOutput:
    return AtomicOutput(path, force=force)


def resumable(path: Path, force: bool) -> AtomicOutput:
    return ResumableOutput(path, bytes(32), force=force)


def resuming(path: Path, force: bool) -> AtomicOutput:
    return ResumableOutput(path, bytes(32), force=force, resume=True)


# The library: all at the same time, by a barrier


def write_at_once(path: Path, makers: list[Maker], force: bool) -> list[str]:
    """Write one output in as many threads; return for each what it wrote, or else what it said."""
    gate = threading.Barrier(len(makers), timeout=LIMIT)
    results = [""] * len(makers)

    def work(number: int, make: Maker) -> None:
        gate.wait()
        try:
            output = make(path, force)
        except OutputError as error:
            results[number] = str(error)
            gate.wait()
            return
        gate.wait()  # all have begun before one ends
        results[number] = f"content of {number}"
        try:
            with output:
                output.write_at(results[number].encode(), 0)
        except OutputError as error:
            results[number] = str(error)

    threads = [threading.Thread(target=work, args=each) for each in enumerate(makers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    return results


@pytest.mark.parametrize("there", [False, True], ids=["new", "there already"])
@pytest.mark.parametrize("force", [False, True], ids=["plain", "force"])
@pytest.mark.parametrize(
    "makers",
    [[atomic] * SEVERAL, [resumable] * SEVERAL, [resuming] * 2, [atomic, resumable, atomic]],
    ids=["atomic", "resumable", "resuming", "both kinds"],
)
def test_one_of_several_at_once_wins(
    makers: list[Maker], force: bool, there: bool, tmp_path: Path
) -> None:
    path = tmp_path / "out"
    for _ in range(ROUNDS):
        path.unlink(missing_ok=True)
        if there:
            path.write_bytes(PRECIOUS)
        results = write_at_once(path, makers, force)
        winners = [each for each in results if each.startswith("content of")]
        assert len(winners) == (0 if there and not force else 1), results
        assert path.read_bytes() == (winners[0].encode() if winners else PRECIOUS)
        for said in set(results) - set(winners):
            assert said.startswith(f"{path}: ")
            assert "exists already" in said or "another qcowdelta is writing it" in said
        assert os.listdir(tmp_path) == ["out"]


def test_what_another_has_just_replaced_is_not_replaced_by_who_saw_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening what is there and locking it, another may have put its own in place."""
    path, real = tmp_path / "out", os.path.isfile
    path.write_bytes(PRECIOUS)

    def replace_behind(name: str) -> bool:
        monkeypatch.setattr(os.path, "isfile", real)
        found = os.open

        def opened(file: str, *words: int, **named: int) -> int:
            fd = found(file, *words, **named)
            if file == str(path):
                monkeypatch.setattr(os, "open", found)
                with AtomicOutput(path, force=True) as other:
                    other.write_at(b"the other's", 0)
            return fd

        monkeypatch.setattr(os, "open", opened)
        return real(name)

    monkeypatch.setattr(os.path, "isfile", replace_behind)
    with pytest.raises(OutputError, match="another qcowdelta"):
        AtomicOutput(path, force=True)
    assert path.read_bytes() == b"the other's"


def test_what_is_there_can_be_replaced_once_the_other_failed(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(PRECIOUS)

    def fail() -> None:
        with AtomicOutput(path, force=True):
            with pytest.raises(OutputError, match="another qcowdelta"):
                AtomicOutput(path, force=True)
            raise OSError("lost")

    with pytest.raises(OSError, match="lost"):
        fail()
    assert path.read_bytes() == PRECIOUS
    with AtomicOutput(path, force=True) as output:
        output.write_at(b"mine", 0)
    assert path.read_bytes() == b"mine"


# The command line


@dataclass(frozen=True)
class Work:
    """What leads from OLD to NEW, in several ways, and the one output that all of them write."""

    old: Path
    new: Path
    patch: Path
    output: Path

    def start(self, what: str, *more: str) -> subprocess.Popen[bytes]:
        ways: dict[str, list[str | Path]] = {
            "diff": ["diff", self.old, self.new],
            "apply": ["apply", self.patch, "--base", self.old, "--format", "qcow2"],
            "convert": ["convert", self.patch, "--base", self.old, "--to", "overlay"],
        }
        argv = command(*ways[what], "-o", self.output, "-q", *more)
        return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def assert_whole(self) -> None:
        assert qemu.compare(self.output, self.new, "qcow2", "raw")
        assert os.listdir(self.output.parent) == [self.output.name]


@pytest.fixture
def work(tmp_path: Path) -> Work:
    qemu.require("qemu-img")
    old, new, patch = (tmp_path / name for name in ("old.raw", "new.raw", "x.qcpatch"))
    old.write_bytes(bytes(SIZE))
    new.write_bytes(os.urandom(SIZE))
    ok("diff", old, new, "-o", patch, "-q")
    (tmp_path / "out").mkdir()
    return Work(old, new, patch, tmp_path / "out" / "x.qcow2")


def said_by(process: subprocess.Popen[bytes]) -> str:
    """What a process said; nothing where it succeeded, else one line that names the output."""
    error = process.communicate(timeout=LIMIT)[1].decode()
    assert (process.returncode, error.count("\n")) in ((0, 0), (2, 1)), error
    assert not error or "x.qcow2" in error
    return error


def begun(process: subprocess.Popen[bytes], work: Work) -> bool:
    """Whether a process has made an output its own: one without a name, or a hidden one.

    One to be resumed is open before it is locked, and its journal only after that.
    """
    try:
        links = [os.readlink(link) for link in Path(f"/proc/{process.pid}/fd").iterdir()]
    except FileNotFoundError:
        return False
    folder = f"{work.output.parent}/"
    own = [link for link in links if link.startswith((f"{folder}#", f"{folder}."))]
    return any(not link.endswith("-partial") for link in own)


def stop_at_work(process: subprocess.Popen[bytes], work: Work) -> None:
    while not begun(process, work):
        assert process.poll() is None, process.stderr
        time.sleep(0.001)
    process.send_signal(signal.SIGSTOP)


def finish(process: subprocess.Popen[bytes]) -> str:
    process.send_signal(signal.SIGCONT)
    return said_by(process)


@pytest.mark.parametrize("first", ["diff", "apply", "convert"])
@pytest.mark.parametrize("second", ["diff", "apply", "convert"])
def test_who_would_replace_what_another_is_replacing_is_told_at_once(
    first: str, second: str, work: Work
) -> None:
    work.output.write_bytes(PRECIOUS)
    slow = work.start(first, "--force")
    stop_at_work(slow, work)
    assert "another qcowdelta is writing it" in said_by(work.start(second, "--force"))
    assert work.output.read_bytes() == PRECIOUS
    assert finish(slow) == ""
    work.assert_whole()


@pytest.mark.parametrize("more", [[], ["--force"]], ids=["plain", "force"])
@pytest.mark.parametrize(
    ("first", "second"),
    [("diff", "diff"), ("diff", "apply"), ("apply", "diff"), ("convert", "apply")],
)
def test_who_comes_second_with_a_new_output_is_told(
    first: str, second: str, more: list[str], work: Work
) -> None:
    slow = work.start(first, *more)
    stop_at_work(slow, work)
    assert said_by(work.start(second, *more)) == ""
    assert "another process wrote it meanwhile" in finish(slow)
    work.assert_whole()


@pytest.mark.parametrize("more", [[], ["--force"], ["--resume"]], ids=" ".join)
def test_second_apply_to_one_output_is_told_at_once(more: list[str], work: Work) -> None:
    slow = work.start("apply", *more)
    stop_at_work(slow, work)
    assert "another qcowdelta is writing it" in said_by(work.start("apply", *more))
    assert finish(slow) == ""
    work.assert_whole()


@pytest.mark.parametrize(
    ("more", "there"),
    [([], False), (["--force"], False), (["--force"], True)],
    ids=["new", "new with force", "replaced with force"],
)
def test_one_wins_in_each_of_ten_races(more: list[str], there: bool, work: Work) -> None:
    """With --force whoever comes after another has finished may replace what that one wrote."""
    for _ in range(ROUNDS):
        work.output.unlink(missing_ok=True)
        if there:
            work.output.write_bytes(PRECIOUS)
        racing = [work.start(what, *more) for what in ("diff", "apply", "diff")]
        said = [said_by(process) for process in racing]
        winners = said.count("")
        assert winners >= 1
        assert more or winners == 1
        for line in filter(None, said):
            assert "exists already" in line or "another qcowdelta is writing it" in line
        work.assert_whole()
