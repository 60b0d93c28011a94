"""A live diff that does not come to its end: it undoes itself, or ``live cleanup`` undoes it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import qemu
from tests.support.live import Live, Outcome, Words, content, diff
from tests.support.machine import GRANULE, Disk, Machine
from tests.support.qmp_proxy import Moment, Proxy

pytestmark = pytest.mark.slow

MIB = 1 << 20
SIZE = 16 * MIB
ROUNDS = 10
INTERRUPTED = (130, 143, -signal.SIGINT, -signal.SIGTERM)


@dataclass
class Setup:
    """A machine with one disk, a base, and a checkpoint that is there from the beginning."""

    folder: Path
    machine: Machine
    live: Live

    @property
    def base(self) -> Path:
        return self.folder / "base.qcow2"

    @property
    def output(self) -> Path:
        return self.folder / "out.qcow2"

    def diff(self, *more: str | Path) -> Words:
        return diff(self.base, self.output, "--force", *more)

    def sound(self, before: dict[str, Any], said: object) -> None:
        """The machine is as before, the guest can write, and nothing lies about."""
        assert self.machine.state() == before, said
        assert self.live.left() == [], said
        assert self.live.open_sockets() == [], said
        assert not self.machine.serves_nbd(), said
        self.machine.write("disk0", GRANULE, GRANULE, 0x41)

    def works(self) -> None:
        """A whole diff succeeds, and is right."""
        self.live.ok(*self.diff())
        assert content(self.output, base=self.base) == self.machine.content["disk0"]
        self.output.unlink()


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Setup]:
    qemu.require("qemu-img", "qemu-io", "qemu-system")
    base, disk = tmp_path / "base.qcow2", tmp_path / "disk.qcow2"
    qemu.create(base, SIZE)
    qemu.write(base, 0, SIZE // 2, 0x0B)
    shutil.copyfile(base, disk)
    with (
        Machine(tmp_path, Disk("disk0", disk)) as machine,
        Live(machine.qmp, tmp_path) as live,
    ):
        machine.write("disk0", 0, MIB, 0x11)
        yield Setup(tmp_path, machine, live)


Killer = Callable[[Moment], None]


def _kill(moment: Moment) -> None:
    os.kill(moment.client, signal.SIGKILL)


def _interrupt(moment: Moment) -> None:
    os.kill(moment.client, signal.SIGINT)


def _terminate(moment: Moment) -> None:
    os.kill(moment.client, signal.SIGTERM)


def _struck(setup: Setup, stage: str, number: int, strike: Killer, *more: str) -> Outcome:
    """Run a diff, and strike it at one moment of its talk with the machine."""

    def hook(moment: Moment) -> bool:
        if (moment.stage, moment.number) == (stage, number):
            strike(moment)
        return True

    with Proxy(setup.machine.qmp, hook) as proxy:
        return setup.live.run(*setup.diff(*more), qmp=proxy.path)


def _steps(setup: Setup, *more: str) -> list[str]:
    """What a diff asks of the machine, in order."""
    with Proxy(setup.machine.qmp) as proxy:
        setup.live.ok(*setup.diff(*more), qmp=proxy.path)
        setup.output.unlink()
        return proxy.commands


def test_cleanup_undoes_a_diff_killed_at_any_step(setup: Setup) -> None:
    before, steps = setup.machine.state(), _steps(setup)
    for number in range(len(steps)):
        outcome = _struck(setup, "after", number, _kill)
        said = (number, steps[number], outcome)
        assert outcome.status == -signal.SIGKILL, said
        setup.live.ok("cleanup")
        setup.sound(before, said)
    setup.works()


def test_cleanup_undoes_a_killed_diff_ten_times_in_a_row(setup: Setup) -> None:
    """One machine, which is killed into everywhere again and again, and written to in between."""
    before, count = setup.machine.state(), len(_steps(setup))
    for turn in range(ROUNDS):
        for method in ("copy-before-write", "backup"):
            number = (turn * 7 + 5) % count
            outcome = _struck(setup, "after", number, _kill, "--method", method)
            assert outcome.status in (0, -signal.SIGKILL), outcome
            assert setup.live.left() == [], "before the cleanup: nothing but what the machine has"
            setup.live.ok("cleanup")
            setup.sound(before, (turn, method, outcome))
        setup.works()


@pytest.mark.parametrize(("strike", "first"), [(_interrupt, 0), (_terminate, 1)])
def test_interrupted_diff_undoes_itself(strike: Killer, first: int, setup: Setup) -> None:
    before, steps = setup.machine.state(), _steps(setup)
    whole: list[int] = []
    numbers = range(first, len(steps), 3)
    for number in numbers:
        outcome = _struck(setup, "before", number, strike)
        said = (number, steps[number], outcome)
        assert outcome.status in (0, *INTERRUPTED), said
        assert "Traceback" not in outcome.err, said
        if setup.output.exists():
            # It came when there was but the undoing to do.
            assert content(setup.output, base=setup.base) == setup.machine.content["disk0"]
            setup.output.unlink()
            whole.append(number)
        setup.sound(before, said)
    assert whole == list(numbers)[-len(whole) :]
    assert whole[0] > steps.index("block-export-add")
    setup.works()


def test_interrupting_again_does_not_stop_the_undoing(setup: Setup) -> None:
    before, steps = setup.machine.state(), _steps(setup)
    struck = steps.index("block-export-add")

    def hook(moment: Moment) -> bool:
        if moment.number >= struck and moment.stage == "after":
            _interrupt(moment)
            time.sleep(0.02)
        return True

    with Proxy(setup.machine.qmp, hook) as proxy:
        outcome = setup.live.run(*setup.diff(), qmp=proxy.path)
    assert outcome.status in INTERRUPTED
    assert not setup.output.exists()
    setup.sound(before, outcome)


def test_output_that_fails_is_undone(setup: Setup) -> None:
    before = setup.machine.state()
    missing = setup.folder / "none" / "out.qcow2"
    assert "none" in setup.live.run(*diff(setup.base, missing)).refusal
    setup.sound(before, "missing folder")


def _at(command: str, act: Callable[[], None]) -> Callable[[Moment], bool]:
    """Something done once, just after the machine has carried out a command."""
    done = False

    def hook(moment: Moment) -> bool:
        nonlocal done
        if not done and (moment.stage, moment.command) == ("after", command):
            done = True
            act()
        return True

    return hook


def _overwrite(machine: Machine) -> None:
    """Write 8 MiB of what the base has data in; each write has to succeed."""
    for granule in range(SIZE // 2 // GRANULE):
        machine.write("disk0", granule * GRANULE, GRANULE, 0x51)


def test_full_scratch_fails_the_diff_and_not_the_guest(setup: Setup) -> None:
    machine = setup.machine
    before = machine.state()
    with Proxy(machine.qmp, _at("block-export-add", lambda: _overwrite(machine))) as proxy:
        outcome = setup.live.run(*setup.diff("--scratch-size", "6M"), qmp=proxy.path)
    assert "scratch" in outcome.refusal
    assert "--scratch" in outcome.refusal  # what helps
    assert not setup.output.exists()
    assert machine.reads_as("disk0", 0, SIZE // 2, 0x51)
    assert machine.ours() == []
    setup.live.ok("cleanup")
    setup.sound(before, outcome)
    setup.works()


def test_killed_diff_with_a_full_scratch_is_cleaned_up(setup: Setup) -> None:
    machine = setup.machine
    before = machine.state()

    def fill_and_kill(moment: Moment) -> bool:
        if (moment.stage, moment.command) == ("after", "block-export-add"):
            _overwrite(machine)
            _kill(moment)
        return True

    with Proxy(machine.qmp, fill_and_kill) as proxy:
        setup.live.run(*setup.diff("--scratch-size", "6M"), qmp=proxy.path)
    assert machine.ours() != []
    _overwrite(machine)
    setup.live.ok("cleanup")
    assert machine.ours() == []
    setup.sound(before, "full, then killed")
    setup.works()


def test_full_file_system_fails_the_diff_and_not_the_guest(setup: Setup) -> None:
    machine = setup.machine
    before = machine.state()
    with small_file_system(setup.folder / "small", 12 * MIB) as small:

        def fill() -> None:
            with contextlib.suppress(OSError), (small / "filler").open("wb") as filler:
                while True:
                    filler.write(bytes(MIB))
            _overwrite(machine)

        with Proxy(machine.qmp, _at("block-export-add", fill)) as proxy:
            outcome = setup.live.run(*setup.diff("--scratch", small), qmp=proxy.path)
        assert str(small) in outcome.refusal
        assert [path.name for path in small.iterdir()] == ["filler"]
    setup.sound(before, outcome)


def test_scratch_takes_no_name_and_no_space_afterwards(setup: Setup) -> None:
    with small_file_system(setup.folder / "small", 32 * MIB) as small:
        free = os.statvfs(small).f_bfree
        overwritten = _at("block-export-add", lambda: _overwrite(setup.machine))
        moment = bytes(setup.machine.content["disk0"])
        with Proxy(setup.machine.qmp, overwritten) as proxy:
            setup.live.ok(*setup.diff("--scratch", small), qmp=proxy.path)
        assert content(setup.output, base=setup.base) == moment
        assert list(small.iterdir()) == []
        assert os.statvfs(small).f_bfree == free


def test_full_output_is_undone(setup: Setup) -> None:
    before = setup.machine.state()
    setup.machine.write("disk0", 0, 12 * MIB, 0x71)
    with small_file_system(setup.folder / "small", 4 * MIB) as small:
        words = diff(setup.base, small / "out.qcow2", "--scratch", setup.folder)
        assert "No space left" in setup.live.run(*words).refusal
        assert list(small.iterdir()) == []
    setup.sound(before, "full output")


@contextlib.contextmanager
def small_file_system(folder: Path, size: int) -> Iterator[Path]:
    """A file system of so many bytes."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    folder.mkdir()
    qemu.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)])
    try:
        yield folder
    finally:
        qemu.run(["umount", str(folder)])


