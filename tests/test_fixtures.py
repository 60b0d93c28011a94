"""Every declared feature has a fixture, and every fixture reads as QEMU reads it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from qcowdelta import HostFile, QcowDeltaError, check_overlay, describe, open_image
from qcowdelta.extents import Extents, Kind
from qcowdelta.image import Image
from tests.support import fixtures, qemu
from tests.support.fixtures import Fixture

READABLE = [f for f in fixtures.all_fixtures() if f.state is not None]
REFUSED = [f for f in fixtures.all_fixtures() if f.state is None]
# Made unclean on purpose: what QEMU's check must find in them, ours must find too.
UNCLEAN = {"dirty", "bitmap-autoclear-off"}


def named(fixture: Fixture) -> str:
    return fixture.name


def sha256(image: Image) -> str:
    return hashlib.sha256(image.reader().read(0, image.size)).hexdigest()


def test_every_declared_feature_has_a_fixture_and_the_manifest_holds() -> None:
    assert not list(fixtures.verify())


@pytest.mark.parametrize("fixture", READABLE, ids=named)
def test_fixture_reads_as_qemu_reads_it(fixture: Fixture) -> None:
    assert fixture.state is not None
    with open_image(fixture.path, format=fixture.format) as image:
        assert image.size == fixture.state.virtual_size
        assert sha256(image) == fixture.state.sha256


@pytest.mark.parametrize(
    ("fixture", "name"), [(f, n) for f in READABLE for n in f.snapshots], ids=str
)
def test_internal_snapshot_reads_as_qemu_reads_it(fixture: Fixture, name: str) -> None:
    with open_image(fixture.path, format=fixture.format, snapshot=name) as image:
        assert image.size == fixture.snapshots[name].virtual_size
        assert sha256(image) == fixture.snapshots[name].sha256


@pytest.mark.parametrize("fixture", REFUSED, ids=named)
def test_fixture_that_cannot_be_read_is_refused(fixture: Fixture) -> None:
    with pytest.raises(QcowDeltaError):
        open_image(fixture.path, format=fixture.format)


def is_data(extents: Extents) -> list[tuple[int, int]]:
    """Return the ranges that have data, joined, as (start, end)."""
    joined: list[tuple[int, int]] = []
    for row in extents[extents["kind"] >= Kind.DATA]:
        start, end = int(row["start"]), int(row["start"] + row["length"])
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, end))
    return joined


@pytest.mark.parametrize("fixture", READABLE, ids=named)
def test_extents_agree_with_qemu_img_map(fixture: Fixture) -> None:
    with open_image(fixture.path, format=fixture.format) as image:
        ours = is_data(image.extents(0, image.size))
    theirs: list[tuple[int, int]] = []
    for row in qemu.map(fixture.path, fixture.format):
        if row["data"]:
            # A raw file's odd length is told to the byte; disks are whole sectors.
            start, end = row["start"], -(-(row["start"] + row["length"]) // 512) * 512
            if theirs and theirs[-1][1] == start:
                start = theirs.pop()[0]
            theirs.append((start, end))
    assert ours == theirs


@pytest.mark.parametrize("fixture", [f for f in READABLE if f.format == "qcow2"], ids=named)
def test_check_agrees_with_qemu_img_check(fixture: Fixture) -> None:
    found = qemu.check(fixture.path)
    ours = check_overlay(fixture.path).structure
    assert bool(ours.corruptions) == bool(found["corruptions"])
    assert bool(ours.leaks) == bool(found["leaks"])
    assert ours.clean == (fixture.name not in UNCLEAN)


@pytest.mark.parametrize("fixture", READABLE, ids=named)
def test_info_agrees_with_qemu_img_info(fixture: Fixture, tmp_path: Path) -> None:
    file = HostFile.open(fixture.path)
    try:
        ours = describe(file)
    finally:
        file.close()
    theirs = qemu.info(fixture.path, fmt=fixture.format)
    assert ours["format"] == fixture.format
    assert ours["virtual_size"] == theirs["virtual-size"]
    if fixture.format != "qcow2":
        return
    detail = theirs["format-specific"]["data"]
    assert ours["cluster_size"] == theirs["cluster-size"]
    assert ours["refcount_bits"] == detail["refcount-bits"]
    assert ours["compression_type"] == detail.get("compression-type", "zlib")
    assert [s["name"] for s in ours["snapshots"]] == [
        s["name"] for s in theirs.get("snapshots", [])
    ]
    assert ours["backing_file"] == theirs.get("backing-filename")
    features = {f["name"] for f in ours["features"]}
    assert ("extended l2" in features) == detail.get("extended-l2", False)
    assert ("corrupt" in features) == detail.get("corrupt", False)
