"""Content that QEMU says lies in a file as it is, and is read there: the same as through QEMU."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcowdelta import Image, OpenPolicy, open_image
from qcowdelta.extents import Kind
from qcowdelta.hostfile import HostFile
from qcowdelta.qemu import placement
from qcowdelta.qemu.image import DaemonFile, QemuLayer
from qcowdelta.qemu.placement import told_runs
from qcowdelta.qemu.vhdx import ZEROS, Vhdx
from qcowdelta.secret import Secret
from tests.support import foreign, qemu
from tests.support.foreign import KIB, MIB, SIZE, VARIANTS, Variant

pytestmark = pytest.mark.slow

IMG = "QCOWDELTA_QEMU_IMG"
PLACED = (
    *("parallels", "qed", "vdi", "vdi-static", "vpc", "vpc-chs", "vpc-fixed"),
    *("vhdx", "vhdx-fixed"),
    *("vmdk-monolithicFlat", "vmdk-monolithicSparse"),
    *("vmdk-twoGbMaxExtentFlat", "vmdk-twoGbMaxExtentSparse"),  # so small that there is one extent
)


@pytest.fixture(scope="module", autouse=True)
def qemu_tools() -> None:
    qemu.require("qemu-img", "qemu-io", "qemu-storage-daemon")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("placement")
    foreign.secret_file(folder)
    return foreign.write_pair(folder)[1]


def made(raw: Path, folder: Path, name: str) -> Path:
    return VARIANTS[name].make(raw, folder / f"image.{VARIANTS[name].format}")


def opened(path: Path, variant: Variant, **more: Any) -> Image:
    return open_image(path, format=variant.format, policy=OpenPolicy(**more))


def content_of(image: Image) -> DaemonFile:
    layer = image.layers[0]
    assert isinstance(layer, QemuLayer)
    assert isinstance(layer.source.file, DaemonFile)
    return layer.source.file


def placed_bytes(image: Image) -> int:
    """How many bytes of an image are read in its file."""
    placed = content_of(image)._placed
    if placed is None:
        return 0
    parts = placed.split(0, image.size)
    return sum(end - begin for begin, end, host in parts if host is not None and host != ZEROS)


def direct(image: Image, begin: int, length: int) -> bytes:
    """What the file of an image has from an offset on, zeros by metadata not being skipped."""
    buffer = bytearray(length)
    content_of(image).read_into(memoryview(buffer), begin)
    return bytes(buffer)


@pytest.mark.parametrize("name", PLACED)
def test_what_is_placed_is_read_right_without_the_daemon(
    name: str, raw: Path, tmp_path: Path
) -> None:
    variant, expected = VARIANTS[name], raw.read_bytes()
    with opened(made(raw, tmp_path, name), variant) as image:
        assert placed_bytes(image) >= MIB
        assert image.reader().read(0, SIZE) == expected
        daemon = image.layers[0]._daemon  # type: ignore[attr-defined]
        os.kill(daemon._child.pid, signal.SIGSTOP)
        try:
            assert image.reader().read(0, 512 * KIB) == expected[: 512 * KIB]
            assert image.reader().read(MIB + 513, 1025) == expected[MIB + 513 : MIB + 1538]
        finally:
            os.kill(daemon._child.pid, signal.SIGCONT)


@pytest.mark.parametrize("name", sorted(set(VARIANTS) - set(PLACED)))
def test_what_is_coded_or_not_told_goes_through_the_daemon(
    name: str, raw: Path, tmp_path: Path
) -> None:
    variant = VARIANTS[name]
    secret = None
    if variant.encrypt is not None:
        secret = Secret.read(foreign.secret_file(tmp_path))
    with opened(made(raw, tmp_path, name), variant, secret=secret) as image:
        assert placed_bytes(image) == 0
        assert direct(image, 0, SIZE) == raw.read_bytes()


@pytest.mark.parametrize("name", ["vdi", "vmdk-monolithicSparse", "vpc"])
def test_odd_ranges_and_windows_change_nothing(
    name: str, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows that end within a run, and are forgotten and asked for again."""
    monkeypatch.setattr(placement, "WINDOW", MIB // 2 + 4 * KIB)
    monkeypatch.setattr(placement, "_WINDOWS", 2)
    expected = raw.read_bytes()
    with opened(made(raw, tmp_path, name), VARIANTS[name]) as image:
        for begin in (0, 1, 2 * MIB - 77, 511, 3 * MIB, MIB + 1):
            length = min(MIB + 12345, SIZE - begin)
            assert direct(image, begin, length) == expected[begin : begin + length]
        beyond = image.size - SIZE + 1000
        assert direct(image, SIZE - 100, 100 + beyond) == bytes(100 + beyond)


@pytest.mark.parametrize("block", [1, 2, 32, 256])
def test_vhdx_blocks_are_found_behind_the_bitmaps_between_them(block: int, tmp_path: Path) -> None:
    """After 4 GiB, whatever the block size, an entry of the table is no block's."""
    path, gib = tmp_path / "far.vhdx", 1 << 30
    qemu.create(path, 10 * gib, fmt="vhdx", block_size=block * MIB)
    places = (0, 4 * gib - MIB, 4 * gib, 8 * gib + 3 * MIB)
    for number, place in enumerate(places, 1):
        qemu.write(path, place, MIB, number, fmt="vhdx")
    with opened(path, VARIANTS["vhdx"]) as image:
        assert placed_bytes(image) == len({at // (block * MIB) for at in places}) * block * MIB
        for number, place in enumerate(places, 1):
            assert image.reader().read(place, MIB) == bytes([number]) * MIB
            assert direct(image, place, MIB) == bytes([number]) * MIB
        assert image.reader().read(gib, MIB) == direct(image, gib, MIB) == bytes(MIB)
        assert image.extents(gib, 2 * gib)["kind"].tolist() == [Kind.ZERO]
        assert image.next_mapped(image.size - MIB) == image.size


def test_vhdx_tables_tell_no_more_than_the_range(tmp_path: Path) -> None:
    path = tmp_path / "one.vhdx"
    qemu.create(path, 64 * MIB, fmt="vhdx", block_size=MIB)
    qemu.write(path, 5 * MIB, MIB, 7, fmt="vhdx")
    with contextlib.closing(HostFile.open(path)) as file:
        assert Vhdx(file).size == 64 * MIB
        runs = Vhdx(file).runs(0, 64 * MIB)
        host = int(runs[1, 2])
        assert runs.tolist() == [
            [0, 5 * MIB, ZEROS],
            [5 * MIB, 6 * MIB, host],
            [6 * MIB, 64 * MIB, ZEROS],
        ]
        assert file.read(host, MIB) == b"\7" * MIB
        assert Vhdx(file).runs(60 * MIB, 128 * MIB).tolist() == [[60 * MIB, 64 * MIB, ZEROS]]
        assert not Vhdx(file).runs(128 * MIB, 256 * MIB).size


def test_vhdx_tells_nothing_of_the_rest_of_a_block_behind_the_disks_end(tmp_path: Path) -> None:
    path, size = tmp_path / "short.vhdx", 5 * MIB
    qemu.create(path, size, fmt="vhdx", block_size=8 * MIB)
    qemu.write(path, 4 * MIB, MIB, 7, fmt="vhdx")
    with contextlib.closing(HostFile.open(path)) as file:
        runs = Vhdx(file).runs(0, 8 * MIB)
    assert runs[:, :2].tolist() == [[0, size]]
    with path.open("r+b") as file:  # what an earlier, larger disk may have left there
        file.seek(int(runs[0, 2]) + size)
        file.write(b"\5" * MIB)
    with opened(path, VARIANTS["vhdx"]) as image:
        buffer = memoryview(bytearray(2 * MIB))
        content_of(image).read_into(buffer, 4 * MIB)
    assert bytes(buffer) == b"\7" * MIB + bytes(MIB)


def test_several_files_are_not_told_apart_so_none_is_read(tmp_path: Path) -> None:
    """Offsets are told without the file that they are of."""
    for number in (1, 2):
        (tmp_path / f"part{number}").write_bytes(bytes([number]) * MIB)
    head = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n"
    head += 'createType="twoGbMaxExtentFlat"\n'
    extents = 'RW 2048 FLAT "part1" 0\nRW 1024 FLAT "part2" 1024\n'
    path = tmp_path / "two.vmdk"
    path.write_text(head + extents)
    with open_image(path) as image:
        assert placed_bytes(image) == 0
        assert image.reader().read(0, image.size) == b"\1" * MIB + b"\2" * (MIB // 2)


def test_extents_of_one_file_are_read_where_each_lies(tmp_path: Path) -> None:
    data = os.urandom(MIB)
    (tmp_path / "part").write_bytes(data)
    head = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n"
    head += 'createType="twoGbMaxExtentFlat"\n'
    extents = 'RW 512 FLAT "part" 1024\nRW 1024 FLAT "part" 0\n'
    path = tmp_path / "one.vmdk"
    path.write_text(head + extents)
    with open_image(path) as image:
        assert placed_bytes(image) == 768 * KIB
        assert image.reader().read(0, image.size) == data[512 * KIB : 768 * KIB] + data[: MIB // 2]


def test_what_would_lie_beyond_the_end_of_the_file_is_the_daemons(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made(raw, tmp_path, "vdi")
    os.truncate(path, path.stat().st_size - 100 * KIB)
    with opened(path, VARIANTS["vdi"]) as image:
        assert 0 < placed_bytes(image) < placed_bytes_of_whole(raw, tmp_path)
        ours = direct(image, 0, SIZE)
    monkeypatch.setenv(IMG, "/nonexistent/program")
    with opened(path, VARIANTS["vdi"]) as image:
        assert direct(image, 0, SIZE) == ours


def placed_bytes_of_whole(raw: Path, folder: Path) -> int:
    path = VARIANTS["vdi"].make(raw, folder / "whole.vdi")
    with opened(path, VARIANTS["vdi"]) as image:
        return placed_bytes(image)


@pytest.mark.parametrize(
    "script",
    [
        "exec sleep 60",
        "exit 1",
        "echo '[]'; exit 1",
        "echo nonsense",
        "echo '[{\"start\": 0}]'",
        "exec head -c 40000000 /dev/zero",
        None,
    ],
)
def test_without_an_answer_all_is_read_through_the_daemon(
    script: str | None, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made(raw, tmp_path, "vdi")
    fake = tmp_path / "img"
    if script is not None:
        fake.write_text(f"#!/bin/sh\n{script}\n")
        fake.chmod(0o755)
    monkeypatch.setenv(IMG, str(fake))
    monkeypatch.setattr(placement, "TIMEOUT", 1.0)
    with opened(path, VARIANTS["vdi"]) as image:
        assert placed_bytes(image) == 0
        assert image.reader().read(0, SIZE) == raw.read_bytes()


def test_what_does_not_answer_is_not_asked_again(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, asked = made(raw, tmp_path, "vdi"), tmp_path / "asked"
    fake = tmp_path / "img"
    fake.write_text(f"#!/bin/sh\necho >>{asked}\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv(IMG, str(fake))
    monkeypatch.setattr(placement, "WINDOW", MIB)
    with opened(path, VARIANTS["vdi"]) as image:
        assert direct(image, 0, SIZE) == raw.read_bytes()
    assert asked.read_text() == "\n"


def entry(start: int, length: int, **more: Any) -> dict[str, Any]:
    known = {"start": start, "length": length, "depth": 0, "zero": False, "data": True}
    return {**known, "present": True, **more}


def test_only_what_lies_as_it_is_inside_of_the_file_is_taken() -> None:
    told = [
        entry(0, 512, offset=1024),
        entry(512, 512),  # compressed or encrypted
        entry(1024, 512, offset=0, compressed=True),
        entry(1536, 512, offset=0, zero=True),
        entry(2048, 512, offset=0, data=False),
        entry(2560, 512, offset=0, depth=1),
        entry(3072, 512, offset=4096 - 512),
        entry(3584, 512, offset=4096 - 511),
        entry(4096, 512, offset=-512),
        entry(4608, 512, offset=(1 << 63) - 1),
        entry(5120, 8192, offset=1024),
    ]
    expected = [
        [0, 512, 1024],
        [3072, 3584, 3584],
        [3584, 4095, 3585],
        [5120, 8192, 1024],
    ]
    found = placement._inside(told_runs(json.loads(json.dumps(told)), 0), 4096)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    "told",
    [
        None,
        7,
        [7],
        {"start": 0},
        [{"start": 0, "length": 512}],
        [entry(0, 1 << 70, offset=0)],
        [entry(0, 512, offset="x")],
        [entry(0, -512, offset=0)],
        [entry(512, 512, offset=0), entry(0, 512, offset=512)],
        [entry(0, 1024, offset=0), entry(512, 512, offset=512)],
        [entry(-512, 512, offset=0)],
    ],
)
def test_answer_that_makes_no_sense_is_not_believed(told: object) -> None:
    with pytest.raises(ValueError, match="it is"):
        told_runs(told, 0)
