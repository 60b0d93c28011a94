"""QEMU's programs: where they are, and running one so that it cannot outlive us."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ..errors import QemuError, printable

Program = Literal["qemu-storage-daemon", "qemu-img"]

VARIABLES: dict[Program, str] = {
    "qemu-storage-daemon": "QCOWDELTA_QEMU_STORAGE_DAEMON",
    "qemu-img": "QCOWDELTA_QEMU_IMG",
}
"""The variables of the environment that choose a program instead of the one on PATH."""

_LAUNCH = str(Path(__file__).with_name("launch.py"))
# glibc would give a request's buffer back to the system and get it anew, zeroed, for the next one,
# which takes longer than reading into it.
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "134217728"}
_ERRORS_KEPT = 4096
_GRACE = 5.0  # s


def find(program: Program) -> str | None:
    """Return the path of a program, or None where there is none."""
    return shutil.which(os.environ.get(VARIABLES[program]) or program)


def launcher(door: int = -1, argv: Sequence[str] = ()) -> list[str]:
    """Return the command line of :mod:`.launch`."""
    return [sys.executable, "-I", "-S", _LAUNCH, str(os.getpid()), str(door), *argv]


def launcher_environment() -> dict[str, str]:
    """Return the environment that it runs in."""
    return {**os.environ, "TMPDIR": tempfile.gettempdir()}


class Child:
    """A program that runs as long as we do, at most: the kernel kills it when we end, however.

    It is started from a thread of its own, since the kernel watches the thread that started it.
    It has no controlling terminal's signals: Ctrl-C is ours to handle.

    Args:
        argv: the program and its arguments.
        fds: descriptors that it inherits under the same numbers.
        door: a socket through which the launcher sends back what reaches a new listening unix
            socket that has no name any more; ``{door}`` in an argument becomes the listening
            descriptor's number. See :mod:`.launch`.
        out: a descriptor for its standard output; None: that is not wanted.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(
        self,
        argv: Sequence[str],
        fds: Sequence[int] = (),
        *,
        door: int = -1,
        out: int | None = None,
    ) -> None:
        self._out = subprocess.DEVNULL if out is None else out
        self.name = os.path.basename(argv[0])
        # A file without a name, so that nobody has to read while it runs.
        self._errors = os.memfd_create("qcowdelta-stderr", os.MFD_CLOEXEC)
        self._ended = threading.Event()
        self._begun: queue.SimpleQueue[subprocess.Popen[bytes] | BaseException] = (
            queue.SimpleQueue()
        )
        launched = launcher(door, argv)
        inherited = [*fds, *([door] if door >= 0 else [])]
        self._thread = threading.Thread(
            target=self._run, args=(launched, inherited), name=f"qcowdelta-{self.name}", daemon=True
        )
        self._thread.start()
        begun = self._begun.get()
        if isinstance(begun, BaseException):
            os.close(self._errors)
            raise begun
        self._process = begun

    def _run(self, argv: list[str], fds: list[int]) -> None:
        try:
            process = subprocess.Popen(  # noqa: S603 # no shell, and our own arguments
                argv,
                stdin=subprocess.DEVNULL,
                stdout=self._out,
                stderr=self._errors,
                pass_fds=fds,
                start_new_session=True,
                env={**_KEEP_MEMORY, **launcher_environment()},
            )
        except BaseException as error:
            self._begun.put(error)
            return
        self._begun.put(process)
        process.wait()
        self._ended.set()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self._process.returncode if self._ended.is_set() else None

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait until it ends, at most so many seconds; return its exit status."""
        self._ended.wait(timeout)
        return self.status

    def said(self) -> str:
        """Return the end of what it wrote to standard error, safe to show."""
        size = os.fstat(self._errors).st_size
        data = os.pread(self._errors, _ERRORS_KEPT, max(0, size - _ERRORS_KEPT))
        return " ".join(printable(line) for line in data.splitlines() if line.strip())

    def how_it_ended(self) -> str:
        """Return a text that says how it ended."""
        status = self.status
        if status is None:
            return f"{self.name} still runs"
        how = f"exit status {status}"
        if status < 0:
            with contextlib.suppress(ValueError):
                how = signal.Signals(-status).name
        said = self.said()
        return f"{self.name} ended with {how}{': ' if said else ''}{said}"

    def close(self, grace: float = 0.0) -> None:
        """Make it end, if need be by killing it. Closing twice is allowed."""
        if self._errors < 0:
            return
        if self.wait(grace) is None:
            self._process.kill()
            if self.wait(_GRACE) is None:
                raise QemuError(f"{self.name} (process {self.pid}) cannot be killed")
        self._thread.join(_GRACE)
        os.close(self._errors)
        self._errors = -1
