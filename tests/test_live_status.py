"""``live status``: what is in a VM, and what is ours in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import qemu
from tests.support.live import Live, diff
from tests.support.machine import Disk, Machine
from tests.support.qmp_proxy import Moment, Proxy

pytestmark = pytest.mark.slow

MIB = 1 << 20


@dataclass
class Setup:
    folder: Path
    machine: Machine
    live: Live


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    qemu.require("qemu-img", "qemu-system")
    folder = tmp_path_factory.mktemp("status")
    qemu.create(folder / "base.qcow2", 8 * MIB)
    qemu.create(folder / "one.qcow2", 8 * MIB)
    qemu.create(folder / "two.raw", 4 * MIB, fmt="raw")
    disks = Disk("disk0", folder / "one.qcow2"), Disk("disk1", folder / "two.raw", "raw")
    with Machine(folder, *disks) as machine, Live(machine.qmp, folder) as live:
        execute = machine.monitor.execute
        execute("block-dirty-bitmap-add", {"node": "disk0-format", "name": "monday"})
        machine.write("disk0", MIB, 2 * MIB, 1)
        yield Setup(folder, machine, live)


def test_disks_nodes_and_bitmaps_are_shown(setup: Setup) -> None:
    said = setup.live.ok("status").out
    for word in ("disk0", "disk1", "disk0-format", "disk1-format", "qcow2", "raw", "monday"):
        assert word in said, said
    assert "one.qcow2" in said
    assert "cleanup" not in said


def test_disks_nodes_and_bitmaps_are_in_the_json(setup: Setup) -> None:
    found = setup.live.figures("status")
    disks = {disk["id"]: disk for disk in found["disks"]}
    assert set(disks) == {"disk0", "disk1"}
    assert disks["disk0"]["node"] == "disk0-format"
    assert disks["disk0"]["format"] == "qcow2"
    assert disks["disk0"]["file"] == str(setup.folder / "one.qcow2")
    assert disks["disk0"]["size"] == 8 * MIB
    assert disks["disk1"]["size"] == 4 * MIB
    (bitmap,) = found["bitmaps"]
    assert bitmap["node"] == "disk0-format"
    assert bitmap["name"] == "monday"
    assert bitmap["count"] == 2 * MIB
    assert bitmap["recording"] is True
    assert bitmap["checkpoint"] is False
    assert {"disk0-format", "disk0-file"} <= {node["name"] for node in found["nodes"]}
    assert found["left_behind"] == []


def test_status_changes_nothing(setup: Setup) -> None:
    before = setup.machine.state()
    setup.live.ok("status")
    assert setup.machine.state() == before
    assert setup.live.left() == []


def test_what_a_killed_run_left_is_shown_with_what_to_do(setup: Setup) -> None:
    def kill(moment: Moment) -> bool:
        if (moment.stage, moment.command) == ("after", "block-export-add"):
            moment.kill_client()
        return True

    with Proxy(setup.machine.qmp, kill) as proxy:
        base, output = setup.folder / "base.qcow2", setup.folder / "out.qcow2"
        setup.live.run(*diff(base, output), qmp=proxy.path)
    ours = setup.machine.ours()
    assert ours
    text = setup.live.ok("status").out
    assert "live cleanup" in text
    left = setup.live.figures("status")["left_behind"]
    kinds = {leftover["kind"] for leftover in left}
    assert {"export", "node", "drive"} <= kinds
    setup.live.ok("cleanup")
    assert setup.live.figures("status")["left_behind"] == []
    assert "live cleanup" not in setup.live.ok("status").out
    assert setup.machine.ours() == []


def test_checkpoint_is_shown_as_such(setup: Setup) -> None:
    setup.live.ok("checkpoint", "--device", "disk1", "--name", "start")
    found = setup.live.figures("status")
    bitmaps = {bitmap["name"]: bitmap["checkpoint"] for bitmap in found["bitmaps"]}
    assert bitmaps == {"monday": False, "qcowdelta-start": True}
    assert "start" in setup.live.ok("status").out
    setup.live.ok("cleanup", "--checkpoints")


def test_long_names_are_not_broken_over_lines(setup: Setup) -> None:
    """Whoever wants to name a checkpoint copies it from there."""
    name = "before-the-upgrade-of-monday-" * 6
    setup.live.ok("checkpoint", "--device", "disk1", "--name", name)
    assert f"qcowdelta-{name}\n" in setup.live.ok("status").out
    setup.live.ok("cleanup", "--checkpoints")
    assert setup.live.figures("status")["left_behind"] == []
