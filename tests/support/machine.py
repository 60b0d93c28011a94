"""Virtual machines under TCG, whose disks are written while they run.

The processor of a machine without a guest runs, but halts at once: what a guest would write is
written through its virtio device by the monitor (``qemu-io -d``), so that a test knows every byte
and its moment.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.support import qemu

# At the reset vector: cli, hlt, and again should anything wake it.
_FIRMWARE = b"\xf4" * 0xFFF0 + b"\xfa\xf4\xeb\xfc".ljust(16, b"\xf4")

TIMEOUT = 30.0
GRANULE = 64 << 10

# The one line of a qemu-io command that tells how it ended.
_ENDED = re.compile(r"(wrote|read|discard) \d+/\d+ bytes|\w+ failed: ")


@dataclass(frozen=True)
class Disk:
    """A disk: the id of its device, its image, and how it is attached.

    The node of the format is called NAME-format, that of the file NAME-file; but by `drive`, the
    way of old, QEMU makes up their names.
    """

    name: str
    path: Path
    fmt: str = "qcow2"
    attached: Literal["virtio-blk", "scsi", "drive"] = "virtio-blk"

    @property
    def device(self) -> str:
        """The QOM path of what has the disk."""
        within = "" if self.attached == "scsi" else "/virtio-backend"
        return f"/machine/peripheral/{self.name}{within}"

    def options(self) -> list[str]:
        """The disk on QEMU's command line."""
        virtio = f"virtio-blk-pci,id={self.name},drive={self.name}"
        if self.attached == "drive":
            drive = f"if=none,id={self.name},format={self.fmt},discard=unmap,file={self.path}"
            return ["-drive", drive, "-device", virtio]
        file = {
            "driver": "file", "node-name": f"{self.name}-file", "filename": str(self.path),
            "discard": "unmap",
        }  # fmt: skip
        node = {
            "driver": self.fmt, "node-name": f"{self.name}-format", "file": f"{self.name}-file",
            "discard": "unmap",
        }  # fmt: skip
        options = ["-blockdev", json.dumps(file), "-blockdev", json.dumps(node)]
        if self.attached == "scsi":
            bus = f"virtio-scsi-pci,id={self.name}-bus"
            disk = f"scsi-hd,id={self.name},bus={self.name}-bus.0,drive={self.name}-format"
            return [*options, "-device", bus, "-device", disk]
        return [*options, "-device", f"{virtio}-format"]


@dataclass(frozen=True)
class Guest:
    """What a machine boots: a kernel, an initial RAM disk, and a command line."""

    kernel: Path
    initrd: Path
    append: str


class MonitorError(Exception):
    """An error reply: its class and description."""


class Monitor:
    """A QMP connection of the test's own, for any thread; one command at a time."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(TIMEOUT)
        self._sock = sock
        self._file = sock.makefile("rb")
        self._lock = threading.RLock()
        self._receive()
        self.execute("qmp_capabilities")

    def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """Run a command and return its result; an error reply raises MonitorError."""
        with self._lock:
            message = {"execute": command, "arguments": arguments or {}}
            self._sock.sendall(json.dumps(message).encode() + b"\n")
            while True:
                reply = self._receive()
                if "error" in reply:
                    raise MonitorError(f"{command}: {reply['error']['desc']}")
                if "return" in reply:
                    return reply["return"]

    def _receive(self) -> dict[str, Any]:
        line = self._file.readline()
        if not line:
            raise MonitorError("the machine is gone")
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        self._file.close()
        self._sock.close()


class Console:
    """The machine's standard output, a terminal so that its lines come as they are written."""

    def __init__(self) -> None:
        self._ours, self.theirs = pty.openpty()
        self._rest = b""

    def line(self, ending: re.Pattern[str]) -> tuple[str, list[str]]:
        """Wait for a line that begins so; return it, and those before it."""
        before: list[str] = []
        deadline = time.monotonic() + TIMEOUT
        while True:
            while b"\n" in self._rest:
                first, _, self._rest = self._rest.partition(b"\n")
                text = first.decode(errors="replace").strip()
                if ending.match(text):
                    return text, before
                before.append(text)
            if not select.select([self._ours], [], [], max(0, deadline - time.monotonic()))[0]:
                raise AssertionError(f"the machine did not say how it ended: {before}")
            self._rest += os.read(self._ours, 65536)

    def close_theirs(self) -> None:
        os.close(self.theirs)

    def close(self) -> None:
        os.close(self._ours)


