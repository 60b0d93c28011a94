"""The command line killed from within, just before the N-th call that changes something on disk."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

LIMIT = 60.0

_KILLED = """
import itertools, os, signal, sys
point, log = int(sys.argv.pop(1)), sys.argv.pop(1)
calls = itertools.count()
def note(*words):
    with open(log, "a") as file:
        print(*words, file=file)
def counted(name, real):
    def call(*args, **kwargs):
        number = next(calls)
        if number == point:
            os.kill(os.getpid(), signal.SIGKILL)
        done = real(*args, **kwargs)
        if point < 0:
            note(name, done if isinstance(done, int) else 0)
        return done
    return call
for name in ("pwrite", "pwritev", "write", "copy_file_range", "sendfile", "ftruncate", "truncate",
             "posix_fallocate", "fsync", "fdatasync", "link", "rename", "replace", "unlink"):
    setattr(os, name, counted(name, getattr(os, name)))
if point < 0:
    import qcowdelta.patch.decode
    real_decode = qcowdelta.patch.decode.decode
    def decode(*args):
        note("decode", 0)
        return real_decode(*args)
    qcowdelta.patch.decode.decode = decode
from qcowdelta.cli import main
main()
"""


def killed_at(words: Sequence[str | Path], point: int, log: Path) -> int:
    """Run a command and kill it at its ``point``-th call; return its exit status.

    A negative point lets it run, and logs each call and what it returned.
    """
    argv = [sys.executable, "-c", _KILLED, str(point), str(log), *map(str, words)]
    return subprocess.run(argv, capture_output=True, check=False, timeout=LIMIT).returncode


def calls_of(words: Sequence[str | Path], log: Path) -> list[tuple[str, int]]:
    """Run a command, and return the calls it made, and payloads it decoded, in their order."""
    log.unlink(missing_ok=True)
    status = killed_at(words, -1, log)
    assert status == 0
    lines = [line.split() for line in log.read_text().splitlines()]
    return [(name, int(result)) for name, result in lines]


def points_of(words: Sequence[str | Path], log: Path, spread: int = 8, last: int = 4) -> list[int]:
    """Some points of a run, evenly spread, and each of the last calls."""
    count = sum(name != "decode" for name, _ in calls_of(words, log))
    steps = range(0, count, max(1, count // spread))
    return sorted({*steps, *range(max(0, count - last), count)})