def test_second_diff_in_one_machine_is_refused(setup: Setup) -> None:
    said: list[Outcome] = []
    other = setup.folder / "other"
    other.mkdir()

    def second() -> None:
        live = Live(setup.machine.second, other)
        words: Words = [
            "diff",
            "--device",
            "disk0",
            "--base",
            setup.base,
            "-o",
            other / "out.qcow2",
        ]
        said.append(live.run(*words))
        said.append(live.run("cleanup"))

    before = setup.machine.state()
    with Proxy(setup.machine.qmp, _at("block-export-add", second)) as proxy:
        setup.live.ok(*setup.diff(), qmp=proxy.path)
    assert "another qcowdelta" in said[0].refusal
    assert said[1].status == 2, "the cleanup undid a run that was at work"
    assert content(setup.output, base=setup.base) == setup.machine.content["disk0"]
    setup.sound(before, said)


def test_cleanup_of_a_clean_machine_changes_nothing(setup: Setup) -> None:
    before = setup.machine.state()
    for _ in range(2):
        setup.live.ok("cleanup")
        setup.sound(before, "clean")


def test_cleanup_keeps_what_is_not_of_a_run(setup: Setup) -> None:
    """Others' nodes, bitmaps, exports and objects, and checkpoints of ours."""
    execute = setup.machine.monitor.execute
    setup.live.ok("checkpoint", "--device", "disk0", "--name", "kept")
    bitmap = {"node": "disk0-format", "name": "backup-of-monday"}
    execute("block-dirty-bitmap-add", bitmap)
    execute("blockdev-add", {"driver": "null-co", "node-name": "theirs", "size": MIB})
    before = setup.machine.state()
    outcome = _struck(setup, "after", len(_steps(setup)) // 2, _kill)
    assert outcome.status == -signal.SIGKILL
    assert setup.machine.state() != before
    setup.live.ok("cleanup")
    setup.sound(before, outcome)


ENDINGS = ("overlay", "patch", "refused", "full", "Ctrl-C", "terminated", "killed")


@pytest.mark.parametrize("part", range(2))
def test_nothing_is_left_in_50_runs_however_they_end(part: int, setup: Setup) -> None:
    """No process, socket or temporary file; what is in the machine after a kill, cleanup undoes.

    In two parts, so that each has every ending three times at least, at places all over the run.
    """
    before, count = setup.machine.state(), len(_steps(setup))
    for number in range(part, 50, 2):
        turn, ending = number // len(ENDINGS), ENDINGS[number % len(ENDINGS)]
        outcome = _ended(setup, ending, 3 + turn * (count - 6) // (50 // len(ENDINGS)))
        setup.output.unlink(missing_ok=True)
        setup.output.with_suffix(".qcpatch").unlink(missing_ok=True)
        said = (turn, ending, outcome)
        assert setup.live.left() == [], said
        if ending == "killed":
            setup.live.ok("cleanup")
        setup.sound(before, said)
        beside = {path.name for path in setup.folder.iterdir()}
        assert beside == {"base.qcow2", "disk.qcow2", "tmp"}, said


def _ended(setup: Setup, ending: str, number: int) -> Outcome:
    """Run a diff that ends so; one that is struck is so at this command."""
    strikes = {"Ctrl-C": _interrupt, "terminated": _terminate, "killed": _kill}
    if ending in strikes:
        outcome = _struck(setup, "after", number, strikes[ending])
        assert outcome.status in (0, -signal.SIGKILL, *INTERRUPTED), outcome
        return outcome
    if ending == "full":
        overwrite = _at("block-export-add", lambda: _overwrite(setup.machine))
        with Proxy(setup.machine.qmp, overwrite) as proxy:
            outcome = setup.live.run(*setup.diff("--scratch-size", "6M"), qmp=proxy.path)
        assert "scratch" in outcome.refusal
        return outcome
    if ending == "refused":
        outcome = setup.live.run(*setup.diff("--since", "never"))
        assert "never" in outcome.refusal
        return outcome
    to: Words = (
        ["--to", "patch", "-o", setup.output.with_suffix(".qcpatch")] if ending == "patch" else []
    )
    return setup.live.ok(*setup.diff(*to))
