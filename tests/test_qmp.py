"""A QMP session with a peer that is busy, silent, gone, or answers otherwise than one hopes."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from qcowdelta.errors import QmpBusyError, QmpError, QmpLostError, QmpTimeoutError
from qcowdelta.qemu.qmp import QmpSession

Message = dict[str, Any]
Answer = Callable[[Message], list[Message]]
GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}, "capabilities": []}}
SECRET = "the-one-that-nobody-may-see"
SCHEMA = [
    {"name": "getfd", "meta-type": "command", "arg-type": "1", "ret-type": "0"},
    {"name": "blockdev-add", "meta-type": "command", "arg-type": "2", "ret-type": "0"},
    {"name": "RESUME", "meta-type": "event", "arg-type": "0"},
    {"name": "0", "meta-type": "object", "members": []},
    {"name": "1", "meta-type": "object", "members": [{"name": "fdname", "type": "str"}]},
    {
        "name": "2",
        "meta-type": "object",
        "members": [{"name": "driver", "type": "3"}],
        "tag": "driver",
        "variants": [{"case": "filter", "type": "4"}, {"case": "raw", "type": "0"}],
    },
    {"name": "3", "meta-type": "enum", "members": [{"name": "filter"}, {"name": "raw"}]},
    {
        "name": "4",
        "meta-type": "object",
        "members": [{"name": "on-error", "type": "5"}, {"name": "bitmaps", "type": "6"}],
    },
    {"name": "5", "meta-type": "enum", "members": [{"name": "break"}, {"name": "fail"}]},
    {"name": "6", "meta-type": "array", "element-type": "7"},
    {"name": "7", "meta-type": "alternate", "members": [{"type": "str"}, {"type": "1"}]},
    {"name": "str", "meta-type": "builtin", "json-type": "string"},
]


def done(_message: Message) -> list[Message]:
    return [{"return": {}}]


@dataclass
class Peer:
    """What answers on the other end of a socket.

    Attributes:
        answers: what it says to a command, by the command's name; None: nothing, and an
            OSError ends it. A command that is not there is answered by an empty return.
        asked: the commands that came, with their arguments.
        fds: the descriptors that came.
    """

    answers: dict[str, Answer | None] = field(default_factory=dict)
    asked: list[Message] = field(default_factory=list)
    fds: list[int] = field(default_factory=list)

    def serve(self, sock: socket.socket) -> None:
        """Greet, and answer until the other end is closed."""
        rest = ""
        with sock, contextlib.suppress(OSError):
            self._say(sock, GREETING)
            while True:
                data, fds, _, _ = socket.recv_fds(sock, 1 << 16, 4)
                self.fds += fds
                if not data:
                    return
                rest = (rest + data.decode()).lstrip()
                while rest:  # messages come whole, one after the other
                    message, end = json.JSONDecoder().raw_decode(rest)
                    rest = rest[end:].lstrip()
                    self._answer(sock, message)

    def _answer(self, sock: socket.socket, message: Message) -> None:
        self.asked.append(message)
        answer = self.answers.get(message["execute"], done)
        to = {"id": message["id"]} if "id" in message else {}
        for reply in answer(message) if answer is not None else ():
            self._say(sock, reply if "event" in reply else {**reply, **to})

    @staticmethod
    def _say(sock: socket.socket, message: Message) -> None:
        sock.sendall(json.dumps(message).encode() + b"\r\n")


@contextlib.contextmanager
def talking(peer: Peer, timeout: float = 5) -> Iterator[QmpSession]:
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=peer.serve, args=(theirs,))
    thread.start()
    try:
        with QmpSession(ours, timeout=timeout) as session:
            yield session
    finally:
        thread.join(10)
        for fd in peer.fds:
            os.close(fd)
    assert not thread.is_alive()


@pytest.fixture(autouse=True)
def silence(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Whatever happens, it is told by errors and by nothing else; no thread is left."""
    before = threading.active_count()
    yield
    assert capfd.readouterr() == ("", "")
    assert threading.active_count() == before


def refused(_message: Message) -> list[Message]:
    return [{"error": {"class": "DeviceNotFound", "desc": "there is no such \x1b[31mdevice"}}]


def died(_message: Message) -> list[Message]:
    raise ConnectionAbortedError


def late(_message: Message) -> list[Message]:
    time.sleep(0.6)
    return [{"return": "late"}]


def test_command_returns_what_the_peer_returns() -> None:
    peer = Peer({"query-name": lambda _message: [{"return": {"name": "vm"}}]})
    with talking(peer) as session:
        assert session.execute("query-name") == {"name": "vm"}
        assert session.execute("stop", {"a": [1, None]}) == {}
    assert peer.asked[-1]["arguments"] == {"a": [1, None]}


def test_error_reply_tells_command_and_reason() -> None:
    with talking(Peer({"device_del": refused})) as session:
        with pytest.raises(QmpError, match="device_del: there is no such") as caught:
            session.execute("device_del", {"id": "x"})
        assert caught.value.error_class == "DeviceNotFound"
        assert caught.value.command == "device_del"
        assert "\x1b" not in str(caught.value) + caught.value.desc
        assert session.execute("query-name") == {}


