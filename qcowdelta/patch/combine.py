"""Two patches as one, and a patch the other way round: deltas between what they lead to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..diff import ImageDelta
from ..errors import BaseMismatchError, OptionError, PathName, printable
from ..image import Image
from ..output import AtomicOutput
from .blocks import BLOCK
from .container import PatchFile, PatchWriter
from .open import open_patched
from .segment import Segment


def composed(
    first: PatchFile, second: PatchFile, base: Image, folder: PathName | None = None
) -> ImageDelta:
    """Return the delta from the first patch's base to the second one's target.

    Its target owns both patches and the base, and closes them. Temporary files are in the folder,
    or where the system has them.

    Raises:
        BaseMismatchError: the second patch was not made from what the first leads to, or the
            base is another one.
        CorruptImageError: a patch or the base is damaged.
    """
    _check_order(first, second)
    middle = open_patched(first, base, folder=folder)
    # The base was read as a whole just now, and the middle follows from it.
    target = open_patched(second, middle, check=False, folder=folder)
    return ImageDelta(base, target, granularity=BLOCK)


def merge(first: PatchFile, second: PatchFile, output: AtomicOutput) -> int:
    """Write two patches as one without their base, where neither touches what the other needs.

    Their segments are taken as they are. The output's owner decides when it gets its name.

    Returns:
        The patch's length, bytes.

    Raises:
        BaseMismatchError: the second patch was not made from what the first leads to.
        OptionError: both change the same segment, or the second one uses what the first changed,
            so that the base is needed.
        CorruptImageError: a patch is damaged.
    """
    _check_order(first, second)
    if first.header.segment_bits != second.header.segment_bits:
        raise _needs_base("their segments are not equally long")
    between = first.header.target_size
    if between < min(first.header.base_size, second.header.target_size):
        raise _needs_base("the disk was shorter in between")
    header = replace(second.header, base_size=first.header.base_size, segment_count=0)
    header = replace(header, base_digest=first.header.base_digest)
    writer = PatchWriter(output, header)
    both = np.concatenate([first.entries["number"], second.entries["number"]])
    for number in np.sort(both).tolist():
        at, other = first.find(number), second.find(number)
        if at is not None and other is not None:
            raise _needs_base(f"both change segment {number}")
        if other is not None:
            segment = second.segment(other)
            _check_untouched(segment, first)
        elif at is not None:
            segment = first.segment(at)
            if segment.length != min(header.segment_size, header.target_size - segment.start):
                raise _needs_base(f"the second one changes where segment {number} ends")
        writer.add(segment)
    return writer.finish(header.target_digest)


def _check_untouched(segment: Segment, first: PatchFile) -> None:
    """Hold that what a segment takes from its base is the same in the first patch's base."""
    bits = first.header.segment_bits
    start, length = segment.of_base()
    stop = start + length
    touched = first.entries["number"]
    inside = np.searchsorted(touched, start >> bits) != np.searchsorted(
        touched, ((stop - 1) >> bits) + 1
    )
    if inside.any() or (stop > first.header.base_size).any():
        raise _needs_base(f"segment {segment.number} of the second uses what the first changed")


def _needs_base(why: str) -> OptionError:
    return OptionError(f"{why}, so the patches cannot be composed without their base; give --base")


def _check_order(first: PatchFile, second: PatchFile) -> None:
    there, needed = first.header, second.header
    if (there.target_size, there.target_digest) != (needed.base_size, needed.base_digest):
        raise BaseMismatchError(
            f"{printable(second.path)}: was not made from what {printable(first.path)} leads to"
        )


def inverted(patch: PatchFile, base: Image, folder: PathName | None = None) -> ImageDelta:
    """Return the delta from a patch's target back to its base; its base owns both.

    Temporary files are in the folder, or where the system has them.

    Raises:
        BaseMismatchError: the base is another one.
        CorruptImageError: the patch or the base is damaged.
    """
    return ImageDelta(open_patched(patch, base, folder=folder), base, granularity=BLOCK)
