"""A real Debian that writes and syncs all the time, while deltas are made of its disk."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import debian, qemu
from tests.support.debian import Debian
from tests.support.live import Live, content, diff
from tests.support.machine import Disk, Guest, Machine
from tests.support.qmp_proxy import Moment, Proxy

MIB = 1 << 20
BOOT_LIMIT = 150.0
ROUND_LIMIT = 60.0
EXPORT = "qcowdelta-export"

# Runs as process 1. A number that was announced is on the disk.
INIT = """#!/bin/sh
mount -t proc proc /proc
mkdir -p /srv/live
number=0
while :; do
    number=$((number + 1))
    dd if=/dev/urandom of=/srv/live/$((number % 8)) bs=64k count=16 conv=notrunc 2>/dev/null
    rm -rf /srv/live/etc.$((number % 3))
    cp -r /etc/apt /srv/live/etc.$((number % 3))
    echo $number >/srv/live/number.new
    sync
    mv /srv/live/number.new /srv/live/number
    sync
    echo "round $number done" >/dev/ttyS0
done
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
# What waits for the guest keeps the command waiting for the monitor.
PATIENT = ("--timeout", "120")


@dataclass
class Busy:
    """The guest, and what it was made from."""

    folder: Path
    base: Path
    machine: Machine
    live: Live

    def rounds(self) -> int:
        """The last round that the guest says is done."""
        said = self.machine.serial.read_text(errors="replace")
        return max((int(n) for n in re.findall(r"^round (\d+) done\r?$", said, re.M)), default=0)

    def wait_for_rounds(self, count: int, limit: float = ROUND_LIMIT) -> None:
        """Wait until the guest has done so many more."""
        wanted, deadline = self.rounds() + count, time.monotonic() + limit
        while self.rounds() < wanted:
            assert self.machine.alive
            assert time.monotonic() < deadline, self.machine.serial.read_text()[-2000:]
            time.sleep(0.05)

    def unhurt(self) -> None:
        """The guest goes on, and has had no error of its disk's."""
        self.wait_for_rounds(2)
        said = self.machine.serial.read_text(errors="replace")
        assert not re.search(r"I/O error|EXT4-fs (error|warning)|Remounting", said), said[-2000:]
        assert self.machine.ours() == []
        assert self.live.left() == []


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Busy]:
    system = Debian.get(tmp_path_factory)
    folder = tmp_path_factory.mktemp("busy")
    raw, base, disk = folder / "disk.raw", folder / "base.qcow2", folder / "disk.qcow2"
    system.copy(raw)
    init = folder / "init"
    init.write_text(INIT)
    debian.debugfs(raw, f"write {init} live-init", "sif /live-init mode 0100755")
    qemu.convert(raw, base, source_fmt="raw", target_fmt="qcow2")
    raw.unlink()
    shutil.copyfile(base, disk)
    append = "root=/dev/vda rw console=ttyS0 init=/live-init panic=-1 quiet"
    guest = Guest(system.kernel, system.initrd, append)
    try:
        with (
            Machine(folder, Disk("disk0", disk), guest=guest) as machine,
            Live(machine.qmp, folder) as live,
        ):
            found = Busy(folder, base, machine, live)
            found.wait_for_rounds(9, BOOT_LIMIT)  # all its files are there
            yield found
    finally:
        shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def no_checkpoint(busy: Busy) -> Iterator[None]:
    """The guest is shared: what one test left may not fail the next."""
    yield
    busy.live.run("cleanup", "--checkpoints")


def _hooked(act: Callable[[Moment], None]) -> Callable[[Moment], bool]:
    """Something done once while the disk is shown as of one moment, before any of it is read."""
    done = False

    def hook(moment: Moment) -> bool:
        nonlocal done
        if not done and (moment.stage, moment.command) == ("after", "block-export-add"):
            done = True
            act(moment)
        return True

    return hook


@dataclass
class Made:
    """A delta, and QEMU's own full read, over NBD, of the very moment that it is of."""

    output: Path
    reference: Path
    figures: dict[str, Any]
    rounds: int
    """How many rounds were done before the command began."""
    dirty: int
    """How many bytes QEMU says are dirty since the checkpoint, as of the moment."""

    def is_right(self) -> bool:
        """Whether the overlay reads as the reference, to its very length."""
        size = qemu.info(self.output, fmt="qcow2")["virtual-size"]
        same = qemu.compare(self.output, self.reference, "qcow2", "raw")
        return same and size == self.reference.stat().st_size

    def forget(self) -> None:
        self.reference.unlink()