@pytest.mark.parametrize("answer", [refused, None, died])
def test_arguments_are_in_no_error_and_no_log(
    answer: Answer | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with (
        talking(Peer({"object-add": answer}), timeout=0.5) as session,
        pytest.raises(QmpError) as caught,
    ):
        session.execute("object-add", {"qom-type": "secret", "id": "s", "data": SECRET})
    shown = "".join(traceback.format_exception(caught.value, chain=True))
    assert SECRET not in repr(caught.value) + str(caught.value.__dict__) + caplog.text
    assert SECRET not in "\n".join(line for line in shown.splitlines() if "execute(" not in line)


def test_command_that_is_not_answered_is_given_up() -> None:
    begun = time.monotonic()
    with talking(Peer({"stop": None})) as session:
        with pytest.raises(QmpTimeoutError, match=r"no answer to stop within 0\.3 s"):
            session.execute("stop", timeout=0.3)
        assert session.execute("cont") == {}
    assert time.monotonic() - begun < 3


def test_late_answer_is_not_taken_for_another_commands() -> None:
    with talking(Peer({"stop": late})) as session:
        with pytest.raises(QmpTimeoutError):
            session.execute("stop", timeout=0.2)
        assert session.execute("cont") == {}


def test_several_threads_can_ask_at_once() -> None:
    peer = Peer({"echo": lambda message: [{"return": message["arguments"]["n"]}]})
    found: dict[int, int] = {}
    with talking(peer) as session:

        def ask(number: int) -> None:
            found[number] = session.execute("echo", {"n": number})

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {n: n for n in range(8)}


def test_peer_that_dies_is_lost_at_once_and_from_then_on() -> None:
    begun = time.monotonic()
    with talking(Peer({"stop": died})) as session:
        for _ in range(3):
            with pytest.raises(QmpLostError, match="has QEMU ended"):
                session.execute("stop")
        session.close()
        session.close()
        with pytest.raises(QmpLostError, match="closed"):
            session.execute("stop")
    assert time.monotonic() - begun < 3


@pytest.mark.parametrize("said", [b"SSH-2.0\r\n", b'{"hello": 1}\r\n', b"[]\r\n", b"\xff\r\n", b""])
def test_peer_that_speaks_no_qmp_is_refused(said: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(said)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(QmpLostError):
            QmpSession(ours, timeout=5)


def test_monitor_that_another_holds_is_busy(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "qmp"))
        server.listen(1)
        begun = time.monotonic()
        with pytest.raises(QmpBusyError, match="another client holds this monitor") as caught:
            QmpSession(tmp_path / "qmp", timeout=0.3)
        assert time.monotonic() - begun < 3
    assert str(tmp_path / "qmp") in str(caught.value)


def test_monitor_for_which_many_wait_is_busy(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, contextlib.ExitStack() as stack:
        server.bind(str(tmp_path / "qmp"))
        server.listen(0)
        for _ in range(8):
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(str(tmp_path / "qmp"))
        begun = time.monotonic()
        with pytest.raises(QmpBusyError, match="other clients"):
            QmpSession(tmp_path / "qmp", timeout=0.3)
        assert time.monotonic() - begun < 3


def test_monitor_that_becomes_free_in_time_is_had(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "qmp"))
        server.listen(1)

        def accept() -> None:
            time.sleep(0.4)
            Peer().serve(server.accept()[0])

        thread = threading.Thread(target=accept)
        thread.start()
        with QmpSession(tmp_path / "qmp", timeout=5) as session:
            assert session.peer == os.getpid()
            assert session.execute("query-name") == {}
        thread.join()


@pytest.mark.parametrize(
    ("name", "said"),
    [("none", "no such socket"), ("file", "is no socket"), ("dead", "nothing listens")],
)
def test_what_cannot_be_connected_to_is_named(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "dead"))
    with pytest.raises(QmpError, match=said) as caught:
        QmpSession(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_socket_in_a_deep_folder_is_reached(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 100) / ("e" * 100)
    folder.mkdir(parents=True)
    with contextlib.chdir(folder), socket.socket(socket.AF_UNIX) as server:
        server.bind("qmp")
        server.listen(1)
        thread = threading.Thread(target=lambda: Peer().serve(server.accept()[0]))
        thread.start()
        with QmpSession(folder / "qmp", timeout=5) as session:
            assert session.execute("query-name") == {}
        thread.join()


def test_event_is_had_that_came_before_the_answer() -> None:
    def resume(_message: Message) -> list[Message]:
        events = [{"event": "RESUME", "timestamp": {}, "data": {"n": n}} for n in (1, 2)]
        return [{"event": "STOP", "timestamp": {}}, *events, {"return": {}}]

    with talking(Peer({"cont": resume})) as session, session.listen("RESUME") as events:
        session.execute("cont")
        assert events.wait(lambda event: event["data"]["n"] == 2)["event"] == "RESUME"
        with pytest.raises(QmpTimeoutError, match="RESUME"):
            events.wait(timeout=0.2)


@pytest.mark.parametrize(
    ("feature", "there"),
    [
        ("getfd", True),
        ("getfd:fdname", True),
        ("getfd:other", False),
        ("RESUME", False),
        ("nothing", False),
        ("blockdev-add:filter", True),
        ("blockdev-add:driver:raw", True),
        ("blockdev-add:driver:qcow9", False),
        ("blockdev-add:filter:on-error:break", True),
        ("blockdev-add:filter:on-error:go-on", False),
        ("blockdev-add:filter:bitmaps:fdname", True),
        ("blockdev-add:raw:on-error", False),
    ],
)
def test_what_the_peer_has_is_in_its_schema(feature: str, there: bool) -> None:
    with talking(Peer({"query-qmp-schema": lambda _message: [{"return": SCHEMA}]})) as session:
        assert session.has(feature) is there


def test_descriptor_comes_with_the_command() -> None:
    peer = Peer()
    read, write = os.pipe()
    try:
        with talking(peer) as session:
            session.send_fd(write)
            session.execute("getfd", {"fdname": "pipe"})
            os.close(write)
            os.write(peer.fds[0], b"through")
            assert os.read(read, 16) == b"through"
    finally:
        os.close(read)
