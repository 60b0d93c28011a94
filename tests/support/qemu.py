"""Thin wrappers over QEMU's tools, which judge everything the tests assert.

The programs are found on PATH, or where QCOWDELTA_QEMU_IMG, QCOWDELTA_QEMU_IO, QCOWDELTA_QEMU_NBD,
QCOWDELTA_QEMU_STORAGE_DAEMON and QCOWDELTA_QEMU_SYSTEM say, so that one test run can be pointed at
another QEMU.

QEMU looks for a relative *data-file* name in its working folder, not in the image's. Every wrapper
therefore runs in the folder of its (first) image, where the name's other reading agrees.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

Tool = Literal["qemu-img", "qemu-io", "qemu-nbd", "qemu-storage-daemon", "qemu-system"]
Option = str | int | bool
Command = str

TIMEOUT = 120.0

_TOOLS: dict[Tool, tuple[str, str]] = {
    "qemu-img": ("QCOWDELTA_QEMU_IMG", "qemu-img"),
    "qemu-io": ("QCOWDELTA_QEMU_IO", "qemu-io"),
    "qemu-nbd": ("QCOWDELTA_QEMU_NBD", "qemu-nbd"),
    "qemu-storage-daemon": ("QCOWDELTA_QEMU_STORAGE_DAEMON", "qemu-storage-daemon"),
    "qemu-system": ("QCOWDELTA_QEMU_SYSTEM", "qemu-system-x86_64"),
}


class QemuError(Exception):
    """A QEMU tool failed: its command line, exit status and what it printed."""

    def __init__(self, argv: Sequence[str], status: int, output: str) -> None:
        super().__init__(f"{' '.join(argv)}: exit {status}: {output.strip()}")
        self.status = status
        self.output = output


def program(tool: Tool) -> str:
    """The name or path by which `tool` is started."""
    variable, default = _TOOLS[tool]
    return os.environ.get(variable) or default


def has(tool: Tool) -> bool:
    """Whether `tool` can be started here."""
    return shutil.which(program(tool)) is not None


def require(*tools: Tool) -> None:
    """Skip the calling test, naming the tool, unless all of `tools` are here."""
    for tool in tools:
        if not has(tool):
            pytest.skip(f"{program(tool)} is not installed (see {_TOOLS[tool][0]})")


def version(tool: Tool = "qemu-img") -> tuple[int, ...]:
    """The version `tool` reports, as (7, 2, 22)."""
    found = re.search(r"version (\d+(?:\.\d+)+)", run([program(tool), "--version"]))
    if found is None:
        raise QemuError([program(tool), "--version"], 0, "no version in the output")
    return tuple(int(part) for part in found.group(1).split("."))


def run(
    argv: Sequence[str], *, accept: Iterable[int] = (0,), cwd: Path | None = None, stdin: str = ""
) -> str:
    """Run `argv` and return its standard output; any status not in `accept` raises QemuError."""
    return _run(argv, accept=accept, cwd=cwd, stdin=stdin)[1]


def _run(
    argv: Sequence[str], *, accept: Iterable[int] = (0,), cwd: Path | None = None, stdin: str = ""
) -> tuple[int, str]:
    done = subprocess.run(
        argv, input=stdin, capture_output=True, text=True, errors="replace", timeout=TIMEOUT,
        cwd=cwd, check=False,
    )  # fmt: skip
    if done.returncode not in accept:
        raise QemuError(argv, done.returncode, done.stderr + done.stdout)
    return done.returncode, done.stdout


def _run_on(
    path: Path, argv: Sequence[str], *after: str, accept: Iterable[int] = (0,)
) -> tuple[int, str]:
    """Run `argv`, then `path`, then `after`, in the folder of `path`."""
    path = path.absolute()
    return _run([*argv, str(path), *after], accept=accept, cwd=path.parent)


def option_list(options: dict[str, Option]) -> list[str]:
    """`-o` with the options in QEMU's spelling, or nothing."""
    if not options:
        return []
    return ["-o", ",".join(f"{key}={_option(value)}" for key, value in options.items())]


def _option(value: Option) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value).replace(",", ",,")


def create(
    path: Path,
    size: int | None,
    *,
    fmt: str = "qcow2",
    backing: str | Path | None = None,
    backing_fmt: str | None = None,
    unsafe: bool = False,
    **options: Option,
) -> None:
    """Make an empty image; `unsafe` records the backing name without opening it."""
    argv = [program("qemu-img"), "create", "-q", "-f", fmt, *option_list(options)]
    argv += ["-u"] if unsafe else []
    if backing is not None:
        argv += ["-b", str(backing)]
        argv += ["-F", backing_fmt] if backing_fmt is not None else []
    _run_on(path, argv, *([] if size is None else [str(size)]))


# qemu-io commands, to be run many at a time.


def write_command(offset: int, length: int, pattern: int, *, flags: str = "") -> Command:
    """`write` of a repeated byte; `flags` go to qemu-io as they are, `-c` or `-f` say."""
    return _command("write", flags, f"-P {pattern}", offset, length)


