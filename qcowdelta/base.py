"""A backing file that was named instead of OLD: it must have OLD's content."""

from __future__ import annotations

import os

from .diff import ImageDelta
from .errors import BaseMismatchError, OptionError, PathName, printable
from .image import Image, open_image
from .policy import OpenPolicy


def open_named_base(
    old: Image, name: str, overlay: PathName, *, policy: OpenPolicy, required: bool
) -> Image | None:
    """Open the file that a backing name means from the overlay's folder, and compare it with OLD.

    Args:
        old: what the delta is made from.
        name: the backing name that the user gave.
        overlay: where the overlay will be.
        policy: how files are opened.
        required: fail where there is no such file.

    Returns:
        The image, or None where there is no such file here: the name may be for another machine.

    Raises:
        OptionError: it is required and not there, or it is the overlay itself.
        BaseMismatchError: its content is not OLD's.
    """
    path = os.path.join(os.path.dirname(os.path.abspath(overlay)), name)
    if os.path.realpath(path) == os.path.realpath(overlay):
        raise OptionError(f"{printable(name)}: an overlay cannot be its own backing file")
    if not os.path.exists(path):
        if required:
            raise OptionError(f"{printable(path)}: no such file, so it cannot be compared with OLD")
        return None
    base = open_image(path, policy=policy)
    try:
        if base.size != old.size or any(w.changes.size for w in ImageDelta(old, base).windows()):
            raise BaseMismatchError(
                f"{printable(path)}: does not have OLD's content, so it cannot be the backing file"
            )
    except BaseException:
        base.close()
        raise
    return base
