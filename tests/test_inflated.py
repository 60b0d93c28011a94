"""Clusters kept after they were inflated: content is the same, whatever is kept or cannot be."""

from __future__ import annotations

import errno
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from qcowdelta import inflated, open_image
from qcowdelta.ranges import RangeReader
from tests.support import qemu

MIB = 1 << 20
SIZE = 8 * MIB


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    qemu.require("qemu-img")
    path = tmp_path_factory.mktemp("inflated") / "disk.qcow2"
    raw = path.with_suffix(".raw")
    raw.write_bytes(np.random.default_rng(1).integers(0, 4, SIZE, np.uint8).tobytes())
    qemu.convert(raw, path, source_fmt="raw", target_fmt="qcow2", compressed=True)
    return path


def read_scattered(disk: Path) -> None:
    """Read ranges here and there, in four threads, and hold each against the disk."""
    content = disk.with_suffix(".raw").read_bytes()
    with open_image(disk) as image, ThreadPoolExecutor(4) as pool:
        reader = RangeReader(image)

        def read(seed: int) -> None:
            chance = np.random.default_rng(seed)
            for _ in range(40):
                start = chance.integers(0, SIZE - 1, 30)
                length = np.minimum(chance.integers(1, 200_000, 30), SIZE - start)
                parts = zip(start.tolist(), length.tolist(), strict=True)
                wanted = b"".join(content[i : i + n] for i, n in parts)
                assert bytes(reader.read(start, length)) == wanted

        for done in [pool.submit(read, seed) for seed in range(4)]:
            done.result()


@pytest.mark.slow
@pytest.mark.parametrize("clusters", [1, 3, 40, 1000])
def test_content_is_right_however_few_are_kept(
    disk: Path, clusters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inflated, "_ROOM", clusters << 16)
    read_scattered(disk)


def test_each_is_inflated_once_while_there_is_room(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = inflated.Inflated.keep

    def spy(self: inflated.Inflated, source: int, clusters: list[tuple[int, bytes]]) -> None:
        seen.extend(host for host, _ in clusters)
        real(self, source, clusters)

    monkeypatch.setattr(inflated.Inflated, "keep", spy)
    with open_image(disk) as image:
        reader = RangeReader(image)
        for start in (0, 5, SIZE // 2, 0):
            reader.read(np.array([start]), np.array([SIZE - start]))
    assert len(seen) == len(set(seen)) == SIZE >> 16


@pytest.mark.slow
def test_no_folder_for_temporary_files_is_no_error(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    read_scattered(disk)


@pytest.mark.slow
@pytest.mark.parametrize("written", [None, 0, 60_000], ids=["error", "nothing", "a part"])
def test_full_file_system_is_no_error(
    disk: Path, written: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.pwritev, []

    def full(fd: int, content: list[bytes], offset: int) -> int:
        calls.append(offset)
        if len(calls) < 10:
            return real(fd, content, offset)
        if written is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return os.pwrite(fd, b"".join(content)[:written], offset)

    monkeypatch.setattr(os, "pwritev", full)
    read_scattered(disk)
    assert len(calls) == 10


@pytest.mark.slow
@pytest.mark.parametrize("clusters", [0, 1, 5])
def test_no_more_is_taken_than_an_eighth_of_what_is_free(
    disk: Path, clusters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = clusters << 16
    real, ends = os.pwritev, [0]

    def watched(fd: int, content: list[bytes], offset: int) -> int:
        ends.append(offset + sum(map(len, content)))
        return real(fd, content, offset)

    monkeypatch.setattr(os, "fstatvfs", lambda fd: SimpleNamespace(f_bavail=8 * room, f_frsize=1))
    monkeypatch.setattr(os, "pwritev", watched)
    read_scattered(disk)
    assert max(ends) == room


@pytest.mark.slow
@pytest.mark.parametrize("what", ["error", "short"])
def test_kept_file_that_cannot_be_read_is_no_error(
    disk: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.preadv

    def broken(fd: int, buffers: list[memoryview], offset: int) -> int:
        if not os.readlink(f"/proc/self/fd/{fd}").endswith("(deleted)"):
            return real(fd, buffers, offset)
        if what == "error":
            raise OSError(errno.EIO, "Input/output error")
        return 0

    monkeypatch.setattr(os, "preadv", broken)
    read_scattered(disk)