def write_file_command(offset: int, length: int, source: Path, *, compressed: bool = False) -> str:
    """`write` of the bytes of `source`, repeated as needed; qemu-io allows no space in its name."""
    if " " in str(source):
        raise ValueError(f"qemu-io cannot be given a file name with a space: {source}")
    return _command("write", "-c" if compressed else "", f"-s {source}", offset, length)


def zero_command(offset: int, length: int, *, unmap: bool = False) -> Command:
    """`write -z`, with -u where the clusters may be unmapped."""
    return _command("write", "-z -u" if unmap else "-z", "", offset, length)


def discard_command(offset: int, length: int) -> Command:
    """`discard` of a range."""
    return _command("discard", "", "", offset, length)


def truncate_command(size: int) -> Command:
    """`truncate`: resize, growing or shrinking, within a batch."""
    return f"truncate {size}"


def _command(name: str, flags: str, source: str, offset: int, length: int) -> Command:
    words = [name, "-q", flags, source, str(offset), str(length)]
    return " ".join(word for word in words if word)


def io(
    path: Path, commands: Sequence[Command], *, fmt: str = "qcow2", accept: Iterable[int] = (0,)
) -> str:
    """Run `commands` on one image in one qemu-io process, discards honoured, nothing synced."""
    if not commands:
        return ""
    argv = [program("qemu-io"), "-t", "unsafe", "-d", "unmap", "-f", fmt]
    for command in commands:
        argv += ["-c", command]
    return _run_on(path, argv, accept=accept)[1]


def write(
    path: Path, offset: int, length: int, pattern: int, *, flags: str = "", fmt: str = "qcow2"
) -> None:
    """Write one byte over a range."""
    io(path, [write_command(offset, length, pattern, flags=flags)], fmt=fmt)


def write_bytes(
    path: Path, offset: int, data: bytes, *, compressed: bool = False, fmt: str = "qcow2"
) -> None:
    """Write `data` at `offset`."""
    with tempfile.NamedTemporaryFile(prefix="qcowdelta-") as source:
        source.write(data)
        source.flush()
        command = write_file_command(offset, len(data), Path(source.name), compressed=compressed)
        io(path, [command], fmt=fmt)


def write_compressed(path: Path, offset: int, length: int, pattern: int) -> None:
    """Write a compressed range: whole clusters, of which none is allocated yet."""
    write(path, offset, length, pattern, flags="-c")


def zero(path: Path, offset: int, length: int, *, unmap: bool = False, fmt: str = "qcow2") -> None:
    """Write zeros by metadata where the format can."""
    io(path, [zero_command(offset, length, unmap=unmap)], fmt=fmt)


def discard(path: Path, offset: int, length: int, *, fmt: str = "qcow2") -> None:
    """Discard a range."""
    io(path, [discard_command(offset, length)], fmt=fmt)


def snapshot(path: Path, name: str, *, action: Literal["-c", "-a", "-d"] = "-c") -> None:
    """Create (-c), apply (-a) or delete (-d) an internal snapshot."""
    _run_on(path, [program("qemu-img"), "snapshot", "-q", action, name])


def resize(path: Path, size: int, *, fmt: str = "qcow2") -> None:
    """Grow or shrink."""
    _run_on(path, [program("qemu-img"), "resize", "-q", "-f", fmt, "--shrink"], str(size))


def convert(
    source: Path,
    target: Path,
    *,
    source_fmt: str,
    target_fmt: str,
    snapshot: str | None = None,
    compressed: bool = False,
    backing: str | Path | None = None,
    backing_fmt: str | None = None,
    **options: Option,
) -> None:
    """Copy the guest content of `source` into a new image.

    With `snapshot` that one's, but as long as the active state: QEMU takes no other size.
    """
    argv = [program("qemu-img"), "convert", "-q", "-f", source_fmt, "-O", target_fmt]
    argv += ["-c"] if compressed else []
    argv += ["-l", f"snapshot.name={snapshot}"] if snapshot is not None else []
    if backing is not None:
        argv += ["-B", str(backing)]
        argv += ["-F", backing_fmt] if backing_fmt is not None else []
    _run_on(source, [*argv, *option_list(options)], str(target.absolute()))


def rebase(
    path: Path, backing: str | Path, backing_fmt: str, *, unsafe: bool = False, fmt: str = "qcow2"
) -> None:
    """Give `path` another backing file; `unsafe` changes the name only."""
    argv = [program("qemu-img"), "rebase", "-q", "-f", fmt, "-b", str(backing), "-F", backing_fmt]
    _run_on(path, [*argv, *(["-u"] if unsafe else [])])


def amend(path: Path, *, fmt: str = "qcow2", **options: Option) -> None:
    """Change options of an image in place."""
    argv = [program("qemu-img"), "amend", "-q", "-f", fmt]
    _run_on(path, [*argv, *option_list(options)])


def compare(a: Path, b: Path, fmt_a: str, fmt_b: str, *, strict: bool = False) -> bool:
    """Whether both read the same; unless `strict`, a longer tail of zeros is no difference."""
    argv = [program("qemu-img"), "compare", "-q", "-f", fmt_a, "-F", fmt_b]
    argv += ["-s"] if strict else []
    status, _ = _run_on(a, argv, str(b.absolute()), accept=(0, 1))
    return status == 0


