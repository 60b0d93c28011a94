"""Reading many ranges at once: each comes out as the disk has it, whatever the others are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qcowdelta import open_image
from qcowdelta.ranges import RangeReader
from tests.support import qemu

MIB = 1 << 20
SIZE = 200 * MIB - 512


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data here and there, some of it where the reader's windows of 64 MiB meet."""
    path = tmp_path_factory.mktemp("ranges") / "disk.raw"
    chance = np.random.default_rng(3)
    with path.open("wb") as file:
        file.truncate(SIZE)
        for start in (0, 63 * MIB, 100 * MIB, 127 * MIB, 191 * MIB, SIZE - MIB):
            file.seek(start)
            half = chance.integers(0, 4, MIB, np.uint8)  # compresses
            file.write((chance.bytes(MIB) + half.tobytes())[: SIZE - start])
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("fmt", "compressed"), [("raw", False), ("qcow2", False), ("qcow2", True)])
def test_ranges_in_any_order_and_overlapping_are_read_right(
    disk: Path, tmp_path: Path, fmt: str, compressed: bool
) -> None:
    qemu.require("qemu-img")
    image = tmp_path / "image"
    qemu.convert(disk, image, source_fmt="raw", target_fmt=fmt, compressed=compressed)
    content = disk.read_bytes()
    chance = np.random.default_rng(4)
    with open_image(image, format=fmt) as opened:
        reader = RangeReader(opened)
        for longest in (512, 70_000, 3 * MIB, 150 * MIB):
            for count in (0, 1, 2, 200):
                count = min(count, 400 * MIB // longest)
                edges = chance.choice([0, 63, 64, 65, 100, 128, 191], count) * MIB
                start = np.minimum(edges + chance.integers(0, 2 * MIB, count), SIZE - 1)
                length = np.minimum(chance.integers(1, longest, count), SIZE - start)
                found = bytes(reader.read(start, length))
                parts = zip(start.tolist(), length.tolist(), strict=True)
                assert found == b"".join(content[i : i + n] for i, n in parts)
