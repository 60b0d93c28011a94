"""Dirty ranges: what may have changed since some point in time, as a bitmap recorded it."""

from __future__ import annotations

import os
from typing import Protocol

import numpy as np

from .errors import CorruptImageError, FormatError, OptionError, UnusableBitmapError, printable
from .extents import Offsets
from .hostfile import HostFile
from .image import Image
from .qcow2.bitmaps import Bitmap, BitmapBits, BitmapState, read_bitmaps
from .qcow2.header import Header, read_header
from .qcow2.image import Qcow2Layer
from .qcow2.layout import Autoclear

_ANEW = "make a new one of the next state that is kept ('qemu-img bitmap --add')"
_REMEDIES = {
    BitmapState.DISABLED: (
        "is disabled: what was written since is not marked. Compare without it, and "
        f"{_ANEW}; or merge it with those that recorded from then on ('qemu-img bitmap --merge') "
        "and name the result. To enable it again is right only if nothing was written since it "
        "was disabled: what was written would be missing from the result, and nothing would tell"
    ),
    BitmapState.IN_USE: (
        "is in use: a VM has the image open, or did not close it, so that the marks on disk are "
        "out of date. Stop the VM; if none runs, compare without the bitmap, remove it "
        f"('qemu-img bitmap --remove'), and {_ANEW}"
    ),
    BitmapState.STALE: (
        "is stale: something that knows no bitmaps wrote to the image (autoclear bit 0 is clear). "
        f"Compare without it, and {_ANEW}"
    ),
}


class DirtyRanges(Protocol):
    """What tells which ranges of a disk may differ from an earlier state of it; all else does not.

    It is asked by one thread only.
    """

    @property
    def size(self) -> int:
        """How many bytes of the disk it tells of."""

    @property
    def granularity(self) -> int:
        """The smallest length that it tells apart, bytes: a power of two, 512 or more."""

    def ranges(self, start: int, stop: int) -> Offsets:
        """Return what is dirty of ``[start, stop)``, which lies within its size.

        The array has shape (n, 2): [start, stop) in bytes, whole sectors, sorted and apart.
        """

    def next_dirty(self, start: int) -> int | None:
        """Return where something may be dirty at or after ``start``; None: nowhere."""


class Suspects:
    """What has to be looked at: the dirty ranges, and what lies beyond the end of either disk.

    Args:
        dirty: what may differ between two disks, as far as it tells.
        old_size, new_size: how long the disks are, bytes.
    """

    def __init__(self, dirty: DirtyRanges, old_size: int, new_size: int) -> None:
        self._dirty = dirty
        self._told = min(dirty.size, old_size, new_size)
        self.size = new_size
        self.granularity = dirty.granularity

    def ranges(self, start: int, stop: int) -> Offsets:
        """Return what is suspect of ``[start, stop)``, as :meth:`DirtyRanges.ranges` does."""
        inner = min(stop, self._told)
        found = self._dirty.ranges(start, inner) if start < inner else np.empty((0, 2), np.int64)
        if inner == stop:
            return found
        begin = max(start, self._told)
        if found.size and found[-1, 1] == begin:
            found = found.copy()
            found[-1, 1] = stop
            return found
        return np.concatenate([found, np.array([[begin, stop]], np.int64)])

    def next_dirty(self, start: int) -> int | None:
        """Return where something may be suspect at or after ``start``; None: nowhere."""
        found = self._dirty.next_dirty(start) if start < self._told else None
        if found is not None and found < self._told:
            return found
        at = max(start, self._told)
        return at if at < self.size else None


def open_bitmap(image: Image, name: str) -> DirtyRanges:
    """Return what a persistent dirty bitmap of an image's top file marks.

    Args:
        image: a qcow2 image's active state, which must stay open.
        name: the bitmap's.

    Raises:
        OptionError: the image has no such bitmap, or can have none.
        UnusableBitmapError: it does not mark all that was written.
        CorruptImageError, FormatError: directory or table of bitmaps cannot be read.
    """
    file = image.layers[0].file
    if image.format != "qcow2":
        raise OptionError(f"{printable(file.path)}: a {image.format} image has no dirty bitmaps")
    if isinstance(image.layers[0], Qcow2Layer) and image.layers[0].snapshot is not None:
        raise OptionError(
            f"{printable(file.path)}: a bitmap tells of the active state, not of a snapshot"
        )
    if not isinstance(file, HostFile):
        raise OptionError(f"{printable(file.path)}: is no host file, whose bitmaps could be read")
    header = read_header(file)
    bitmap = _find_bitmap(file, header, name)
    if bitmap.state != BitmapState.USABLE:
        raise UnusableBitmapError(
            f"bitmap {printable(name)!r} {_REMEDIES[bitmap.state]}", path=file.path
        )
    return BitmapBits(file, header, bitmap)


def _find_bitmap(file: HostFile, header: Header, name: str) -> Bitmap:
    try:
        bitmaps = read_bitmaps(file, header)
    except (CorruptImageError, FormatError) as error:
        if header.has_autoclear(Autoclear.BITMAPS):
            raise
        # Whoever wrote to the image may have put anything in the directory's place.
        raise UnusableBitmapError(
            f"bitmap {printable(name)!r} {_REMEDIES[BitmapState.STALE]}", path=file.path
        ) from error
    found = [bitmap for bitmap in bitmaps if bitmap.name == os.fsencode(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise CorruptImageError(
            f"{len(found)} bitmaps are called {printable(name)!r}", path=file.path, field="bitmaps"
        )
    names = ", ".join(repr(printable(bitmap.name)) for bitmap in bitmaps)
    raise OptionError(
        f"{printable(file.path)}: has no bitmap {printable(name)!r}; "
        + (f"it has {names}" if names else "it has none")
    )
