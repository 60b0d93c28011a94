"""An image's whole content as a new image of its own: qcow2 without a backing file, or raw."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from .choosing import Compress, choose_codec
from .clusters import ClusterSink
from .copying import Jobs
from .delta import CHANGE, WINDOW_ALIGNMENT, ChangeKind, Changes, ChangeWindow, Progress
from .extents import Extents, Kind, ends
from .image import Image
from .journal import Journal
from .output import AtomicOutput
from .qcow2.geometry import Geometry
from .qcow2.writer import Qcow2Writer
from .units import align_down

Format: TypeAlias = Literal["qcow2", "raw"]

_WINDOW = 64 * WINDOW_ALIGNMENT
_RAW_STEP = 4096


@dataclass(frozen=True)
class ImageOptions:
    """How an image is written.

    Attributes:
        format: its format.
        cluster_size: bytes, where it is qcow2.
        compress: as in :class:`.OverlayOptions`, where it is qcow2.
    """

    format: Format = "qcow2"
    cluster_size: int = 64 << 10
    compress: Compress = "keep"


def write_image(
    image: Image,
    output: AtomicOutput,
    options: ImageOptions,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> int:
    """Write all of an image's content. The output's owner decides when it gets its name.

    Args:
        image: what to write.
        output: where to.
        options: how.
        journal: knows what was written before, and learns what is.
        progress: called after each window.

    Returns:
        The file's length, bytes.

    Raises:
        OptionError: options do not go together, or not with the disk's size.
        CorruptImageError: content cannot be read.
        OSError: reading or writing failed.
    """
    writing = _write_raw if options.format == "raw" else _write_qcow2
    with Jobs(journal) as jobs:
        size = writing(image, output, options, jobs, progress)
    os.ftruncate(output.fd, size)
    return size


def _write_raw(
    image: Image,
    output: AtomicOutput,
    options: ImageOptions,
    jobs: Jobs,
    progress: Progress | None,
) -> int:
    os.ftruncate(output.fd, image.size)
    for window in _windows(image, _RAW_STEP):
        rows = window.extents[window.extents["kind"] != Kind.ZERO]
        jobs.copy(image, rows, rows["start"], output)
        if progress is not None:
            progress(window.stop, image.size)
    return image.size


def _write_qcow2(
    image: Image,
    output: AtomicOutput,
    options: ImageOptions,
    jobs: Jobs,
    progress: Progress | None,
) -> int:
    geometry = Geometry.of_size(options.cluster_size)
    codec = choose_codec(image, options.compress)
    writer = Qcow2Writer(output, image.size, geometry, codec, None)
    sink = ClusterSink(image, output, writer, geometry, codec, options.compress, jobs)
    for window in _windows(image, geometry.unit):
        sink.add(window)
        if progress is not None:
            progress(window.stop, image.size)
    sink.finish()
    return writer.finish()


def _windows(image: Image, granularity: int) -> Iterator[ChangeWindow]:
    """Yield what there is instead of nothing, window by window: everything but zeros."""
    position = image.next_mapped(0)
    while position < image.size:
        start = align_down(position, _WINDOW)
        stop = min(start + _WINDOW, image.size)
        rows = image.extents(start, stop)
        yield ChangeWindow(start, stop, _changes(rows, granularity, stop), rows)
        position = image.next_mapped(stop) if stop < image.size else stop


def _changes(rows: Extents, granularity: int, stop: int) -> Changes:
    """Return the granules in which there is any data."""
    data = rows[rows["kind"] != Kind.ZERO]
    first = data["start"] // granularity
    last = -(-ends(data) // granularity)
    # Extents are sorted, so ranges of granules can only meet or overlap their neighbours.
    apart = np.flatnonzero(np.append(True, first[1:] > last[:-1])[: first.size])
    changes = np.empty(apart.size, CHANGE)
    changes["start"] = first[apart] * granularity
    end = last[np.append(apart[1:], first.size)[: apart.size] - 1] * granularity
    changes["length"] = np.minimum(end, stop) - changes["start"]
    changes["kind"] = ChangeKind.ADDED
    return changes
