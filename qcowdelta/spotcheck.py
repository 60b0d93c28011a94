"""A few looks at what a dirty bitmap does not mark, so that a wrong OLD does not go unseen."""

from __future__ import annotations

import numpy as np

from .delta import WINDOW_ALIGNMENT
from .dirty import DirtyRanges, Suspects
from .errors import BitmapMismatchError, printable
from .extents import inside
from .image import Image
from .pieces import Classifier
from .units import align_down

_SAMPLE = 4096
_SAMPLES = 64


def spot_check(old: Image, new: Image, dirty: DirtyRanges, *, samples: int = _SAMPLES) -> int:
    """Compare some blocks of 4 KiB that are not dirty, spread over what is stored of the disk.

    Blocks that metadata proves equal are not taken: they would tell nothing. That no difference
    is found proves nothing either, but an OLD that is another disk does not get through.

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
    size = min(old.size, new.size, dirty.size)
    suspects = Suspects(dirty, old.size, new.size)
    classifier = Classifier(old, new)
    readers = old.reader(), new.reader()
    compared, done = 0, 0
    for number in range(samples):
        at = max(done, align_down(number * size // samples, _SAMPLE))
        at = min(old.next_mapped(at), new.next_mapped(at)) if at < size else size
        if at >= size:
            break
        done = min(align_down(at, WINDOW_ALIGNMENT) + WINDOW_ALIGNMENT, size)
        start, length = _first_unproved(classifier, suspects, at, done)
        if length and readers[0].read(start, length) != readers[1].read(start, length):
            raise BitmapMismatchError(
                f"{printable(new.path)} differs from {printable(old.path)} at guest offset "
                f"{start:#x}, where the bitmap marks nothing: the bitmap did not begin with that "
                "image's content. Name the image it began with, or compare without the bitmap"
            )
        compared += length
    return compared


def _first_unproved(
    classifier: Classifier, suspects: DirtyRanges, start: int, stop: int
) -> tuple[int, int]:
    """Return a block that is not dirty, nor proved equal by metadata: its start and length."""
    pieces = classifier.pieces(start, stop)
    dirty = suspects.ranges(start, stop)
    pieces.cut(dirty.reshape(-1))
    left = np.flatnonzero(pieces.open & ~inside(pieces.start, dirty))
    if not left.size:
        return start, 0
    return int(pieces.start[left[0]]), min(_SAMPLE, int(pieces.length[left[0]]))
