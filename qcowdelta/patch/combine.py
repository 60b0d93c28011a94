"""Two patches as one, and a patch the other way round: deltas between what they lead to."""

from __future__ import annotations

from ..diff import ImageDelta
from ..errors import BaseMismatchError, printable
from ..image import Image
from .blocks import BLOCK
from .container import PatchFile
from .open import open_patched


def composed(first: PatchFile, second: PatchFile, base: Image) -> ImageDelta:
    """Return the delta from the first patch's base to the second one's target.

    Its target owns both patches and the base, and closes them.

    Raises:
        BaseMismatchError: the second patch was not made from what the first leads to, or the
            base is another one.
        CorruptImageError: a patch or the base is damaged.
    """
    there, needed = first.header, second.header
    if (there.target_size, there.target_digest) != (needed.base_size, needed.base_digest):
        raise BaseMismatchError(
            f"{printable(second.path)}: was not made from what {printable(first.path)} leads to"
        )
    middle = open_patched(first, base)
    # The base was read as a whole just now, and the middle follows from it.
    return ImageDelta(base, open_patched(second, middle, check=False), granularity=BLOCK)


def inverted(patch: PatchFile, base: Image) -> ImageDelta:
    """Return the delta from a patch's target back to its base; its base owns both.

    Raises:
        BaseMismatchError: the base is another one.
        CorruptImageError: the patch or the base is damaged.
    """
    return ImageDelta(open_patched(patch, base), base, granularity=BLOCK)