class Machine:
    """A running QEMU.

    Attributes:
        qmp, second: the sockets of monitors that are left to qcowdelta.
        serial: what the guest writes to its first serial line.
        content: what each disk holds, by name, as far as it was written through ``write``;
            begins as what its image reads as. Empty where there is a guest.
        numbers: how many writes those were that a Writer made.
    """

    def __init__(
        self, folder: Path, *disks: Disk, guest: Guest | None = None, more: Sequence[str] = ()
    ) -> None:
        self.disks = {disk.name: disk for disk in disks}
        self.serial = folder / "serial.log"
        self.content: dict[str, bytearray] = {}
        self.numbers = 0
        self._guest, self._more = guest, more
        self._lock = threading.RLock()

    def __enter__(self) -> Machine:
        qemu.require("qemu-system", "qemu-img")
        if self._guest is None:
            for disk in self.disks.values():
                self.content[disk.name] = bytearray(qemu.read_guest(disk.path, disk.fmt))
        # Not in the test's folder: a socket's path has room for 107 bytes only.
        self._folder = tempfile.TemporaryDirectory(prefix="machine-")
        self.qmp, self.second = (Path(self._folder.name, name) for name in ("qmp", "second"))
        self._console = Console()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                self._argv(theirs.fileno()), stdin=subprocess.DEVNULL, stdout=self._console.theirs,
                stderr=self._console.theirs, pass_fds=[theirs.fileno()],
            )  # fmt: skip
        self._console.close_theirs()
        try:
            self.monitor = Monitor(ours)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        if hasattr(self, "monitor"):
            self.monitor.close()
        self._console.close()
        self._folder.cleanup()

    def _argv(self, monitor: int) -> list[str]:
        argv = [
            qemu.program("qemu-system"), "-accel", "tcg", "-nodefaults", "-display", "none",
            "-no-user-config", "-nic", "none",
            "-chardev", f"socket,id=test,fd={monitor}", "-mon", "chardev=test,mode=control",
            "-qmp", f"unix:{self.qmp},server=on,wait=off",
            "-qmp", f"unix:{self.second},server=on,wait=off",
        ]  # fmt: skip
        for disk in self.disks.values():
            argv += disk.options()
        if self._guest is None:
            firmware = Path(self._folder.name, "firmware")
            firmware.write_bytes(_FIRMWARE)
            return [*argv, "-m", "32", "-bios", str(firmware), *self._more]
        return [
            *argv, "-m", "512", "-no-reboot", "-serial", f"file:{self.serial}",
            "-kernel", str(self._guest.kernel), "-initrd", str(self._guest.initrd),
            "-append", self._guest.append, *self._more,
        ]  # fmt: skip

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End the process at once, as a crash would."""
        self._process.kill()
        self._process.wait()

    def write(self, name: str, offset: int, length: int, pattern: int) -> None:
        """Write as the guest would; a failure is the guest's I/O error."""
        said = self._io(name, f"write -P {pattern} {offset} {length}")
        assert said.startswith("wrote "), f"the guest's write failed: {said}"
        self.content[name][offset : offset + length] = bytes([pattern]) * length

    def zero(self, name: str, offset: int, length: int) -> None:
        """Write zeros as the guest would, by metadata, unmapping."""
        said = self._io(name, f"write -z -u {offset} {length}")
        assert said.startswith("wrote "), f"the guest's write failed: {said}"
        self.content[name][offset : offset + length] = bytes(length)

    def reads_as(self, name: str, offset: int, length: int, pattern: int) -> bool:
        """Whether the guest reads this byte all over a range."""
        return self._io(name, f"read -P {pattern} {offset} {length}") == "read"

    def _io(self, name: str, command: str) -> str:
        with self._lock:
            said = self.human(f'qemu-io -d {self.disks[name].device} "{command}"')
            assert said == "", said
            ended, before = self._console.line(_ENDED)
        wrong = [line for line in before if "failed" in line]
        if wrong:
            return wrong[0]
        return "read" if ended.startswith("read ") else ended

    def human(self, command: str) -> str:
        """Run a command of the human monitor."""
        said: str = self.monitor.execute("human-monitor-command", {"command-line": command})
        return said

    def flush(self) -> None:
        """Write out what QEMU keeps of the disks' metadata."""
        for disk in self.disks.values():
            self.human(f'qemu-io -d {disk.device} "flush"')

    def state(self) -> dict[str, Any]:
        """All of the block layer that a client could change, but not what a guest changes."""
        ask = self.monitor.execute
        return {
            "nodes": {n["node-name"]: _node(n) for n in self.nodes()},
            "exports": ask("query-block-exports"),
            "jobs": ask("query-jobs"),
            "drives": {
                name: ask("qom-get", {"path": f"/machine/peripheral/{name}", "property": "drive"})
                for name in self.disks
            },
            "objects": sorted(child["name"] for child in ask("qom-list", {"path": "/objects"})),
            "descriptor sets": ask("query-fdsets"),
            "files": sorted(self._open_files()),
        }

    def nodes(self) -> list[dict[str, Any]]:
        """``query-named-block-nodes``."""
        found: list[dict[str, Any]] = self.monitor.execute(
            "query-named-block-nodes", {"flat": True}
        )
        return found

    def bitmaps(self, name: str) -> dict[str, dict[str, Any]]:
        """The bitmaps of a disk's format node, by name."""
        node = next(n for n in self.nodes() if n["node-name"] == f"{name}-format")
        return _named_bitmaps(node)

    def ours(self) -> list[str]:
        """Everything in the machine whose name says that qcowdelta made it."""
        text = json.dumps(self.state())
        return sorted(set(re.findall(r"\"(qcowdelta-[^\"]*)\"", text)))

    def _open_files(self) -> Iterator[str]:
        for link in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                target = os.readlink(link)
                # A monitor's connection comes and goes, and so does a waiting thread's pipe.
                if target.startswith("/"):
                    yield target

    def serves_nbd(self) -> bool:
        """Whether an NBD server runs in the machine; one that does not is started and stopped."""
        path = str(Path(self._folder.name, "probe"))
        address = {"type": "unix", "data": {"path": path}}
        try:
            self.monitor.execute("nbd-server-start", {"addr": address})
        except MonitorError:
            return True
        self.monitor.execute("nbd-server-stop")
        return False


