"""QEMU processes that have an image open for writing: a machine, a storage daemon, an NBD server.

No guest runs in the machine: it is stopped before its first instruction, which is enough for it to
hold its disk as any running one does.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.support import qemu

LIMIT, PATIENCE = 30.0, 3.0


class StartError(Exception):
    """The process ended before it had the image; what it said."""


@contextmanager
def machine(path: Path, fmt: str = "qcow2") -> Iterator[int]:
    """A machine with the image as its disk, stopped before it begins."""
    argv = [
        qemu.program("qemu-system"), "-S", "-accel", "tcg", "-m", "64", "-nodefaults",
        "-display", "none", "-nic", "none", "-qmp", "stdio",
        "-drive", f"if=none,id=d,format={fmt},file={path}", "-device", "virtio-blk-pci,drive=d",
    ]  # fmt: skip
    with _process(argv, subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        # Greeted is who comes early; only a whole machine answers.
        for command in ("qmp_capabilities", "query-block"):
            process.stdin.write(json.dumps({"execute": command}).encode() + b"\n")
            process.stdin.flush()
        answer, deadline = b"", time.monotonic() + LIMIT
        while b'"inserted"' not in answer:
            ready, _, _ = select.select([process.stdout], [], [], deadline - time.monotonic())
            assert ready, "no answer from the machine"
            data = os.read(process.stdout.fileno(), 1 << 16)
            if not data:
                raise StartError(_errors(process))
            answer += data
        yield process.pid


@contextmanager
def storage_daemon(path: Path, fmt: str = "qcow2") -> Iterator[int]:
    """A storage daemon that exports the image, writable."""
    with tempfile.TemporaryDirectory(prefix="qcowdelta-") as folder:
        nodes = ["--blockdev", f"driver=file,node-name=file,filename={path}"]
        nodes += ["--blockdev", f"driver={fmt},node-name=disk,file=file"]
        argv = [
            qemu.program("qemu-storage-daemon"), *nodes,
            "--nbd-server", f"addr.type=unix,addr.path={folder}/nbd",
            "--export", "type=nbd,id=e,node-name=disk,writable=on", "--pidfile", f"{folder}/pid",
        ]  # fmt: skip
        with _process(argv) as process:
            _await(Path(folder, "pid"), process)
            yield process.pid


@contextmanager
def nbd_server(path: Path, fmt: str = "qcow2") -> Iterator[int]:
    """A qemu-nbd that serves the image, writable."""
    with tempfile.TemporaryDirectory(prefix="qcowdelta-") as folder:
        socket, pid = Path(folder, "nbd"), Path(folder, "pid")
        argv = [qemu.program("qemu-nbd"), "-t", "-f", fmt, "-k", str(socket)]
        with _process([*argv, f"--pid-file={pid}", str(path)]) as process:
            _await(pid, process)  # the socket is there before the image is opened
            yield process.pid


Holder = Callable[[Path, str], AbstractContextManager[int]]
HOLDERS: dict[str, tuple[qemu.Tool, Holder]] = {
    "machine": ("qemu-system", machine),
    "storage daemon": ("qemu-storage-daemon", storage_daemon),
    "NBD server": ("qemu-nbd", nbd_server),
}


@contextmanager
def _process(argv: list[str], stdin: int = subprocess.DEVNULL) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(argv, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:  # a qemu-nbd that is told too early forgets it
            process.kill()
            process.communicate(timeout=LIMIT)


def _await(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + LIMIT
    while not path.exists():
        if process.poll() is not None:
            raise StartError(_errors(process))
        assert time.monotonic() < deadline, f"{path} does not appear"
        time.sleep(0.01)


def _errors(process: subprocess.Popen[bytes]) -> str:
    return process.communicate(timeout=LIMIT)[1].decode(errors="replace")
