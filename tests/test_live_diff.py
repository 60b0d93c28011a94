"""A delta of a running VM's disk: of one moment, while the guest goes on writing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import qemu
from tests.support.live import Live, Words, content, diff
from tests.support.machine import GRANULE, Disk, Machine, Writer

pytestmark = pytest.mark.slow

MIB = 1 << 20
SIZE = 32 * MIB
DEVICES = ("disk0", "disk1")


@dataclass
class Setup:
    """A machine with a qcow2 disk and a raw one, both made from bases of their own."""

    folder: Path
    machine: Machine
    live: Live

    def base(self, device: str) -> Path:
        return self.folder / f"{device}.base.{self.fmt(device)}"

    def fmt(self, device: str) -> str:
        return self.machine.disks[device].fmt

    def diff(self, device: str, output: Path, *more: str | Path) -> Words:
        more = ("--base-format", self.fmt(device), *more)
        return diff(self.base(device), output, *more, device=device)

    def content(self, device: str, output: Path) -> bytes:
        return content(output, base=self.base(device), base_format=self.fmt(device))


def fill(path: Path, fmt: str, size: int = SIZE) -> None:
    """Make an image with data, zeros that are stored, and holes."""
    qemu.create(path, size, fmt=fmt)
    qemu.io(
        path,
        [
            qemu.write_command(0, size // 2, 0x0B),
            qemu.zero_command(size // 4, MIB),
            qemu.write_command(size - 3 * GRANULE, GRANULE + 512, 0x0C),
        ],
        fmt=fmt,
    )


def change(machine: Machine, name: str) -> None:
    """Change every kind of range there is: data, zeros, holes, parts of a cluster, the end."""
    machine.write(name, 3 * GRANULE + 512, 1024, 0x21)
    machine.write(name, SIZE // 4, GRANULE, 0x22)
    machine.zero(name, MIB, 4 * GRANULE)
    machine.write(name, SIZE // 2 + MIB, 2 * MIB, 0x23)
    machine.write(name, SIZE - GRANULE, GRANULE, 0x24)
    machine.write(name, 8 * GRANULE, GRANULE, 0x0B)  # the same again


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    qemu.require("qemu-img", "qemu-io", "qemu-system")
    folder = tmp_path_factory.mktemp("live")
    disks = []
    for name, fmt in zip(DEVICES, ("qcow2", "raw"), strict=True):
        fill(folder / f"{name}.base.{fmt}", fmt)
        shutil.copyfile(folder / f"{name}.base.{fmt}", folder / f"{name}.{fmt}")
        disks.append(Disk(name, folder / f"{name}.{fmt}", fmt))
    with Machine(folder, *disks) as machine, Live(machine.qmp, folder) as live:
        for name in DEVICES:
            change(machine, name)
        yield Setup(folder, machine, live)


@pytest.fixture(autouse=True)
def nothing_stays(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test leaves the machine and the host as they were."""
    if "setup" not in request.fixturenames:
        yield
        return
    setup: Setup = request.getfixturevalue("setup")
    before = setup.machine.state()
    yield
    assert setup.machine.state() == before
    assert setup.live.left() == []


@pytest.mark.parametrize("suffix", [".qcow2", ".qcpatch"])
@pytest.mark.parametrize("device", DEVICES)
def test_base_and_delta_are_the_disk(
    device: str, suffix: str, setup: Setup, tmp_path: Path
) -> None:
    output = tmp_path / f"out{suffix}"
    setup.live.ok(*setup.diff(device, output))
    assert setup.content(device, output) == setup.machine.content[device]
    assert not setup.machine.serves_nbd()


@pytest.mark.parametrize("suffix", [".qcow2", ".qcpatch"])
@pytest.mark.parametrize("device", DEVICES)
def test_delta_is_of_one_moment_while_the_guest_writes(
    device: str, suffix: str, setup: Setup, tmp_path: Path
) -> None:
    output = tmp_path / f"out{suffix}"
    with Writer(setup.machine, device) as writer:
        begun = len(writer.log)
        setup.live.ok(*setup.diff(device, output))
        ended = len(writer.log)
    moments = writer.moments(setup.content(device, output))
    assert moments, "the disk was never like this"
    assert begun <= moments[-1], "the moment was before the command began"
    assert moments[0] < ended, "the guest's writes waited for the command"
    assert setup.machine.reads_as(
        device, writer.log[-1].offset, writer.log[-1].length, writer.log[-1].pattern
    )


def test_overlay_has_the_base_as_its_backing_file(setup: Setup, tmp_path: Path) -> None:
    output = tmp_path / "out.qcow2"
    setup.live.ok(*setup.diff("disk0", output))
    assert qemu.info(output)["backing-filename"] == str(setup.base("disk0"))


