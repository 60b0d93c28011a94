"""Random pairs of images, QEMU being the judge: the overlay reads as NEW, whole and minimal."""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcowdelta import Image, ImageDelta, inspect_delta, open_image
from qcowdelta.overlay import Compress
from tests.support import images, judge, qemu
from tests.support.images import PairSpec


@dataclass(frozen=True)
class Shape:
    """How the overlay is to be written."""

    cluster_bits: int
    subclusters: bool
    compress: Compress

    @property
    def unit(self) -> int:
        return (1 << self.cluster_bits) // (32 if self.subclusters else 1)


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    subclusters = draw(st.booleans())
    bits = draw(st.sampled_from([16, 16, 16, 14, 21, 9, 12]))
    if subclusters:
        bits = max(bits, 14)
    return Shape(bits, subclusters, draw(st.sampled_from(get_args(Compress))))


def base_of(pair: images.BuiltPair, folder: Path) -> tuple[Path, str]:
    """Return a file with OLD's content that can be a backing file."""
    if pair.old_snapshot is None:
        return pair.old, pair.old_format
    raw, copy = folder / "snapshot.raw", folder / "snapshot.qcow2"
    raw.write_bytes(qemu.read_guest(pair.old, pair.old_format, pair.old_snapshot))
    qemu.convert(raw, copy, source_fmt="raw", target_fmt="qcow2")
    return copy, "qcow2"


def target_of(pair: images.BuiltPair, folder: Path) -> tuple[Path, str]:
    """Return a file with NEW's content that qemu-img can compare."""
    if pair.new_snapshot is None:
        return pair.new, pair.new_format
    raw = folder / "target.raw"
    raw.write_bytes(qemu.read_guest(pair.new, pair.new_format, pair.new_snapshot))
    return raw, "raw"


def check_pair(pair: images.BuiltPair, shape: Shape, folder: Path) -> None:
    overlay = folder / "overlay.qcow2"
    base, base_format = base_of(pair, folder)
    options = judge.options_over(
        base, base_format, 1 << shape.cluster_bits, shape.subclusters, compress=shape.compress
    )
    with (
        open_image(pair.old, format=pair.old_format, snapshot=pair.old_snapshot) as old,
        open_image(pair.new, format=pair.new_format, snapshot=pair.new_snapshot) as new,
    ):
        if base != pair.old:  # what is recorded is the identity of what lies below
            with open_image(base) as copy:
                report = judge.make_overlay(copy, new, overlay, options)
        else:
            report = judge.make_overlay(old, new, overlay, options)
        contents = judge.read_all(old), judge.read_all(new)
        assert_inspection(old, new, shape.unit, contents)
    target, target_format = target_of(pair, folder)
    assert qemu.compare(overlay, target, "qcow2", target_format)
    judge.assert_sound(overlay)
    judge.assert_minimal(overlay, *contents, shape.unit)
    assert report.summary.size == len(contents[1])


def assert_inspection(old: Image, new: Image, unit: int, contents: tuple[bytes, bytes]) -> None:
    """Assert that what inspect lists is what differs, and all that does."""
    runs: list[tuple[int, int]] = []
    found = inspect_delta(
        ImageDelta(old, new, granularity=unit),
        each=lambda extent: runs.append((extent.start, extent.length)),
    )
    rebuilt = bytearray(contents[0].ljust(new.size, b"\0")[: new.size])
    for start, length in runs:
        rebuilt[start : start + length] = contents[1][start : start + length]
    assert rebuilt == contents[1]
    assert sum(length for _, length in runs) == found.summary.data_bytes + found.summary.zero_bytes
    assert int(found.cells.sum()) == found.summary.data_bytes + found.summary.zero_bytes
    stats = found.stats
    decided = (
        stats.shared_layer + stats.zero + stats.equal_payload + stats.shared_extent + stats.read
    )
    assert decided == new.size


@pytest.mark.slow
@pytest.mark.parametrize("relation", images.RELATIONS)
def test_overlay_of_a_random_pair_reads_as_new_and_stores_only_what_differs(
    relation: images.Relation,
) -> None:
    qemu.require("qemu-img", "qemu-io")

    @given(images.pair_specs(relations=(relation,)), shapes())
    def holds(spec: PairSpec, shape: Shape) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            check_pair(images.build(spec, folder), shape, folder)

    holds()


@pytest.mark.parametrize("chance", range(3))
def test_compressed_clusters_of_512_bytes_stay_whole_wherever_they_come_to_lie(
    chance: int, tmp_path: Path
) -> None:
    """Their descriptors have room for two sectors, and so for few of the ways a payload may lie."""
    qemu.require("qemu-img")
    names = [tmp_path / name for name in ("old.raw", "new.raw", "new.qcow2", "out.qcow2")]
    words = random.Random(chance)
    content = bytes(words.randrange(16) for _ in range(200_704))
    old = bytearray(content)
    for at in range(0, len(old), 37 * 512):  # stretches of which each begins elsewhere
        old[at : at + 18 * 512] = bytes(18 * 512)
    names[0].write_bytes(old)
    names[1].write_bytes(content)
    qemu.convert(
        names[1], names[2], source_fmt="raw", target_fmt="qcow2", compressed=True, cluster_size=512
    )
    with open_image(names[0]) as a, open_image(names[2]) as b:
        report = judge.make_overlay(a, b, names[3], judge.options_over(names[0], "raw", 512))
    assert report.copied_clusters
    assert qemu.compare(names[3], names[1], "qcow2", "raw")
    judge.assert_sound(names[3])
