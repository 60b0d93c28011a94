"""QEMU's image locks: a writer's image is not read, ours is not written, others can go on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qcowdelta import OpenPolicy, open_image
from qcowdelta.errors import ImageLockedError
from tests.support import hostile, qemu
from tests.support.holders import HOLDERS, StartError
from tests.support.hostile import MIB

pytestmark = pytest.mark.usefixtures("qemu_tools")


@pytest.fixture
def qemu_tools() -> None:
    qemu.require("qemu-img", "qemu-io")


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """An image with a qcow2 backing file: top.qcow2 over base.qcow2."""
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    qemu.create(base, MIB)
    qemu.write(base, 0, MIB // 2, 0x11)
    qemu.create(top, None, backing="base.qcow2", backing_fmt="qcow2")
    qemu.write(top, 0, 65536, 0x22)
    return top


def _try_to_write(path: Path, fmt: str = "qcow2") -> str:
    """What QEMU says when it is to write into the image."""
    try:
        qemu.write(path, 0, 512, 0x33, fmt=fmt)
    except qemu.QemuError as error:
        return error.output
    return ""


def _has_open(pid: int, prefix: str) -> bool:
    """Whether a process has a file open whose name begins so; unnamed files have ``#NUMBER``."""
    with contextlib.suppress(FileNotFoundError):
        links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
        return any(link.startswith(prefix) for link in links)
    return False


@contextlib.contextmanager
def _held_by(holder: str, path: Path, fmt: str = "qcow2") -> Iterator[int]:
    """The image is held by a process of that kind."""
    tool, hold = HOLDERS[holder]
    qemu.require(tool)
    with hold(path, fmt) as pid:
        yield pid


@pytest.mark.slow
@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
@pytest.mark.parametrize("holder", HOLDERS)
def test_image_of_a_running_process_is_refused_with_what_to_do(
    holder: str, fmt: str, tmp_path: Path
) -> None:
    path, other = tmp_path / f"image.{fmt}", tmp_path / "other.raw"
    qemu.create(path, MIB, fmt=fmt)
    qemu.write(path, 0, 65536, 0x11, fmt=fmt)
    other.write_bytes(bytes(MIB))
    out = tmp_path / "out.qcow2"
    with _held_by(holder, path, fmt):
        for words in (
            ("diff", path, other, "-o", out),
            ("diff", other, path, "-o", out),
            ("inspect", other, path),
            ("info", path),
        ):
            done = hostile.cli(*words)
            assert done.status == 2
            assert len(done.lines) == 1
            assert path.name in done.lines[0]
            assert "in use" in done.lines[0]
            assert "qcowdelta live diff" in done.lines[0]
            assert "--force-share" in done.lines[0]
        assert not out.exists()
        # Nothing writes just now, so what is read all the same is consistent.
        assert hostile.cli("diff", "-U", other, path, "-o", out).status == 0
        assert hostile.cli("info", "-U", path).status == 0
    assert qemu.compare(out, path, "qcow2", fmt)
    assert hostile.cli("info", path).status == 0


@pytest.mark.slow
@pytest.mark.parametrize("holder", HOLDERS)
def test_backing_files_of_a_running_process_can_be_read(
    holder: str, chain: Path, tmp_path: Path
) -> None:
    base, other, out = chain.with_name("base.qcow2"), tmp_path / "other.raw", tmp_path / "out"
    other.write_bytes(bytes(MIB))
    with _held_by(holder, chain):
        assert hostile.cli("diff", other, base, "-o", out).status == 0
        assert hostile.cli("diff", base, chain, "-o", tmp_path / "none").status == 2
        assert hostile.cli("info", base).status == 0
        # It goes on as if nothing had been.
        with open_image(base) as image:
            assert image.reader().read(0, 2) == b"\x11\x11"
    assert qemu.compare(out, base, "qcow2", "qcow2")


@pytest.mark.parametrize("name", ["top.qcow2", "base.qcow2"])
@pytest.mark.parametrize("holder", HOLDERS)
def test_process_that_would_write_does_not_start_while_we_read(
    holder: str, name: str, chain: Path
) -> None:
    def start() -> None:
        with _held_by(holder, chain.with_name(name)):
            pass

    with open_image(chain), pytest.raises(StartError, match="lock"):
        start()
    with open_image(chain, policy=OpenPolicy(force_share=True)):
        start()
    start()


@pytest.mark.parametrize("holder", HOLDERS)
def test_process_over_what_we_read_starts(holder: str, chain: Path) -> None:
    """What lies under a new machine's disk may be read by others meanwhile."""
    with open_image(chain.with_name("base.qcow2")) as image:
        with _held_by(holder, chain):
            assert image.reader().read(0, 2) == b"\x11\x11"
        assert _try_to_write(chain) == ""


