"""``qcowdelta live`` in processes of its own, and what they leave behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

from tests.support import qemu

LIMIT = 60.0

Words: TypeAlias = list[str | Path]


def diff(base: Path, output: Path, *more: str | Path, device: str = "disk0") -> Words:
    """The command that makes a delta of a disk over a base."""
    return ["diff", "--device", device, "--base", base, "-o", output, *more]


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its status (negative: the signal), and what it said."""

    status: int
    out: str
    err: str
    seconds: float

    @property
    def json(self) -> dict[str, Any]:
        """Standard output as JSON."""
        assert self.status == 0, self.err
        value: dict[str, Any] = json.loads(self.out)
        return value

    @property
    def refusal(self) -> str:
        """The one line that a command says which fails as it should."""
        assert self.status == 2, (self.status, self.out, self.err)
        assert self.out == ""
        assert self.err.startswith("qcowdelta: error: "), self.err
        assert self.err.count("\n") == 1, self.err
        assert "internal error" not in self.err
        return self.err


@dataclass
class Running:
    """A command that runs."""

    process: subprocess.Popen[str]
    begun: float

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> Outcome:
        """Wait for its end."""
        out, err = self.process.communicate(timeout=LIMIT)
        seconds = time.monotonic() - self.begun
        return Outcome(self.process.returncode, out, err, seconds)


# Loads all that commands use, then runs one for each line it reads, in a fork of itself.
_FORKS = """
import importlib, json, os, pkgutil, sys
import qcowdelta
for module in pkgutil.walk_packages(qcowdelta.__path__, "qcowdelta."):
    importlib.import_module(module.name)
from qcowdelta.cli import main
for line in sys.stdin:
    order = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.environ.update(order["environment"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = ["qcowdelta", *order["words"]]
        status = 1
        try:
            main()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@dataclass
class Live:
    """Runs ``qcowdelta live --qmp SOCKET`` with a temporary folder that nothing else uses.

    Many short runs go faster as a context manager: one process loads the package for all of them.
    """

    qmp: Path
    folder: Path
    _tag: str = field(default_factory=lambda: uuid.uuid4().hex)
    _forks: subprocess.Popen[str] | None = None

    def __post_init__(self) -> None:
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir(exist_ok=True)

    def __enter__(self) -> Live:
        environment = {**os.environ, "PYTHONWARNINGS": "ignore", "COLUMNS": "200"}
        self._forks = subprocess.Popen(
            [sys.executable, "-c", _FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env=environment,
        )  # fmt: skip
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        assert self._forks is not None
        self._forks.communicate(timeout=LIMIT)

    def words(self, *words: str | Path, qmp: Path | None = None) -> list[str]:
        """The arguments of the command line."""
        return ["live", "--qmp", str(qmp or self.qmp), *map(str, words)]

    def start(self, *words: str | Path, qmp: Path | None = None) -> Running:
        """Start a command, with a Python of its own."""
        argv = [sys.executable, "-c", "from qcowdelta.cli import main; main()"]
        process = subprocess.Popen(
            [*argv, *self.words(*words, qmp=qmp)], stdin=subprocess.DEVNULL, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.folder,
            env={**os.environ, **self._environment()},
        )  # fmt: skip
        return Running(process, time.monotonic())

    def run(self, *words: str | Path, qmp: Path | None = None) -> Outcome:
        """Run a command to its end."""
        if self._forks is None:
            return self.start(*words, qmp=qmp).wait()
        begun = time.monotonic()
        out, err = self.folder / "said.out", self.folder / "said.err"
        order = {
            "words": self.words(*words, qmp=qmp), "environment": self._environment(),
            "out": str(out), "err": str(err),
        }  # fmt: skip
        assert self._forks.stdin is not None
        assert self._forks.stdout is not None
        print(json.dumps(order), file=self._forks.stdin, flush=True)
        answer = self._forks.stdout.readline()
        assert answer, "the package cannot be loaded"
        status = int(answer)
        outcome = Outcome(status, out.read_text(), err.read_text(), time.monotonic() - begun)
        for path in (out, err):
            path.unlink()
        return outcome

    def ok(self, *words: str | Path, qmp: Path | None = None) -> Outcome:
        """Run what must succeed."""
        outcome = self.run(*words, qmp=qmp)
        assert outcome.status == 0, outcome.err
        return outcome

    def figures(self, *words: str | Path, qmp: Path | None = None) -> dict[str, Any]:
        """Run what must succeed, and return its figures."""
        return self.ok(*words, "--json", qmp=qmp).json

    def _environment(self) -> dict[str, str]:
        ours = {"TMPDIR": str(self.temporary), "QCOWDELTA_TEST_RUN": self._tag, "COLUMNS": "200"}
        return ours | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}

    def left(self) -> list[str]:
        """What runs have left on the host: temporary files, names of sockets, processes."""
        found = [str(path) for path in self.temporary.rglob("*")]
        found += [str(path) for path in Path("/dev/shm").glob("*qcowdelta*")]
        return found + [f"process {pid}" for pid in self._processes()]

    def open_sockets(self) -> list[str]:
        """Sockets that runs have made and that someone has open, the machine for one."""
        sockets = Path("/proc/net/unix").read_text()
        return [line for line in sockets.splitlines() if str(self.temporary) in line]

    def _processes(self) -> Iterator[int]:
        mark = f"QCOWDELTA_TEST_RUN={self._tag}".encode()
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if mark in path.read_bytes():
                    yield int(path.parent.name)


def content(path: Path, *, base: Path, base_format: str = "qcow2") -> bytes:
    """What a delta, applied to its base, gives: an overlay as QEMU reads it, or a patch."""
    if path.suffix != ".qcpatch":
        assert qemu.check(path)["corruptions"] == 0
        return qemu.read_guest(path, "qcow2")
    target = path.with_suffix(".raw")
    start = "from qcowdelta.cli import main; main()"
    argv = [sys.executable, "-c", start, "apply", str(path), "--base", str(base)]
    qemu.run([*argv, "--base-format", base_format, "-o", str(target), "-q", "--force"])
    try:
        return target.read_bytes()
    finally:
        target.unlink()