def _delta_and_reference(busy: Busy, name: str, base: Path, *more: str) -> Made:
    """Have the export on a server whose socket has a name, and read all of it by qemu-img."""
    output, reference = busy.folder / name, busy.folder / f"{name}.reference"
    socket = busy.folder / "nbd"
    before, dirty = busy.rounds(), [0]

    def read(_moment: Moment) -> None:
        uri = f"nbd+unix:///{EXPORT}?socket={socket}"
        argv = [qemu.program("qemu-img"), "convert", "-f", "raw", "-O", "raw", uri]
        qemu.run([*argv, str(reference)])
        frozen = busy.machine.bitmaps("disk0").get("qcowdelta-run:dirty", {"count": 0})
        dirty[0] = frozen["count"]
        busy.wait_for_rounds(1)

    execute = busy.machine.monitor.execute
    execute("nbd-server-start", {"addr": {"type": "unix", "data": {"path": str(socket)}}})
    try:
        with Proxy(busy.machine.qmp, _hooked(read)) as proxy:
            words = diff(base, output, "--force", "--nbd-socket", socket, *more)
            figures = busy.live.figures(*PATIENT, *words, qmp=proxy.path)
    finally:
        execute("nbd-server-stop")
    return Made(output, reference, figures, before, dirty[0])


def _no_worse_than_a_power_cut(disk: Path, rounds: int) -> None:
    """Its journal replayed, the file system is sound, and has all that was synced before."""
    e2fsck = debian.tool("e2fsck")
    debian.run(e2fsck, "-y", "-E", "journal_only", disk, accept=(0, 1))
    debian.run(e2fsck, "-f", "-p", disk, accept=(0, 1))
    debian.run(e2fsck, "-f", "-n", disk)
    assert int(debian.read_file(disk, "/srv/live/number")) >= rounds


def test_deltas_of_a_busy_guest_are_of_one_moment(busy: Busy) -> None:
    first = _delta_and_reference(busy, "0.qcow2", busy.base, "--checkpoint", "first")
    assert first.is_right()
    assert qemu.check(first.output)["corruptions"] == 0
    _no_worse_than_a_power_cut(first.reference, first.rounds)
    assert first.output.stat().st_size < 200 * MIB
    first.forget()
    busy.wait_for_rounds(3)

    second = _delta_and_reference(busy, "1.qcow2", first.output, "--since", "first")
    assert second.is_right()
    assert 0 < second.figures["bytes_read_new"] <= 1.2 * second.dirty
    assert second.figures["bytes_read_new"] < first.figures["bytes_read_new"] / 4
    _no_worse_than_a_power_cut(second.reference, second.rounds)
    second.forget()
    busy.live.ok("cleanup", "--checkpoints")
    busy.unhurt()


@pytest.mark.parametrize("method", ["copy-before-write", "backup"])
def test_patch_of_a_busy_guest_is_of_one_moment(method: str, busy: Busy) -> None:
    made = _delta_and_reference(busy, "out.qcpatch", busy.base, "--method", method)
    assert content(made.output, base=busy.base) == made.reference.read_bytes()
    _no_worse_than_a_power_cut(made.reference, made.rounds)
    made.forget()
    busy.unhurt()


def test_guest_goes_on_when_the_scratch_is_full(busy: Busy) -> None:
    output = busy.folder / "full.qcow2"
    words = diff(busy.base, output, "--scratch-size", "6M")
    with Proxy(busy.machine.qmp, _hooked(lambda _: busy.wait_for_rounds(12))) as proxy:
        outcome = busy.live.run(*PATIENT, *words, qmp=proxy.path)
    assert "scratch" in outcome.refusal
    assert not output.exists()
    busy.unhurt()


def test_guest_goes_on_when_the_diff_is_killed(busy: Busy) -> None:
    before = busy.machine.state()
    words = diff(busy.base, busy.folder / "killed.qcow2")
    with Proxy(busy.machine.qmp, _hooked(Moment.kill_client)) as proxy:
        busy.live.run(*words, qmp=proxy.path)
    busy.wait_for_rounds(3)
    assert busy.machine.ours() != []
    busy.live.ok("cleanup")
    assert busy.machine.state() == before
    busy.unhurt()
