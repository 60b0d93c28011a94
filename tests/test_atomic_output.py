"""An output appears whole or not at all, and inputs stay as they are, whatever happens."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from qcowdelta import AtomicOutput, OpenPolicy, open_image
from qcowdelta.errors import OutputError
from tests.support import hostile, qemu
from tests.support.commandline import WAYS, other_name
from tests.support.hostile import MIB, command
from tests.support.killing import LIMIT, calls_of, killed_at, points_of

SIZE = 24 * MIB
CHANGED = 16 * MIB
PRECIOUS = b"what was there before"


@dataclass(frozen=True)
class Pair:
    """OLD and NEW as raw images that differ in CHANGED bytes, and where OUT goes."""

    old: Path
    new: Path
    output: Path

    def words(self, *more: str) -> list[str | Path]:
        return ["diff", self.old, self.new, "-o", self.output, "-q", *more]

    def beside_output(self) -> list[str]:
        """Everything in OUT's folder."""
        return sorted(os.listdir(self.output.parent))

    def is_whole(self) -> bool:
        policy = OpenPolicy(allow_paths=(self.old.parent,))
        with open_image(self.output, policy=policy) as image:
            return image.reader().read(0, image.size) == self.new.read_bytes()


def _pair(folder: Path, output: Path) -> Pair:
    old, new = folder / "old.raw", folder / "new.raw"
    with old.open("wb") as file:
        file.truncate(SIZE)
    content = bytearray(SIZE)
    content[4 * MIB : 4 * MIB + CHANGED] = os.urandom(CHANGED)
    new.write_bytes(content)
    return Pair(old, new, output)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """A pair, whose files must be the same afterwards, down to their times."""
    folder = tmp_path / "out"
    folder.mkdir()
    made = _pair(tmp_path, folder / "out.qcow2")
    before = [_state(path) for path in (made.old, made.new)]
    yield made
    assert [_state(path) for path in (made.old, made.new)] == before


def _state(path: Path) -> tuple[int, int, str]:
    info = path.stat()
    return info.st_mtime_ns, info.st_size, hashlib.sha256(path.read_bytes()).hexdigest()