def test_figures_are_printed_as_json(setup: Setup, tmp_path: Path) -> None:
    output = tmp_path / "out.qcow2"
    figures = setup.live.figures(*setup.diff("disk0", output))
    assert figures["output"] == str(output)
    assert figures["bytes_read_new"] > 0
    assert figures["file_size"] == output.stat().st_size


def test_other_disk_is_left_alone(setup: Setup, tmp_path: Path) -> None:
    before = bytes(setup.machine.content["disk1"])
    with Writer(setup.machine, "disk0"):
        setup.live.ok(*setup.diff("disk1", tmp_path / "out.qcow2"))
    assert setup.content("disk1", tmp_path / "out.qcow2") == before


def test_existing_output_is_refused_before_the_machine_is_touched(
    setup: Setup, tmp_path: Path
) -> None:
    output = tmp_path / "out.qcow2"
    output.write_bytes(b"precious")
    assert str(output) in setup.live.run(*setup.diff("disk0", output)).refusal
    assert output.read_bytes() == b"precious"
    setup.live.ok(*setup.diff("disk0", output, "--force"))
    assert setup.content("disk0", output) == setup.machine.content["disk0"]


def test_device_that_is_not_there_is_named_with_those_that_are(
    setup: Setup, tmp_path: Path
) -> None:
    words: Words = [
        "diff",
        "--device",
        "disk7",
        "--base",
        setup.base("disk0"),
        "-o",
        tmp_path / "o.qcow2",
    ]
    said = setup.live.run(*words).refusal
    assert "disk7" in said
    assert "disk0" in said


def test_base_that_is_the_disk_itself_is_refused(setup: Setup, tmp_path: Path) -> None:
    path = setup.machine.disks["disk0"].path
    assert str(path) in setup.live.run(*diff(path, tmp_path / "out.qcow2")).refusal


def test_output_over_the_disk_itself_is_refused(setup: Setup) -> None:
    path = setup.machine.disks["disk0"].path
    setup.machine.write("disk0", SIZE - GRANULE, GRANULE, 0x24)
    said = setup.live.run(*setup.diff("disk0", path, "--force")).refusal
    assert str(path) in said
    assert setup.machine.reads_as("disk0", SIZE - GRANULE, GRANULE, 0x24)


@pytest.mark.parametrize("kind", ["export", "server"])
def test_nbd_server_of_another_goes_on(kind: str, setup: Setup, tmp_path: Path) -> None:
    """There is one NBD server in a QEMU: it is used or it is not, but it is never stopped."""
    machine, output = setup.machine, tmp_path / "out.qcow2"
    socket = tmp_path / "nbd"
    address = {"type": "unix", "data": {"path": str(socket)}}
    machine.monitor.execute("nbd-server-start", {"addr": address})
    try:
        if kind == "export":
            export = {"type": "nbd", "id": "theirs", "node-name": "disk1-format", "name": "theirs"}
            machine.monitor.execute("block-export-add", export)
        before = machine.state()
        outcome = setup.live.run(*setup.diff("disk0", output))
        assert machine.state() == before
        assert machine.serves_nbd()
        if outcome.status == 0:
            assert setup.content("disk0", output) == machine.content["disk0"]
        else:
            assert "NBD server" in outcome.refusal
            assert not output.exists()
        if kind == "export":
            uri = f"nbd+unix:///theirs?socket={socket}"
            info = qemu.run([qemu.program("qemu-img"), "info", uri])
            assert "32 MiB" in info
    finally:
        machine.monitor.execute("nbd-server-stop")
        while machine.monitor.execute("query-block-exports"):
            pass


def test_disk_over_the_base_itself_is_read_without_reading_the_base(tmp_path: Path) -> None:
    """The usual case: the VM's disk is an overlay, and the delta is over what it is over."""
    qemu.require("qemu-img", "qemu-io", "qemu-system")
    base, disk, output = (tmp_path / f"{name}.qcow2" for name in ("base", "disk", "out"))
    fill(base, "qcow2")
    qemu.create(disk, None, backing=base, backing_fmt="qcow2")
    with Machine(tmp_path, Disk("disk0", disk)) as machine:
        live = Live(machine.qmp, tmp_path)
        change(machine, "disk0")
        before = machine.state()
        live.ok(*diff(base, output))
        assert content(output, base=base) == machine.content["disk0"]
        assert machine.state() == before
        assert live.left() == []


def test_disk_longer_than_its_base(tmp_path: Path) -> None:
    qemu.require("qemu-img", "qemu-io", "qemu-system")
    base, disk, output = (tmp_path / f"{name}.qcow2" for name in ("base", "disk", "out"))
    fill(base, "qcow2")
    shutil.copyfile(base, disk)
    qemu.resize(disk, SIZE + MIB)
    with Machine(tmp_path, Disk("disk0", disk)) as machine:
        live = Live(machine.qmp, tmp_path)
        machine.write("disk0", SIZE, GRANULE, 0x31)
        live.ok(*diff(base, output))
        assert content(output, base=base) == machine.content["disk0"]
