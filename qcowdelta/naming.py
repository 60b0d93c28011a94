"""What an overlay calls its backing file."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import OptionError, PathName, printable


def backing_name(base: PathName, overlay: PathName, *, given: str | None, relative: bool) -> bytes:
    """Return the backing name for an overlay.

    It is the base's path as it was given, unless that is relative and means something else, or
    nothing, from the overlay's folder: then, or when asked for, it is the path from there.

    Args:
        base: the base as the user named it.
        overlay: where the overlay will be.
        given: a name to record as it is, or None.
        relative: write it relative to the overlay's folder.

    Raises:
        OptionError: an empty name, or one with a NUL.
    """
    if given is not None:
        if not given or "\0" in given:
            raise OptionError("a backing name cannot be empty or have a NUL")
        return os.fsencode(given)
    folder = os.path.dirname(os.path.abspath(overlay))
    name = os.fspath(base)
    if relative or not (os.path.isabs(name) or _means(folder, name, base)):
        name = os.path.relpath(os.path.abspath(base), os.path.realpath(folder))
        if not _means(folder, name, base):
            raise OptionError(
                f"{printable(base)} has no name relative to {printable(folder)}; "
                "give --backing-name"
            )
    if ":" in name.split("/", 1)[0]:
        name = f"./{name}"  # QEMU would take what is before the colon for a protocol
    return os.fsencode(name)


def _means(folder: str, name: str, base: PathName) -> bool:
    """Tell whether a name, seen from a folder, is the base."""
    try:
        return Path(folder, name).samefile(base)
    except OSError:
        return False