def check(path: Path, *, fmt: str = "qcow2") -> dict[str, Any]:
    """`qemu-img check` as JSON; `corruptions` and `leaks` are always there."""
    argv = [program("qemu-img"), "check", "-f", fmt, "--output=json"]
    report: dict[str, Any] = json.loads(_run_on(path, argv, accept=(0, 2, 3))[1])
    return {"corruptions": 0, "leaks": 0, **report}


def info(path: Path, *, fmt: str | None = None, force_share: bool = False) -> dict[str, Any]:
    """`qemu-img info` of this file alone, as JSON."""
    argv = [program("qemu-img"), "info", "--output=json"]
    argv += ["-f", fmt] if fmt is not None else []
    argv += ["-U"] if force_share else []
    report: dict[str, Any] = json.loads(_run_on(path, argv)[1])
    return report


def map(  # noqa: A001 -- named as the qemu-img command is
    path: Path, fmt: str = "qcow2", snapshot: str | None = None
) -> list[dict[str, Any]]:
    """`qemu-img map` as JSON; a snapshot's map is that of a copy with the snapshot applied."""
    if snapshot is not None:
        with _snapshot_copy(path, snapshot) as copied:
            return map(copied, fmt)
    argv = [program("qemu-img"), "map", "-f", fmt, "--output=json"]
    extents: list[dict[str, Any]] = json.loads(_run_on(path, argv)[1])
    return extents


@contextmanager
def _snapshot_copy(path: Path, name: str) -> Iterator[Path]:
    """A copy beside `path` (relative backing names must resolve) with the snapshot applied."""
    copied = path.with_name(f".{path.name}.{os.getpid()}.applied")
    shutil.copyfile(path, copied)
    try:
        snapshot(copied, name, action="-a")
        yield copied
    finally:
        copied.unlink()


def read_guest(path: Path, fmt: str, snapshot: str | None = None) -> bytes:
    """All guest bytes, as `qemu-img convert -O raw` gives them.

    A snapshot is applied to a copy first: `convert -l` cuts it at the active state's size.
    """
    if snapshot is not None:
        with _snapshot_copy(path, snapshot) as copied:
            return read_guest(copied, fmt)
    with tempfile.TemporaryDirectory(prefix="qcowdelta-") as folder:
        target = Path(folder, "guest.raw")
        convert(path, target, source_fmt=fmt, target_fmt="raw")
        return target.read_bytes()


def bitmap(path: Path, name: str, *actions: str, granularity: int | None = None) -> None:
    """`qemu-img bitmap`: the actions are its options, and --add where there are none."""
    argv = [program("qemu-img"), "bitmap", *(actions or ["--add"])]
    argv += [] if granularity is None else ["-g", str(granularity)]
    _run_on(path, [*argv, "-f", "qcow2"], name)


def dirty_ranges(path: Path, bitmap: str) -> list[tuple[int, int]]:
    """The (start, length) ranges a persistent bitmap marks, as qemu-nbd exports them."""
    with tempfile.TemporaryDirectory(prefix="qcowdelta-") as folder:
        socket = Path(folder, "nbd")
        argv = [program("qemu-nbd"), "-r", "-f", "qcow2", "-B", bitmap, "-k", str(socket)]
        path = path.absolute()
        server = subprocess.Popen([*argv, str(path)], stderr=subprocess.PIPE, cwd=path.parent)
        try:
            _await(socket, server)
            return _dirty_over_nbd(socket, bitmap)
        finally:
            server.terminate()
            server.communicate()


def _dirty_over_nbd(socket: Path, bitmap: str) -> list[tuple[int, int]]:
    where = f"driver=nbd,server.type=unix,server.path={socket}"
    image = f"{where},x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}"
    argv = [program("qemu-img"), "map", "--image-opts", "--output=json", image]
    return [(e["start"], e["length"]) for e in json.loads(run(argv)) if not e["data"]]


def _await(socket: Path, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 10
    while not socket.exists():
        if server.poll() is not None or time.monotonic() > deadline:
            errors = server.stderr.read().decode() if server.stderr and server.poll() else ""
            raise QemuError([program("qemu-nbd")], server.returncode or -1, errors)
        time.sleep(0.01)


@contextlib.contextmanager
def writer(path: Path, fmt: str = "qcow2") -> Iterator[None]:
    """A qemu-io that has the image open for writing until the block ends."""
    process = subprocess.Popen(
        [program("qemu-io"), "-f", fmt, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(b"length\n")  # answered once the image is open
        process.stdin.flush()
        deadline, answer = time.monotonic() + 10, b""
        while b"iB" not in answer and b"bytes" not in answer:
            answer += os.read(process.stdout.fileno(), 4096)
            assert process.poll() is None, answer
            assert time.monotonic() < deadline, answer
        yield
        assert process.poll() is None
    finally:
        process.communicate(b"quit\n", timeout=10)