def _node(node: dict[str, Any]) -> dict[str, Any]:
    """What of a node stays as it is while a guest writes."""
    kept = {key: node.get(key) for key in ("drv", "file", "ro", "backing_file_depth", "cache")}
    fields = ("granularity", "recording", "persistent", "busy", "inconsistent")
    bitmaps = {
        name: {key: bitmap.get(key) for key in fields}
        for name, bitmap in _named_bitmaps(node).items()
    }
    return {**kept, "bitmaps": bitmaps}


def _named_bitmaps(node: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A node's bitmaps by name; those that a job or a filter has for itself have none."""
    return {b["name"]: b for b in node.get("dirty-bitmaps", []) if b.get("name")}


@dataclass(frozen=True)
class Write:
    """One write of a guest; of zeros it is by metadata, and unmaps."""

    offset: int
    length: int
    pattern: int


class Writer:
    """Writes to a disk of a machine without pause until the block ends, each byte on record."""

    def __init__(self, machine: Machine, name: str) -> None:
        self._machine, self._name = machine, name
        self._size = len(machine.content[name]) // GRANULE
        self.before = bytes(machine.content[name])
        self.log: list[Write] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._failed: BaseException | None = None

    def __enter__(self) -> Writer:
        self._thread.start()
        self.wait(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._failed is not None:
            raise self._failed

    def wait(self, count: int) -> None:
        """Wait until so many more writes are done."""
        wanted, deadline = len(self.log) + count, time.monotonic() + TIMEOUT
        while len(self.log) < wanted:
            assert self._failed is None, self._failed
            assert time.monotonic() < deadline, "the guest's writes do not go on"
            time.sleep(0.001)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                # Numbers go on with the next writer, so that every write is a change.
                number = self._machine.numbers = self._machine.numbers + 1
                write = self._write_of(number)
                if write.pattern:
                    self._machine.write(self._name, write.offset, write.length, write.pattern)
                else:
                    self._machine.zero(self._name, write.offset, write.length)
                self.log.append(write)
        except BaseException as error:
            self._failed = error

    def _write_of(self, number: int) -> Write:
        """A whole granule or a part of one; of zeros now and then."""
        # A step that has no factor in common with the size comes by everywhere.
        start = number * 7919 % self._size * GRANULE
        pattern = number % 251 + 1 if number % 6 else 0
        return (
            Write(start + 8192, 4096, pattern)
            if number % 4 == 1
            else Write(start, GRANULE, pattern)
        )

    def moments(self, content: bytes) -> list[int]:
        """After which numbers of writes the disk was as `content`; none says it never was."""
        assert len(content) == len(self.before)
        state = bytearray(self.before)
        wrong = {
            i
            for i in range(0, len(content), GRANULE)
            if content[i : i + GRANULE] != state[i : i + GRANULE]
        }
        found = [] if wrong else [0]
        for number, write in enumerate(self.log, 1):
            state[write.offset : write.offset + write.length] = (
                bytes([write.pattern]) * write.length
            )
            start = write.offset // GRANULE * GRANULE
            granule = slice(start, start + GRANULE)
            (wrong.discard if content[granule] == state[granule] else wrong.add)(start)
            if not wrong:
                found.append(number)
        return found
