"""The Sleuth Kit, asked from a distance: it runs in a confined process, see :mod:`.tsk_worker`."""

from __future__ import annotations

import importlib.util
import json
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..units import GIB, MIB
from .contents import UnreadableError
from .volume import Volume

_SECONDS = 120
_MEMORY = GIB
_MAX_MESSAGE = 64 * MIB
_MAX_READ = MIB
_MAX_FILES = 1 << 22
_WORKER = Path(__file__).with_name("tsk_worker.py")


@dataclass
class Told:
    """What The Sleuth Kit told of a file system, as it came: nothing of it is checked.

    Attributes:
        files: a dictionary for each file that is in use.
        names: the inode of a directory, the inode of what is in it, and its name as Latin-1.
        facts: what the file system says of itself.
    """

    files: list[dict[str, Any]] = field(default_factory=list)
    names: list[tuple[int, int, str]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def ask_tsk(volume: Volume, kind: str, *, seconds: float = _SECONDS) -> Told:
    """Have The Sleuth Kit read a volume.

    Args:
        volume: the volume.
        kind: the file system, as in ``TSK_FS_TYPE_…``.
        seconds: how long it may take; its processor time is bounded by that, too.

    Raises:
        UnreadableError: it is not installed, cannot read the volume, crashed, or took too long.
        CorruptImageError: the image cannot be read.
    """
    spec = importlib.util.find_spec("pytsk3")
    if spec is None or spec.origin is None:
        raise UnreadableError("it is not read without pytsk3: install qcowdelta[files]")
    ours, theirs = socket.socketpair()
    argv = [sys.executable, "-I", str(_WORKER), str(theirs.fileno()), kind, str(volume.length)]
    argv += [str(max(1, int(seconds))), str(_MEMORY), str(Path(spec.origin).parent)]
    with ours:
        with theirs:
            process = subprocess.Popen(  # noqa: S603 # our own program
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        try:
            return _Conversation(volume, ours, time.monotonic() + seconds).hold()
        except TimeoutError:
            raise UnreadableError("The Sleuth Kit took too long to read it") from None
        except (ConnectionError, EOFError):
            raise UnreadableError("The Sleuth Kit failed while reading it") from None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UnreadableError("The Sleuth Kit told nonsense of it") from None
        finally:
            process.kill()
            process.wait()


class _Conversation:
    """Answers what the worker asks, and takes what it tells; never trusts it with a length."""

    def __init__(self, volume: Volume, sock: socket.socket, deadline: float) -> None:
        self._volume = volume
        self._sock = sock
        self._deadline = deadline

    def hold(self) -> Told:
        told = Told()
        while True:
            kind, payload = self._receive()
            if kind == b"R":
                self._answer(payload)
            elif kind == b"F":
                self._take(told, json.loads(payload))
            elif kind == b"D":
                told.facts = dict(json.loads(payload))
                return told
            else:
                raise UnreadableError(f"The Sleuth Kit cannot read it: {json.loads(payload)}")

    def _take(self, told: Told, message: dict[str, Any]) -> None:
        told.files += message["files"]
        told.names += [(int(p), int(i), str(name)) for p, i, name in message["names"]]
        if len(told.files) > _MAX_FILES or len(told.names) > _MAX_FILES:
            raise UnreadableError("it has more files than are read")

    def _answer(self, payload: bytes) -> None:
        offset, length = struct.unpack("<QI", payload)
        if length > _MAX_READ or offset > self._volume.length:
            raise ValueError("a read out of bounds")
        data = self._volume.read(offset, length)
        self._wait()
        self._sock.sendall(data)

    def _wait(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(left)

    def _receive(self) -> tuple[bytes, bytes]:
        kind, length = struct.unpack("<cI", self._exactly(5))
        if length > _MAX_MESSAGE:
            raise ValueError("a message out of bounds")
        return kind, self._exactly(length)

    def _exactly(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            self._wait()
            piece = self._sock.recv(min(length - len(data), MIB))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)
