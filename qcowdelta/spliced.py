"""An image in which some ranges are another image's."""

from __future__ import annotations

from .extents import Extents, Kind, Offsets, coalesce, cut_at, inside, join, single
from .image import Image
from .layer import How


class SplicedImage(Image):
    """An image with another's content in some ranges: both must stay open as long as it is used.

    What it has from the other one is proved equal to that by :mod:`.pieces` without being read,
    since it is the same place of the same file.

    Args:
        image: what it is elsewhere.
        other: what it is in the ranges; beyond its end, that is zeros.
        ranges: rows [start, stop), bytes, sorted and apart.
    """

    def __init__(self, image: Image, other: Image, ranges: Offsets) -> None:
        super().__init__([*image.layers, *other.layers])
        self._image, self._other, self._ranges = image, other, ranges

    @property
    def how(self) -> tuple[How, ...]:
        """How each layer of the image is read, top first; the other's are its own business."""
        return self._image.how

    def extents(self, start: int, stop: int) -> Extents:
        """Return what ``[start, stop)`` is; see :meth:`.Image.extents`."""
        rows = cut_at(self._image.extents(start, stop), self._ranges.reshape(-1))
        taken = inside(rows["start"], self._ranges)
        if not taken.any():
            return rows
        other = cut_at(self._other_extents(start, stop), rows["start"])
        rows = cut_at(rows, other["start"])
        taken = inside(rows["start"], self._ranges)
        rows[taken] = other[taken]
        return coalesce(rows)

    def _other_extents(self, start: int, stop: int) -> Extents:
        inner = max(start, min(stop, self._other.size))
        rows = single(inner, stop, Kind.ZERO)
        if start < inner:
            rows = join([self._other.extents(start, inner), rows])
        rows["source"] += len(self._image.sources)
        return rows

    def next_mapped(self, start: int) -> int:
        """Return where anything but zeros may be at or after ``start``; the size: nowhere."""
        found = self._image.next_mapped(start)
        if start < self._other.size:
            found = min(found, self._other.next_mapped(start))
        return min(found, self.size)
