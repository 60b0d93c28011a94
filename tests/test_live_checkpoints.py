"""Incremental deltas of a running VM: only what was written since a checkpoint is read."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support import qemu
from tests.support.live import Live, content, diff
from tests.support.machine import GRANULE, Disk, Machine, Writer
from tests.support.qmp_proxy import Moment, Proxy

pytestmark = pytest.mark.slow

MIB = 1 << 20
SIZE = 32 * MIB
METHODS = ("copy-before-write", "backup")


@dataclass
class Chain:
    """A machine, and overlays each made over the one before."""

    folder: Path
    machine: Machine
    live: Live
    made: list[Path] = field(default_factory=list)

    @property
    def top(self) -> Path:
        return self.made[-1] if self.made else self.folder / "base.qcow2"

    def add(self, *more: str | Path, qmp: Path | None = None) -> dict[str, Any]:
        """Make one more overlay, and return its figures."""
        output = self.folder / f"{len(self.made)}.qcow2"
        figures = self.live.figures(*diff(self.top, output, *more), qmp=qmp)
        self.made.append(output)
        return figures

    def read(self) -> bytes:
        return content(self.top, base=self.folder / "base.qcow2")


@pytest.fixture(params=["qcow2", "raw"])
def chain(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Chain]:
    qemu.require("qemu-img", "qemu-io", "qemu-system")
    base, disk = tmp_path / "base.qcow2", tmp_path / f"disk.{request.param}"
    qemu.create(base, SIZE)
    qemu.write(base, 0, SIZE // 2, 0x0B)
    qemu.convert(base, disk, source_fmt="qcow2", target_fmt=request.param)
    with (
        Machine(tmp_path, Disk("disk0", disk, request.param)) as machine,
        Live(machine.qmp, tmp_path) as live,
    ):
        yield Chain(tmp_path, machine, live)
        assert live.left() == []


def _dirty_after(chain: Chain, granules: range, pattern: int) -> int:
    for granule in granules:
        chain.machine.write("disk0", granule * GRANULE, GRANULE, pattern)
    return len(granules) * GRANULE


@pytest.mark.parametrize("method", METHODS)
def test_each_delta_since_the_last_is_right_and_reads_what_is_dirty(
    method: str, chain: Chain
) -> None:
    chain.machine.write("disk0", 0, MIB, 0x11)
    full = chain.add("--checkpoint", "monday", "--method", method)
    assert full["bytes_read_new"] >= SIZE // 4
    assert chain.read() == chain.machine.content["disk0"]
    last = "monday"
    for number, name in enumerate(("tuesday", "wednesday", "thursday")):
        dirty = _dirty_after(chain, range(number * 40, number * 40 + 37, 3), 0x20 + number)
        figures = chain.add("--since", last, "--checkpoint", name, "--method", method)
        assert 0 < figures["bytes_read_new"] <= 1.2 * dirty
        assert chain.read() == chain.machine.content["disk0"]
        last = name


@pytest.mark.parametrize("method", METHODS)
def test_writes_during_an_incremental_delta_are_in_it_or_in_the_next(
    method: str, chain: Chain
) -> None:
    chain.add("--checkpoint", "0", "--method", method)
    with Writer(chain.machine, "disk0") as writer:
        for number in range(3):
            begun = len(writer.log)
            since = ["--since", f"{number}", "--checkpoint", f"{number + 1}"]
            chain.add(*since, "--method", method)
            ended = len(writer.log)
            writer.wait(10)
            moments = writer.moments(chain.read())
            assert moments, "the disk was never like this"
            assert begun <= moments[-1]
            assert moments[0] < ended
    chain.add("--since", "3", "--method", method)
    assert chain.read() == chain.machine.content["disk0"]


@pytest.mark.parametrize("method", METHODS)
def test_write_at_any_step_of_an_incremental_delta_is_missed_by_none(
    method: str, chain: Chain
) -> None:
    """Each step between two commands gets a write of its own, before it and after it."""
    chain.add("--checkpoint", "0", "--method", method)
    chain.machine.write("disk0", 0, MIB, 0x31)
    places: list[int] = []

    def write(moment: Moment) -> bool:
        place = (40 + len(places)) * GRANULE
        places.append(place)
        chain.machine.write("disk0", place, GRANULE, 0x80 + len(places) % 100)
        return True

    with Proxy(chain.machine.qmp, write) as proxy:
        since = ["--since", "0", "--checkpoint", "1"]
        chain.add(*since, "--method", method, qmp=proxy.path)
    got, now = chain.read(), chain.machine.content["disk0"]
    inside = [got[place] == now[place] for place in places]
    assert True in inside
    assert False in inside
    assert inside == sorted(inside, reverse=True), "not of one moment"
    chain.add("--since", "1", "--method", method)
    assert chain.read() == now


def test_checkpoint_alone_starts_the_record(chain: Chain) -> None:
    """The base is a copy of the disk, made by other means while nothing was written."""
    chain.live.ok("checkpoint", "--device", "disk0", "--name", "start")
    dirty = _dirty_after(chain, range(100, 120), 0x44)
    figures = chain.add("--since", "start")
    assert figures["bytes_read_new"] <= 1.2 * dirty
    assert chain.read() == chain.machine.content["disk0"]


def test_nothing_written_gives_an_empty_delta_that_reads_nothing(chain: Chain) -> None:
    chain.live.ok("checkpoint", "--device", "disk0", "--name", "start")
    figures = chain.add("--since", "start")
    assert figures["bytes_read_new"] == 0
    assert chain.read() == chain.machine.content["disk0"]


def test_failed_incremental_delta_leaves_its_checkpoint_to_try_again(chain: Chain) -> None:
    chain.live.ok("checkpoint", "--device", "disk0", "--name", "start")
    before = chain.machine.state()
    _dirty_after(chain, range(64), 0x45)

    def overwrite(moment: Moment) -> bool:
        if (moment.stage, moment.command) == ("after", "block-export-add"):
            _dirty_after(chain, range(SIZE // 2 // GRANULE), 0x46)
        return True

    since = ("--since", "start", "--checkpoint", "next")
    words = diff(chain.top, chain.folder / "failed.qcow2", *since, "--scratch-size", "6M")
    with Proxy(chain.machine.qmp, overwrite) as proxy:
        assert "scratch" in chain.live.run(*words, qmp=proxy.path).refusal
    assert chain.machine.state() == before
    chain.add(*since)
    assert chain.read() == chain.machine.content["disk0"]


def test_checkpoint_is_followed_by_the_next_or_kept_as_asked(chain: Chain) -> None:
    chain.live.ok("checkpoint", "--device", "disk0", "--name", "0")
    chain.add("--since", "0", "--checkpoint", "1")
    assert set(chain.machine.bitmaps("disk0")) == {"qcowdelta-1"}
    chain.add("--since", "1", "--checkpoint", "2", "--keep-since")
    assert set(chain.machine.bitmaps("disk0")) == {"qcowdelta-1", "qcowdelta-2"}
    figures = chain.add("--since", "2")
    (made,) = set(chain.machine.bitmaps("disk0")) - {"qcowdelta-1"}
    assert figures["checkpoint"] == made
    chain.live.ok("cleanup", "--checkpoint", "1")
    assert set(chain.machine.bitmaps("disk0")) == {made}
    chain.live.ok("cleanup", "--checkpoints")
    assert chain.machine.bitmaps("disk0") == {}


def test_incremental_deltas_within_a_second_need_no_names(chain: Chain) -> None:
    chain.live.ok("checkpoint", "--device", "disk0", "--name", "start")
    last = "start"
    for number in range(4):
        _dirty_after(chain, range(number, number + 2), 0x50 + number)
        last = str(chain.add("--since", last)["checkpoint"])
        assert chain.read() == chain.machine.content["disk0"]


@pytest.mark.parametrize("chain", ["qcow2"], indirect=True)
def test_killed_incremental_delta_leaves_the_checkpoint_that_its_output_needs(
    chain: Chain,
) -> None:
    """The old one until the output is whole, then the new one: nothing is missed."""
    chain.add("--checkpoint", "0")
    killed = 0
    for number in range(2, 200, 4):
        chain.machine.write("disk0", number * GRANULE, GRANULE, 0x11 + number)
        if not _kill_one(chain, number):
            break
        killed += 1
    chain.add("--since", _only_checkpoint(chain))
    assert chain.read() == chain.machine.content["disk0"]
    assert killed > 6


def _only_checkpoint(chain: Chain) -> str:
    (name,) = chain.machine.bitmaps("disk0")
    return name


def _kill_one(chain: Chain, number: int) -> bool:
    """Kill an incremental diff after its command of this number, and clean up; False: it ended."""

    def kill(moment: Moment) -> bool:
        if (moment.stage, moment.number) == ("after", number):
            moment.kill_client()
        return True

    output = chain.folder / f"killed-{number}.qcow2"
    since = ("--since", _only_checkpoint(chain), "--checkpoint", f"next-{number}")
    with Proxy(chain.machine.qmp, kill) as proxy:
        outcome = chain.live.run(*diff(chain.top, output, *since), qmp=proxy.path)
    chain.machine.write("disk0", (number + 1) * GRANULE, GRANULE, 0x11 + number)
    chain.live.ok("cleanup")
    if _only_checkpoint(chain).endswith(f"next-{number}"):
        assert output.exists()
        chain.made.append(output)
    return outcome.status != 0


def test_base_that_is_another_disk_is_refused(chain: Chain) -> None:
    chain.live.ok("checkpoint", "--device", "disk0", "--name", "start")
    chain.machine.write("disk0", 0, MIB, 0x61)
    before = chain.machine.state()
    other, output = chain.folder / "other.qcow2", chain.folder / "out.qcow2"
    qemu.create(other, SIZE)
    qemu.write(other, 0, SIZE // 2, 0x0D)
    said = chain.live.run(*diff(other, output, "--since", "start")).refusal
    assert str(other) in said
    assert not output.exists()
    assert chain.machine.state() == before


def test_unknown_checkpoint_is_named_with_those_that_are_there(chain: Chain) -> None:
    chain.live.ok("checkpoint", "--device", "disk0", "--name", "start")
    output = chain.folder / "out.qcow2"
    said = chain.live.run(*diff(chain.top, output, "--since", "begin")).refusal
    assert "begin" in said
    assert "start" in said
    assert not output.exists()


def test_checkpoint_of_a_name_that_is_taken_is_refused(chain: Chain) -> None:
    words = ["checkpoint", "--device", "disk0", "--name", "start"]
    chain.live.ok(*words)
    before = chain.machine.state()
    assert "start" in chain.live.run(*words).refusal
    assert chain.machine.state() == before


def test_checkpoint_is_lost_in_a_crash_and_the_message_says_so(tmp_path: Path) -> None:
    """A killed VM leaves bitmaps that say in use: everything has to be compared again."""
    qemu.require("qemu-img", "qemu-io", "qemu-system")
    base, disk, output = (tmp_path / f"{name}.qcow2" for name in ("base", "disk", "out"))
    qemu.create(base, SIZE)
    shutil.copyfile(base, disk)
    with Machine(tmp_path, Disk("disk0", disk)) as machine:
        Live(machine.qmp, tmp_path).ok("checkpoint", "--device", "disk0", "--name", "start")
        machine.write("disk0", 0, MIB, 0x11)
        machine.flush()
        machine.kill()
    with Machine(tmp_path, Disk("disk0", disk)) as machine:
        live = Live(machine.qmp, tmp_path)
        words = diff(base, output)
        assert "start" in live.run(*words, "--since", "start").refusal
        live.ok(*words)
        assert content(output, base=base) == machine.content["disk0"]


# What others do to the bitmap, or to the disk


def _bitmap(chain: Chain, action: str) -> None:
    place = {"node": "disk0-format", "name": "qcowdelta-start"}
    chain.machine.monitor.execute(f"block-dirty-bitmap-{action}", place)


def _resize(chain: Chain, size: int) -> None:
    chain.machine.monitor.execute("block_resize", {"node-name": "disk0-format", "size": size})


def _refused_since_start(chain: Chain, qmp: Path | None = None) -> str:
    before, output = chain.machine.state(), chain.folder / "refused.qcow2"
    said = chain.live.run(*diff(chain.top, output, "--since", "start"), qmp=qmp).refusal
    assert not output.exists()
    assert chain.machine.state() == before
    return said


def test_checkpoint_that_another_client_disabled_is_refused(chain: Chain) -> None:
    chain.live.ok("checkpoint", "--device", "disk0", "--name", "start")
    _bitmap(chain, "disable")
    said = _refused_since_start(chain)
    assert "qcowdelta-start" in said
    assert "disabled by another client" in said


@pytest.mark.parametrize("method", METHODS)
def test_checkpoint_that_is_disabled_before_the_moment_is_refused(
    method: str, chain: Chain
) -> None:
    chain.live.ok("checkpoint", "--device", "disk0", "--name", "start")

    def disable(moment: Moment) -> bool:
        recording = chain.machine.bitmaps("disk0")["qcowdelta-start"]["recording"]
        if recording and (moment.stage, moment.command) == ("after", "object-add"):
            _bitmap(chain, "disable")
            chain.machine.write("disk0", MIB, GRANULE, 0x71)
        return True

    output = chain.folder / "refused.qcow2"
    words = diff(chain.top, output, "--since", "start", "--method", method)
    with Proxy(chain.machine.qmp, disable) as proxy:
        assert "disabled by another client" in chain.live.run(*words, qmp=proxy.path).refusal
    assert not output.exists()


def test_much_that_a_checkpoint_missed_while_it_was_disabled_is_noticed(chain: Chain) -> None:
    chain.live.ok("checkpoint", "--device", "disk0", "--name", "start")
    _bitmap(chain, "disable")
    chain.machine.write("disk0", 3 * MIB, MIB, 0x72)
    _bitmap(chain, "enable")
    assert "did not record all" in _refused_since_start(chain)


def test_disk_that_grew_since_the_checkpoint(chain: Chain) -> None:
    chain.live.ok("checkpoint", "--device", "disk0", "--name", "start")
    chain.machine.write("disk0", MIB, GRANULE, 0x73)
    _resize(chain, SIZE + 8 * MIB)
    chain.machine.content["disk0"].extend(bytes(8 * MIB))
    chain.machine.write("disk0", SIZE + 3 * MIB, GRANULE, 0x74)
    chain.add("--since", "start")
    assert qemu.info(chain.top)["virtual-size"] == SIZE + 8 * MIB
    assert chain.read() == chain.machine.content["disk0"]


def test_disk_that_shrank_since_the_checkpoint(chain: Chain) -> None:
    chain.live.ok("checkpoint", "--device", "disk0", "--name", "start")
    chain.machine.write("disk0", MIB, GRANULE, 0x75)
    _resize(chain, SIZE - 20 * MIB)
    del chain.machine.content["disk0"][SIZE - 20 * MIB :]
    chain.add("--since", "start")
    assert qemu.info(chain.top)["virtual-size"] == SIZE - 20 * MIB
    assert chain.read() == chain.machine.content["disk0"]


def test_disk_that_shrank_and_grew_again_since_the_checkpoint_is_noticed(chain: Chain) -> None:
    """What was lost is marked nowhere, and may be but a little."""
    chain.machine.write("disk0", SIZE - MIB, MIB, 0x76)
    chain.add()
    chain.live.ok("checkpoint", "--device", "disk0", "--name", "start")
    _resize(chain, SIZE - GRANULE)
    _resize(chain, SIZE)
    assert "shrunk" in _refused_since_start(chain)
