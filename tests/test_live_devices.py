"""Live deltas of disks that are attached in other ways, and of a machine that stands still."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support import qemu
from tests.support.live import Live, content, diff
from tests.support.machine import GRANULE, Disk, Machine, Writer
from tests.support.qmp_proxy import Moment, Proxy

MIB = 1 << 20
SIZE = 16 * MIB

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("qemu_tools")]


@pytest.fixture
def qemu_tools() -> None:
    qemu.require("qemu-img", "qemu-io", "qemu-system")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The base; a disk of the same content lies beside it."""
    path = tmp_path / "base.qcow2"
    qemu.create(path, SIZE)
    qemu.write(path, 0, SIZE // 2, 0x0B)
    shutil.copyfile(path, tmp_path / "disk.qcow2")
    return path


def _kill(moment: Moment) -> bool:
    if (moment.stage, moment.command) == ("after", "block-export-add"):
        moment.kill_client()
    return True


@pytest.mark.parametrize("method", ["copy-before-write", "backup"])
@pytest.mark.parametrize("attached", ["scsi", "drive"])
def test_disk_attached_in_another_way(attached: str, method: str, base: Path) -> None:
    """A SCSI disk, and one whose nodes QEMU has given names of its own."""
    folder = base.parent
    disk = Disk("disk0", folder / "disk.qcow2", attached=attached)  # type: ignore[arg-type]
    by = ("--method", method)
    with Machine(folder, disk) as machine:
        live = Live(machine.qmp, folder)
        before = machine.state()
        machine.write("disk0", 0, MIB, 0x11)
        with Writer(machine, "disk0") as writer:
            full = folder / "full.qcow2"
            live.ok(*diff(base, full, "--checkpoint", "first", *by))
        assert writer.moments(content(full, base=base))
        live.ok(*diff(full, folder / "more.qcow2", "--since", "first", *by))
        assert content(folder / "more.qcow2", base=base) == machine.content["disk0"]
        with Proxy(machine.qmp, _kill) as proxy:
            live.run(*diff(base, folder / "killed.qcow2", *by), qmp=proxy.path)
        live.ok("cleanup", "--checkpoints")
        assert machine.state() == before
        machine.write("disk0", 0, GRANULE, 0x12)
        assert live.left() == []


@pytest.mark.parametrize("method", ["copy-before-write", "backup"])
def test_machine_that_stands_still(method: str, base: Path) -> None:
    """Its disk can be written all the same, by whoever has stopped it."""
    folder = base.parent
    by = ("--method", method)
    with Machine(folder, Disk("disk0", folder / "disk.qcow2")) as machine:
        live = Live(machine.qmp, folder)
        before = machine.state()
        machine.monitor.execute("stop")
        machine.write("disk0", 0, MIB, 0x11)
        output = folder / "out.qcow2"
        live.ok(*diff(base, output, *by))
        assert content(output, base=base) == machine.content["disk0"]
        with Proxy(machine.qmp, _kill) as proxy:
            live.run(*diff(base, folder / "killed.qcow2", *by), qmp=proxy.path)
        live.ok("cleanup")
        assert machine.monitor.execute("query-status")["running"] is False
        machine.monitor.execute("cont")
        assert machine.state() == before
        assert live.left() == []
