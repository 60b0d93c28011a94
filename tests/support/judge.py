"""Judging an overlay: by QEMU, by our own check, and by the bytes of both sides."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from qcowdelta import (
    AtomicOutput,
    Backing,
    BaseIdentity,
    Image,
    ImageDelta,
    OverlayOptions,
    check_overlay,
    open_image,
    write_overlay,
)
from qcowdelta.extents import Kind
from qcowdelta.overlay import OverlayReport
from tests.support import qemu


def make_overlay(
    old: Image, new: Image, out: Path, options: OverlayOptions, *, digest: bool = False
) -> OverlayReport:
    """Write the overlay of two open images."""
    delta = ImageDelta(old, new, granularity=options.geometry.unit)
    with AtomicOutput(out) as output:
        identity = BaseIdentity.of(old, digest=digest)
        return write_overlay(delta, output, options, identity)


def options_over(
    path: Path, fmt: str, cluster_size: int = 65536, subclusters: bool = False, **more: object
) -> OverlayOptions:
    """Return options for an overlay over a file."""
    backing = Backing(os.fsencode(path), fmt)
    return OverlayOptions(backing, cluster_size, subclusters, **more)  # type: ignore[arg-type]


def read_all(image: Image) -> bytes:
    """Return all of an image's content, by our own reader."""
    return image.reader().read(0, image.size)


def assert_sound(overlay: Path) -> None:
    """Assert that QEMU's check and ours find nothing."""
    found = qemu.check(overlay)
    assert (found["corruptions"], found["leaks"], found["check-errors"]) == (0, 0, 0)
    ours = check_overlay(overlay)
    assert ours.structure.clean, ours.structure.messages
    assert ours.good


def assert_minimal(overlay: Path, old: bytes, new: bytes, unit: int) -> None:
    """Assert that exactly the units that differ are stored, and zeros as zero clusters."""
    units = -(-len(new) // unit)
    sides = [
        np.frombuffer(side[: len(new)].ljust(units * unit, b"\0"), np.uint8).reshape(units, unit)
        for side in (old, new)
    ]
    differs = (sides[0] != sides[1]).any(axis=1)
    nonzero = sides[1].any(axis=1)
    with open_image(overlay) as image:
        extents = image.layers[0].extents(0, image.size)
    index = np.searchsorted(extents["start"], np.arange(units) * unit, side="right") - 1
    kinds = extents["kind"][index]
    expected = np.where(differs, np.where(nonzero, Kind.DATA, Kind.ZERO), Kind.UNALLOCATED)
    # A cluster compressed as a whole keeps its zero sub-clusters inside.
    packed = np.where(differs, expected, Kind.DATA)
    stored = np.where(kinds == Kind.COMPRESSED, packed, kinds)
    wrong = np.flatnonzero(stored != expected)
    assert not wrong.size, [(int(i), stored[i], expected[i]) for i in wrong[:5]]