def _start(pair: Pair, *more: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(*pair.words(*more)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


# --- killed --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_kill_at_any_write_leaves_nothing(pair: Pair, tmp_path: Path) -> None:
    points = points_of(pair.words(), tmp_path / "calls")
    pair.output.unlink()
    for point in points:
        assert killed_at(pair.words(), point, tmp_path / "calls") == -signal.SIGKILL
        if pair.output.exists():  # all that was left to do was to sync the folder
            assert pair.is_whole()
            pair.output.unlink()
        assert pair.beside_output() == [], point


@pytest.mark.slow
def test_kill_at_any_write_keeps_what_force_would_replace(pair: Pair, tmp_path: Path) -> None:
    pair.output.write_bytes(PRECIOUS)
    words, log = pair.words("--force"), tmp_path / "calls"
    calls = [name for name, _ in calls_of(words, log)]
    for point in points_of(words, log):
        pair.output.write_bytes(PRECIOUS)
        assert killed_at(words, point, log) == -signal.SIGKILL
        assert pair.output.read_bytes() == PRECIOUS or pair.is_whole(), point
        # Linux cannot give a file a name that is taken, so for a moment it has another.
        if calls[point] not in ("rename", "replace"):
            assert pair.beside_output() == [pair.output.name], point
        for name in pair.beside_output():
            (pair.output.parent / name).unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    "signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda signum: signum.name
)
def test_signal_at_any_time_leaves_nothing_or_all(pair: Pair, signum: signal.Signals) -> None:
    begun = time.monotonic()
    assert _start(pair).wait(LIMIT) == 0
    duration = time.monotonic() - begun
    count = 12 if signum == signal.SIGKILL else 5
    for number in range(count):
        pair.output.unlink(missing_ok=True)
        process = _start(pair)
        with process:
            time.sleep(duration * (0.3 + 0.7 * number / count))
            process.send_signal(signum)
            _, errors = process.communicate(timeout=LIMIT)
        assert b"Exception ignored" not in errors
        if pair.output.exists():
            assert pair.is_whole()
            assert pair.beside_output() == [pair.output.name]
        else:
            assert process.returncode != 0
            assert pair.beside_output() == []


# --- no space ------------------------------------------------------------------------------------


@pytest.fixture
def small_folder(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder with only so much space as the test's parameter says."""
    folder = tmp_path / "small"
    folder.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("mount is not installed")
    size = f"size={request.param}"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("mounting a small tmpfs needs root (CAP_SYS_ADMIN)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


SMALL = ["64k", "320k", "1m", "4m", "15m", "16m"]


@pytest.mark.slow
@pytest.mark.parametrize("small_folder", SMALL, indirect=True)
def test_no_space_ends_in_one_line_and_leaves_nothing(tmp_path: Path, small_folder: Path) -> None:
    pair = _pair(tmp_path, small_folder / "out.qcow2")
    before = [_state(path) for path in (pair.old, pair.new)]
    done = hostile.cli(*pair.words())
    assert pair.beside_output() == []
    assert shutil.disk_usage(small_folder).used == 0
    assert [_state(path) for path in (pair.old, pair.new)] == before
    _assert_failed(done, pair, errno.ENOSPC)


@pytest.mark.slow
@pytest.mark.parametrize("small_folder", ["64k", "4m"], indirect=True)
@pytest.mark.parametrize("compress", ["zlib", "zstd"])
def test_no_space_for_compressed_clusters_leaves_nothing(
    compress: str, tmp_path: Path, small_folder: Path
) -> None:
    pair = _pair(tmp_path, small_folder / "out.qcow2")
    done = hostile.cli(*pair.words("--compress", compress))
    assert pair.beside_output() == []
    _assert_failed(done, pair, errno.ENOSPC)


@pytest.mark.parametrize("small_folder", ["1m"], indirect=True)
def test_no_space_keeps_what_force_would_replace(tmp_path: Path, small_folder: Path) -> None:
    pair = _pair(tmp_path, small_folder / "out.qcow2")
    pair.output.write_bytes(PRECIOUS)
    done = hostile.cli(*pair.words("--force"))
    assert pair.output.read_bytes() == PRECIOUS
    assert pair.beside_output() == [pair.output.name]
    _assert_failed(done, pair, errno.ENOSPC)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [4096, 300_000, 2 * MIB, 15 * MIB])
def test_file_size_limit_ends_in_one_line_and_leaves_nothing(pair: Pair, limit: int) -> None:
    done = subprocess.run(
        command(*pair.words()), capture_output=True, check=False, timeout=LIMIT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 2
    assert pair.beside_output() == []
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1
    assert os.strerror(errno.EFBIG) in lines[0]
    assert pair.output.name in lines[0]


def _assert_failed(done: hostile.Outcome, pair: Pair, reason: int) -> None:
    assert done.status == 2
    assert len(done.lines) == 1, done.stderr
    assert pair.output.name in done.lines[0]
    assert os.strerror(reason) in done.lines[0]


# --- refused -------------------------------------------------------------------------------------


def _refused(pair: Pair, *more: str) -> str:
    done = hostile.cli(*pair.words(*more))
    assert done.status == 2
    assert len(done.lines) == 1, done.stderr
    return done.lines[0]


def test_existing_output_is_refused_without_force(pair: Pair) -> None:
    pair.output.write_bytes(PRECIOUS)
    assert "--force" in _refused(pair)
    assert pair.output.read_bytes() == PRECIOUS
    assert hostile.cli(*pair.words("--force")).status == 0
    assert pair.is_whole()
    assert pair.beside_output() == [pair.output.name]


def what_is_there(path: Path) -> tuple[int, ...]:
    """What a name stands for, and when it was changed; not when it was looked at."""
    info = path.lstat()
    return info.st_mode, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "fifo", "link", "dangling link"])
def test_what_is_no_regular_file_is_never_replaced(kind: str, pair: Pair, tmp_path: Path) -> None:
    target = tmp_path / "target"
    if kind == "folder":
        pair.output.mkdir()
    elif kind == "fifo":
        os.mkfifo(pair.output)
    else:
        if kind == "link":
            target.write_bytes(PRECIOUS)
        pair.output.symlink_to(target)
    before = what_is_there(pair.output)
    for more in ((), ("--force",)):
        assert pair.output.name in _refused(pair, *more)
        assert what_is_there(pair.output) == before
    assert target.exists() == (kind == "link")
    assert kind != "link" or target.read_bytes() == PRECIOUS


def test_missing_output_folder_is_named(pair: Pair, tmp_path: Path) -> None:
    lost = Pair(pair.old, pair.new, tmp_path / "nowhere" / "out.qcow2")
    assert "nowhere" in _refused(lost)
    assert not lost.output.parent.exists()


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("which", ["old", "new", "backing file", "data file"])
def test_input_is_never_overwritten(which: str, way: str, tmp_path: Path) -> None:
    qemu.require("qemu-img", "qemu-io")
    base, top, old = tmp_path / "base.raw", tmp_path / "top.qcow2", tmp_path / "old.raw"
    base.write_bytes(b"\x01" * MIB)
    old.write_bytes(bytes(MIB))
    if which == "data file":
        qemu.create(top, MIB, data_file=str(tmp_path / "top.data"))
        qemu.write(top, 0, 65536, 7)
    else:
        qemu.create(top, None, backing="base.raw", backing_fmt="raw")
    victim = {
        "old": old, "new": top, "backing file": base, "data file": tmp_path / "top.data",
    }[which]  # fmt: skip
    output = other_name(victim, way)
    before = {path: _state(path) for path in tmp_path.iterdir() if path.is_file()}
    for more in ((), ("--force",)):
        done = hostile.cli("diff", old, top, "-o", output, *more)
        assert done.status == 2
        assert len(done.lines) == 1
    assert "input" in done.lines[0]
    assert {path: _state(path) for path in tmp_path.iterdir() if path.is_file()} == before


def test_output_that_would_be_its_own_backing_file_is_refused(pair: Pair) -> None:
    assert "back" in _refused(pair, "--backing-name", pair.output.name)
    assert pair.beside_output() == []


@pytest.mark.slow
def test_two_at_once_have_one_winner(pair: Pair) -> None:
    for _ in range(3):
        pair.output.unlink(missing_ok=True)
        both = [_start(pair), _start(pair)]
        errors = [process.communicate(timeout=LIMIT)[1] for process in both]
        statuses = [process.returncode for process in both]
        assert sorted(statuses) == [0, 2]
        loser = errors[statuses.index(2)].decode().splitlines()
        assert len(loser) == 1
        assert pair.output.name in loser[0]
        assert "exists" in loser[0]
        assert pair.is_whole()
        assert pair.beside_output() == [pair.output.name]


# --- where files without a name are not supported ------------------------------------------------


@pytest.fixture
def no_tmpfile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system refuses O_TMPFILE, as some file systems do."""
    real = os.open

    def refuse(name: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), name)
        return real(name, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", refuse)


def _write(target: Path, force: bool, then: Callable[[], object]) -> None:
    with AtomicOutput(target, force=force) as out:
        out.write_at(b"half", 0)
        then()


def _lose() -> None:
    raise OSError("lost")


@pytest.mark.usefixtures("no_tmpfile")
@pytest.mark.parametrize("force", [False, True])
def test_named_temporary_file_is_removed_on_failure(force: bool, tmp_path: Path) -> None:
    target = tmp_path / "out"
    if force:
        target.write_bytes(PRECIOUS)
    with pytest.raises(OSError, match="lost"):
        _write(target, force, then=_lose)
    assert os.listdir(tmp_path) == (["out"] if force else [])
    assert not force or target.read_bytes() == PRECIOUS


@pytest.mark.usefixtures("no_tmpfile")
@pytest.mark.parametrize("force", [False, True])
def test_named_temporary_file_becomes_the_output(force: bool, tmp_path: Path) -> None:
    target = tmp_path / "out"
    if force:
        target.write_bytes(PRECIOUS)
    with AtomicOutput(target, force=force) as out:
        out.write_at(b"whole", 0)
    assert target.read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.usefixtures("no_tmpfile")
def test_name_taken_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(OutputError, match="exists"):
        _write(target, force=False, then=lambda: target.write_bytes(PRECIOUS))
    assert target.read_bytes() == PRECIOUS
    assert os.listdir(tmp_path) == ["out"]