@pytest.mark.slow
@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_image_held_by_a_writer_is_refused(fmt: str, tmp_path: Path) -> None:
    path = tmp_path / f"image.{fmt}"
    qemu.create(path, MIB, fmt=fmt)
    with qemu.writer(path, fmt):
        with pytest.raises(ImageLockedError, match=r"in use.*--force-share"):
            open_image(path)
        other = tmp_path / "other.raw"
        other.write_bytes(bytes(MIB))
        for old, new in ((path, other), (other, path)):
            done = hostile.cli("diff", old, new, "-o", tmp_path / "out.qcow2")
            assert done.status == 2
            assert len(done.lines) == 1
            assert path.name in done.lines[0]
            assert "in use" in done.lines[0]
            assert "--force-share" in done.lines[0]
        for command in ("info", "check"):
            assert hostile.cli(command, path).status == 2
        assert not (tmp_path / "out.qcow2").exists()
    open_image(path).close()


def test_force_share_reads_what_a_writer_holds(chain: Path, tmp_path: Path) -> None:
    with qemu.writer(chain):
        with open_image(chain, policy=OpenPolicy(force_share=True)) as image:
            assert image.reader().read(0, 2) == b"\x22\x22"
        other, output = tmp_path / "other.raw", tmp_path / "out.qcow2"
        other.write_bytes(bytes(MIB))
        assert hostile.cli("diff", "-U", other, chain, "-o", output).status == 0
        assert hostile.cli("info", "-U", chain).status == 0
        assert hostile.cli("check", "--force-share", chain).status == 0
    assert qemu.compare(output, chain, "qcow2", "qcow2")


def test_force_share_takes_no_lock_of_its_own(chain: Path) -> None:
    with open_image(chain, policy=OpenPolicy(force_share=True)):
        assert _try_to_write(chain) == ""


@pytest.mark.parametrize("name", ["top.qcow2", "base.qcow2"])
def test_whole_chain_is_locked_while_it_is_read(name: str, chain: Path) -> None:
    path = chain.with_name(name)
    with open_image(chain):
        assert "lock" in _try_to_write(path)
        assert qemu.info(path)["format"] == "qcow2"
        assert qemu.map(path)
        assert qemu.check(path)["corruptions"] == 0
    assert _try_to_write(path) == ""


def test_data_file_is_locked_while_it_is_read(tmp_path: Path) -> None:
    path, data = tmp_path / "x.qcow2", tmp_path / "x.data"
    qemu.create(path, MIB, data_file=str(data))
    with open_image(path):
        assert "lock" in _try_to_write(path)
        assert "lock" in _try_to_write(data, "raw")
    with qemu.writer(data, "raw"), pytest.raises(ImageLockedError):
        open_image(path)


def test_writer_on_a_backing_file_is_noticed(chain: Path) -> None:
    base = chain.with_name("base.qcow2")
    with qemu.writer(base), pytest.raises(ImageLockedError, match=r"base\.qcow2"):
        open_image(chain)


def test_backing_file_of_an_image_in_use_can_be_read(chain: Path, tmp_path: Path) -> None:
    base, output = chain.with_name("base.qcow2"), tmp_path / "out.qcow2"
    other = tmp_path / "other.raw"
    other.write_bytes(bytes(MIB))
    with qemu.writer(chain):
        with open_image(base) as image:
            assert image.reader().read(0, 2) == b"\x11\x11"
        assert hostile.cli("diff", base, other, "-o", output).status == 0
        with pytest.raises(ImageLockedError):
            open_image(chain)


def test_two_readers_do_not_exclude_each_other(chain: Path) -> None:
    with open_image(chain), open_image(chain) as second:
        assert second.reader().read(0, 2) == b"\x22\x22"
        done = hostile.cli("inspect", chain, "--json")
        assert done.status == 0, done.stderr


def test_lock_ends_when_opening_fails(chain: Path) -> None:
    chain.with_name("base.qcow2").rename(chain.with_name("gone.qcow2"))
    with pytest.raises(Exception, match=r"base\.qcow2"):
        open_image(chain)
    chain.with_name("gone.qcow2").rename(chain.with_name("base.qcow2"))
    assert _try_to_write(chain) == ""


def test_lock_is_not_inherited_by_children(chain: Path) -> None:
    with open_image(chain):
        child = subprocess.Popen(["sleep", "20"], close_fds=False)
    try:
        assert _try_to_write(chain) == ""
    finally:
        child.kill()
        child.wait()


@pytest.mark.slow
def test_image_is_held_while_it_is_compared(tmp_path: Path) -> None:
    """Not only when it is opened: until the command ends."""
    old, new = tmp_path / "old.qcow2", tmp_path / "new.qcow2"
    for path, pattern in ((old, 1), (new, 2)):
        qemu.create(path, 256 * MIB)
        qemu.write(path, 0, 256 * MIB, pattern)
    argv = hostile.command("diff", old, new, "-o", tmp_path / "out.qcow2")
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    # A writer that comes first would win, so wait until the output has been begun.
    while process.poll() is None and not _has_open(process.pid, str(tmp_path / "#")):
        time.sleep(0.001)
    process.send_signal(signal.SIGSTOP)
    answer = _try_to_write(new)
    process.send_signal(signal.SIGCONT)
    assert process.wait() == 0
    assert "lock" in answer
    assert (tmp_path / "out.qcow2").exists()
