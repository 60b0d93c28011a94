"""A QMP monitor with a test in the middle: every command can be seen, held back, or the last."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

_CHUNK, _FDS = 1 << 16, 8


@dataclass(frozen=True)
class Moment:
    """Just before the machine gets a command, or just before the client gets its answer.

    Attributes:
        number: of the command on its connection, from 0.
        client: the client's process id.
    """

    stage: Literal["before", "after"]
    number: int
    command: str
    client: int

    def kill_client(self) -> None:
        """End the client as ``kill -9`` does."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.client, signal.SIGKILL)


# Whether what has come may go on; otherwise it, and all that follows it, is swallowed.
Hook = Callable[[Moment], bool]


class Proxy:
    """Passes one client after another on to a machine's monitor, descriptors too.

    Attributes:
        path: the socket for the client.
        commands: what was asked on the latest connection.
    """

    def __init__(self, target: Path, hook: Hook = lambda _moment: True) -> None:
        self._target, self._hook = target, hook
        self.commands: list[str] = []
        self._failed: BaseException | None = None

    def __enter__(self) -> Proxy:
        self._folder = tempfile.TemporaryDirectory(prefix="machine-")
        self.path = Path(self._folder.name, "proxy")
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(self.path))
        self._server.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(10)
        self._folder.cleanup()
        if self._failed is not None:
            raise self._failed

    def _guarded(self, moment: Moment) -> bool:
        """Ask the hook; where that fails, the block fails, and the client waits for nothing."""
        try:
            return self._hook(moment)
        except BaseException as error:
            self._failed = self._failed or error
            moment.kill_client()
            return False

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            self.commands = []
            with client, socket.socket(socket.AF_UNIX) as machine, contextlib.suppress(OSError):
                machine.connect(str(self._target))
                _Connection(client, machine, self._guarded, self.commands).run()


@dataclass
class _Connection:
    client: socket.socket
    machine: socket.socket
    hook: Hook
    commands: list[str]
    pending: dict[str, tuple[int, str]] = field(default_factory=dict)

    def run(self) -> None:
        """Pass on until one side ends, then end the other."""
        credentials = self.client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.pid = struct.unpack("iii", credentials)[0]
        back = threading.Thread(
            target=self._pump, args=(self.machine, self.client, self._answered), daemon=True
        )
        back.start()
        self._pump(self.client, self.machine, self._asked)
        back.join()

    def _pump(
        self, source: socket.socket, target: socket.socket, seen: Callable[[Any], bool]
    ) -> None:
        rest, flowing = "", True
        with contextlib.suppress(OSError):
            while True:
                data, fds, _, _ = socket.recv_fds(source, _CHUNK, _FDS)
                if not data:
                    break
                messages, rest = _parsed(rest + data.decode())
                for message in messages:
                    flowing = seen(message) and flowing
                if flowing:
                    socket.send_fds(target, [data], fds)
                for fd in fds:
                    os.close(fd)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def _asked(self, message: dict[str, Any]) -> bool:
        command = message.get("execute") or message.get("exec-oob", "")
        number = len(self.commands)
        self.commands.append(command)
        self.pending[message.get("id", "")] = number, command
        return self.hook(Moment("before", number, command, self.pid))

    def _answered(self, message: dict[str, Any]) -> bool:
        if "return" not in message and "error" not in message:
            return True
        number, command = self.pending.pop(message.get("id", ""))
        return self.hook(Moment("after", number, command, self.pid))


def _parsed(text: str) -> tuple[list[dict[str, Any]], str]:
    """The whole messages at the beginning of the text, and what remains."""
    decoder, at = json.JSONDecoder(), 0
    found: list[dict[str, Any]] = []
    while True:
        at += len(text[at:]) - len(text[at:].lstrip())
        try:
            message, at = decoder.raw_decode(text, at)
        except ValueError:
            return found, text[at:]
        found.append(message)
