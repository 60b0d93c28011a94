"""Clusters kept after they were inflated: content is the same, whatever is kept or cannot be."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from qcowdelta import OpenPolicy, inflated, open_image
from qcowdelta.ranges import RangeReader
from tests.support import qemu
from tests.support.killing import LIMIT

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


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many parts each reading found kept."""
    found: list[int] = []
    real = inflated.Inflated.read

    def spy(
        self: inflated.Inflated, source: int, parts: list[inflated.Part], buffer: memoryview
    ) -> list[int]:
        missing = real(self, source, parts, buffer)
        found.append(len(parts) - len(missing))
        return missing

    monkeypatch.setattr(inflated.Inflated, "read", spy)
    return found


def read_scattered(disk: Path) -> None:
    """Read ranges here and there, in four threads, and hold each against the disk."""
    content = disk.with_name("disk.raw").read_bytes()
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
    disk: Path, clusters: int, served: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inflated, "_ROOM", clusters << 16)
    read_scattered(disk)
    assert sum(served) > 0


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
    disk: Path, what: str, served: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, broke = os.preadv, []

    def broken(fd: int, buffers: list[memoryview], offset: int) -> int:
        if not os.readlink(f"/proc/self/fd/{fd}").endswith("(deleted)"):
            return real(fd, buffers, offset)
        broke.append(offset)
        if what == "error":
            raise OSError(errno.EIO, "Input/output error")
        return 0

    monkeypatch.setattr(os, "preadv", broken)
    read_scattered(disk)
    assert broke
    assert sum(served) == 0


@pytest.mark.slow
def test_a_cluster_takes_its_own_size_whatever_other_layers_have(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = tmp_path / "top.qcow2"
    qemu.create(top, SIZE, cluster_size="2M", backing=disk, backing_fmt="qcow2")
    real = os.pwritev
    lengths: list[int] = []

    def watched(fd: int, content: list[bytes], offset: int) -> int:
        lengths.extend(map(len, content))
        return real(fd, content, offset)

    monkeypatch.setattr(os, "pwritev", watched)
    with open_image(top, policy=OpenPolicy(allow_paths=(disk.parent,))) as image:
        reader = RangeReader(image)
        assert bytes(reader.read(np.array([0]), np.array([SIZE]))) == (
            disk.with_name("disk.raw").read_bytes()
        )
    assert set(lengths) == {1 << 16}


@pytest.mark.slow
def test_few_are_held_at_once_however_small_their_payloads_are(tmp_path: Path) -> None:
    """Payloads of a hundred bytes that are clusters of 2 MiB: a little of each is wanted."""
    raw, path, count = tmp_path / "raw", tmp_path / "small.qcow2", 64
    with raw.open("wb") as file:
        for number in range(count):
            file.write(bytes([number + 1]) * (2 * MIB))
    qemu.require("qemu-img")
    qemu.convert(raw, path, source_fmt="raw", target_fmt="qcow2", compressed=True,
                 cluster_size="2M")  # fmt: skip
    with open_image(path) as image:
        reader = RangeReader(image)
        tracemalloc.start()
        try:
            start = np.arange(count) * 2 * MIB
            found = bytes(reader.read(start, np.full(count, 16)))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert found == b"".join(bytes([number + 1]) * 16 for number in range(count))
    assert peak < 24 * MIB


def test_closed_while_it_is_used_it_keeps_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, real = inflated.Inflated(4096, tmp_path), os.pwritev
    writing, closing = threading.Event(), threading.Event()

    def slow(fd: int, content: list[bytes], offset: int) -> int:
        writing.set()
        closing.wait(LIMIT)
        return real(fd, content, offset)

    monkeypatch.setattr(os, "pwritev", slow)
    with ThreadPoolExecutor(2) as pool:
        keeping = pool.submit(kept.keep, 1, [(0, bytes(4096))])
        assert writing.wait(LIMIT)
        ended = pool.submit(kept.close)
        closing.set()
        keeping.result(LIMIT)
        ended.result(LIMIT)
    before = os.listdir("/proc/self/fd")
    kept.keep(1, [(4096, bytes(4096))])
    assert os.listdir("/proc/self/fd") == before
    assert kept.read(1, [(0, 0, 8, 0), (4096, 0, 8, 8)], memoryview(bytearray(16))) == [0, 1]
