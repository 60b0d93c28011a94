"""Raw images: the file is the disk, and its holes are zeros."""

from __future__ import annotations

import numpy as np

from .extents import EXTENT, Extents, Kind, Offsets
from .hostfile import HostFile
from .layer import How, Source, SourceFile
from .units import SECTOR, align_up

# What a host file system allocates at least; a window of a raw image is sized by it.
_HOST_BLOCK = 4096


def data_and_zeros(data: Offsets, start: int, stop: int) -> Extents:
    """Return extents over ``[start, stop)``: data in the given ranges, zeros elsewhere.

    Args:
        data: an array of shape (n, 2) of [start, stop) in bytes, sorted and apart; they are
            rounded out to whole sectors.
        start: where it begins; whole sectors.
        stop: where it ends; whole sectors.
    """
    first = data[:, 0] - data[:, 0] % SECTOR
    last = data[:, 1] + -data[:, 1] % SECTOR
    edges = np.unique(np.concatenate([first, last, np.array([start, stop], np.int64)]))
    edges = edges[(edges >= start) & (edges <= stop)]
    out = np.zeros(max(edges.size - 1, 0), EXTENT)
    out["start"] = out["host"] = edges[:-1]
    out["length"] = np.diff(edges)
    inside = np.searchsorted(first, edges[:-1], side="right") - 1
    covered = (inside >= 0) & (edges[:-1] < last[inside] if data.size else False)
    out["kind"] = np.where(covered, Kind.DATA, Kind.ZERO)
    return out


class RawLayer:
    """A raw image file. A length that is not whole sectors is padded with zeros, as in QEMU."""

    format: str = "raw"
    changes_only = False
    unit = _HOST_BLOCK

    def __init__(self, file: HostFile) -> None:
        self.file: SourceFile = file
        self.files: tuple[SourceFile, ...] = (file,)
        self.how = How(file.path, self.format)
        self._host = file
        self.size = align_up(file.size, SECTOR)
        self.source = Source(file, _HOST_BLOCK)

    def extents(self, start: int, stop: int) -> Extents:
        """Return data where the file has any, and zeros in its holes."""
        return data_and_zeros(self._host.data_ranges(start, stop), start, stop)

    def next_mapped(self, start: int) -> int | None:
        """Return where the next data of the file begins."""
        found = self._host.next_data(start)
        return None if found >= self._host.size else found - found % SECTOR

    def close(self) -> None:
        """Close the file."""
        self._host.close()
