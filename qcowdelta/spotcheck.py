"""A few looks at what a dirty bitmap does not mark, so that a wrong OLD does not go unseen."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .delta import WINDOW_ALIGNMENT
from .dirty import DirtyRanges, Suspects
from .errors import BitmapMismatchError, printable
from .extents import Kind, Offsets, inside
from .image import Image
from .pieces import Classifier
from .units import align_down, align_up

_SAMPLE = 4096
_SAMPLES = 64
# What is stored is learned from all windows of so many units, or of a large disk from so many of
# them or up to twice as many: 16 GiB or more of clusters of 64 KiB, in some tenths of a second.
_WINDOWS = 256
_UNITS = 1024


def spot_check(old: Image, new: Image, dirty: DirtyRanges, *, samples: int = _SAMPLES) -> int:
    """Compare some blocks of 4 KiB that are not dirty, spread evenly over what is stored of them.

    Stored is what either image has and metadata does not prove equal: all else would tell
    nothing. On a large disk it is learned from a part of it, spread evenly too. Up to half of the
    blocks are taken where only one side is zeros by metadata: what was lost by shrinking the
    disk, which no bitmap marks, is there.

    That no difference is found proves nothing, but an OLD that is another disk does not get
    through.

    Args:
        old: the image that the bitmap began with.
        new: the image that has it.
        dirty: what may differ between them.
        samples: how many blocks to compare, at most.

    Returns:
        How many bytes were compared.

    Raises:
        BitmapMismatchError: one of them differs.
        CorruptImageError: something that has to be read cannot be.
    """
    suspicious, usual = _stored(old, new, dirty)
    blocks = _blocks(suspicious, samples // 2 if usual.size else samples)
    blocks = np.concatenate([blocks, _blocks(usual, samples - len(blocks))])
    readers = old.reader(), new.reader()
    for start, stop in blocks.tolist():
        if readers[0].read(start, stop - start) != readers[1].read(start, stop - start):
            raise BitmapMismatchError(
                f"{printable(new.path)} differs from {printable(old.path)} at guest offset "
                f"{start:#x}, where the bitmap marks nothing: the bitmap did not begin with that "
                "image's content, or did not record all that was done since (it was disabled for "
                "a time, or the disk was shrunk). Name the image it began with, or compare "
                "without the bitmap"
            )
    return int((blocks[:, 1] - blocks[:, 0]).sum())


def _stored(old: Image, new: Image, dirty: DirtyRanges) -> tuple[Offsets, Offsets]:
    """Return what is stored and not dirty, [start, stop) each: by one side only, and by both."""
    size = min(old.size, new.size, dirty.size)
    suspects = Suspects(dirty, old.size, new.size)
    classifier = Classifier(old, new)
    ranges, one_sided = [np.empty((0, 2), np.int64)], [np.empty(0, np.bool_)]
    for start, stop in _windows(old, new, size):
        pieces = classifier.pieces(start, stop)
        marked = suspects.ranges(start, stop)
        pieces.cut(marked.reshape(-1))
        left = pieces.open & ~inside(pieces.start, marked)
        ranges.append(np.stack([pieces.start, pieces.start + pieces.length], axis=1)[left])
        zero = [side["kind"] == Kind.ZERO for side in (pieces.old, pieces.new)]
        one_sided.append((zero[0] ^ zero[1])[left])
    found, mask = np.concatenate(ranges), np.concatenate(one_sided)
    return found[mask], found[~mask]


def _windows(old: Image, new: Image, size: int) -> Iterator[tuple[int, int]]:
    """Yield windows in which something may be stored: all, or where there are many, some."""
    length = align_up(_UNITS * min(old.unit, new.unit), WINDOW_ALIGNMENT)
    position, step = 0, length
    found: list[int] = []
    nearest = [-1, -1]
    while position < size:
        # Finding the end of a long hole may be slow: it is done once.
        nearest = [
            image.next_mapped(position) if at < position else at
            for image, at in zip((old, new), nearest, strict=True)
        ]
        at = min(nearest)
        if at >= size:
            break
        found.append(align_down(at, length))
        position = align_down(at, step) + step
        if len(found) == 2 * _WINDOWS:
            # Every other one will do, of those to come too.
            found, step = found[::2], 2 * step
            position = align_up(position, step)
    for at in found:
        yield at, min(at + length, size)


def _blocks(ranges: Offsets, count: int) -> Offsets:
    """Return up to so many blocks, evenly spaced over ranges laid end to end: [start, stop)."""
    ends = np.cumsum(ranges[:, 1] - ranges[:, 0])
    total = int(ends[-1]) if ends.size else 0
    place = (2 * np.arange(count) + 1) * total // (2 * count) if total else np.empty(0, np.int64)
    row = np.searchsorted(ends, place, side="right")
    at = ranges[row, 1] - (ends[row] - place)
    start = np.unique(np.maximum(at & -_SAMPLE, ranges[row, 0]))
    row = np.searchsorted(ranges[:, 0], start, side="right") - 1
    return np.stack([start, np.minimum(start + _SAMPLE, ranges[row, 1])], axis=1)
