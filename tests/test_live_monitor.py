"""The monitor of a running VM: held by another, silent, gone, or no monitor at all."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import qemu
from tests.support.live import Live, Words, diff
from tests.support.machine import Disk, Machine
from tests.support.qmp_proxy import Moment, Proxy

pytestmark = pytest.mark.slow

MIB = 1 << 20
QUICK = 8.0  # s; what a person waits for an answer that could be had at once
COMMANDS = ("status", "diff", "checkpoint", "cleanup")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    qemu.require("qemu-img", "qemu-system")
    folder = tmp_path_factory.mktemp("monitor")
    for name in ("base", "disk"):
        qemu.create(folder / f"{name}.qcow2", 8 * MIB)
    with Machine(folder, Disk("disk0", folder / "disk.qcow2")) as running:
        yield running


@pytest.fixture
def live(machine: Machine, tmp_path: Path) -> Live:
    return Live(machine.qmp, tmp_path)


def _words(command: str, folder: Path) -> Words:
    """A command that would succeed, were there a monitor."""
    if command == "diff":
        base = folder / "base.qcow2"
        qemu.create(base, 8 * MIB)
        return diff(base, folder / "out.qcow2")
    return ["checkpoint", "--device", "disk0"] if command == "checkpoint" else [command]


def _nothing_left(live: Live, machine: Machine) -> None:
    assert live.left() == []
    assert machine.ours() == []
    assert not (live.folder / "out.qcow2").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_monitor_that_another_client_holds_is_named(
    command: str, machine: Machine, live: Live
) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(str(machine.qmp))
        assert b"QMP" in other.recv(4096)
        outcome = live.run("--timeout", "2", *_words(command, live.folder))
    assert str(machine.qmp) in outcome.refusal
    assert "another client" in outcome.refusal
    assert outcome.seconds < QUICK
    _nothing_left(live, machine)


def test_monitor_is_free_again_after_each_command(machine: Machine, live: Live) -> None:
    for _ in range(3):
        live.ok("status")


@pytest.mark.parametrize("command", COMMANDS)
def test_monitor_may_be_named_after_the_command_too(
    command: str, machine: Machine, live: Live, tmp_path: Path
) -> None:
    outcome = live.run(*_words(command, tmp_path), "--qmp", tmp_path / "other")
    assert f"{tmp_path}/other" in outcome.refusal
    more: Words = ["--qmp", machine.qmp, "--timeout", "5"]
    live.ok(*_words(command, tmp_path), *more, qmp=tmp_path / "none")
    live.ok("cleanup", "--checkpoints")


def test_socket_that_is_not_there_is_named(live: Live, tmp_path: Path) -> None:
    outcome = live.run("status", qmp=tmp_path / "none")
    assert f"{tmp_path}/none" in outcome.refusal
    assert outcome.seconds < QUICK


def test_file_that_is_no_socket_is_named(live: Live, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    outcome = live.run("status", qmp=tmp_path / "file")
    assert f"{tmp_path}/file" in outcome.refusal
    assert outcome.seconds < QUICK


def test_socket_of_a_dead_machine_is_named(live: Live, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "dead"))
    outcome = live.run("status", qmp=tmp_path / "dead")
    assert f"{tmp_path}/dead" in outcome.refusal
    assert outcome.seconds < QUICK


@pytest.mark.parametrize(
    "said", [b"SSH-2.0-OpenSSH_9.2\r\n", b'{"hello": 1}\n', b"\xff\xfe\n", b""]
)
def test_server_that_speaks_no_qmp_is_named(said: bytes, live: Live, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "server"))
        server.listen()

        def answer() -> None:
            client, _ = server.accept()
            with client:
                client.sendall(said)
                time.sleep(0.2)

        thread = threading.Thread(target=answer)
        thread.start()
        outcome = live.run("status", qmp=tmp_path / "server")
        thread.join()
    assert f"{tmp_path}/server" in outcome.refusal
    assert outcome.seconds < QUICK


@pytest.mark.parametrize("command", COMMANDS)
def test_machine_that_stops_answering_is_given_up(
    command: str, machine: Machine, live: Live
) -> None:
    """The greeting and the first answers come, then none, as of a QEMU that hangs."""
    with Proxy(machine.qmp, lambda moment: moment.number < 2) as proxy:
        outcome = live.run("--timeout", "2", *_words(command, live.folder), qmp=proxy.path)
    assert "2 s" in outcome.refusal
    assert outcome.seconds < QUICK
    _nothing_left(live, machine)


def test_machine_that_dies_is_reported_at_each_step(tmp_path: Path) -> None:
    """Clearly, and without a file of ours or a part of the output left on the host."""
    qemu.require("qemu-img", "qemu-system")
    base = tmp_path / "base.qcow2"
    qemu.create(base, 8 * MIB)
    qemu.write(base, 0, 2 * MIB, 7)
    steps = _steps_of_a_diff(tmp_path, base)
    for number in range(1, steps, 4):
        _dies_at(number, tmp_path, base)


def _diff(folder: Path, base: Path) -> Words:
    return diff(base, folder / "out.qcow2", "--force")


def _steps_of_a_diff(folder: Path, base: Path) -> int:
    disk = folder / "disk.qcow2"
    qemu.create(disk, 8 * MIB)
    with (
        Machine(folder, Disk("disk0", disk)) as machine,
        Proxy(machine.qmp) as proxy,
        Live(proxy.path, folder) as live,
    ):
        live.ok(*_diff(folder, base))
        (folder / "out.qcow2").unlink()
        return len(proxy.commands)


def _dies_at(number: int, folder: Path, base: Path) -> None:
    with Machine(folder, Disk("disk0", folder / "disk.qcow2")) as machine:

        def end(moment: Moment) -> bool:
            if moment.number == number and moment.stage == "before":
                machine.kill()
            return True

        with Proxy(machine.qmp, end) as proxy, Live(proxy.path, folder) as live:
            outcome = live.run(*_diff(folder, base))
            said = (number, proxy.commands[-1:], outcome)
            if outcome.status:
                assert "lost" in outcome.refusal or "ended" in outcome.refusal, said
                assert not (folder / "out.qcow2").exists(), said
            assert live.left() == [], said
            (folder / "out.qcow2").unlink(missing_ok=True)
