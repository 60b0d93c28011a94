"""A patch as the topmost layer of an image, over the image it was made from."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..errors import PathName
from ..extents import EXTENT, Extents, Kind, Offsets, join, single
from ..image import Image
from ..layer import How, Source, SourceFile
from ..units import align_up
from .container import PatchFile
from .decode import SegmentDecoder
from .layout import OperationKind

_ROWS_KEPT = 4096  # segments


class PatchContent:
    """What the segments of a patch decode to, as a file in which offsets are guest offsets."""

    def __init__(self, patch: PatchFile, decoder: SegmentDecoder) -> None:
        self._patch, self._decoder = patch, decoder
        self.path = patch.path
        self.size = patch.header.target_size
        self.key: tuple[int, ...] = (*patch.file.key, id(self))
        self.mtime_ns = patch.file.mtime_ns

    def fileno(self) -> None:
        """Return that there is no descriptor."""
        return

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer with the target's content; all of it must lie in stored segments.

        Raises:
            CorruptImageError, FormatError, BaseMismatchError: see :class:`SegmentDecoder`.
        """
        size = self._patch.header.segment_size
        done = 0
        while done < len(buffer):
            number, within = divmod(offset + done, size)
            at = self._patch.find(number)
            if at is None:  # extents lie in stored segments
                raise ValueError(f"offset {offset + done:#x} is not in the patch")
            piece = self._decoder.content(at)[within : within + len(buffer) - done]
            if not piece:
                buffer[done:] = bytes(len(buffer) - done)
                return
            buffer[done : done + len(piece)] = piece
            done += len(piece)


class PatchLayer:
    """The changes of a patch; elsewhere it has nothing, and the base shows through.

    Args:
        patch: the patch, which the layer closes.
        base: what it was made from, which lies below.
        folder: where the decoder puts its temporary file.
    """

    format = "qcpatch"
    changes_only = True

    def __init__(self, patch: PatchFile, base: Image, folder: PathName | None = None) -> None:
        self.patch = patch
        self.file: SourceFile = patch.file
        self.files: tuple[SourceFile, ...] = (patch.file,)
        self.how = How(patch.path, self.format)
        self.size = patch.header.target_size
        self.unit = 4096
        self.decoder = SegmentDecoder(patch, base, folder)
        self._rows_of = lru_cache(_ROWS_KEPT)(self._read_rows)
        self.source = Source(PatchContent(patch, self.decoder), self.unit)

    def extents(self, start: int, stop: int) -> Extents:
        """Return ZERO and DATA where operations say so, and nothing where content is the same."""
        entries, bits = self.patch.entries, self.patch.header.segment_bits
        first = int(np.searchsorted(entries["number"], start >> bits))
        last = int(np.searchsorted(entries["number"], align_up(stop, 1 << bits) >> bits))
        rows = join([self._rows_of(at) for at in range(first, last)])
        return _tile(rows, start, stop)

    def _read_rows(self, at: int) -> Extents:
        segment = self.patch.segment(at)
        operations = segment.operations
        rows = np.zeros(operations.size, EXTENT)
        rows["start"] = rows["host"] = segment.start + operations["start"].astype(np.int64)
        rows["length"] = operations["length"]
        zero = operations["kind"] == OperationKind.ZERO
        rows["kind"] = np.where(zero, Kind.ZERO, Kind.DATA)
        return rows

    def next_mapped(self, start: int) -> int | None:
        """Return where the next stored segment begins."""
        numbers, bits = self.patch.entries["number"], self.patch.header.segment_bits
        at = int(np.searchsorted(numbers, start >> bits))
        return max(start, int(numbers[at]) << bits) if at < numbers.size else None

    def close(self) -> None:
        """Close the patch."""
        self.decoder.close()
        self.patch.close()


def _tile(rows: Extents, start: int, stop: int) -> Extents:
    """Fill the gaps between extents with UNALLOCATED, and cut off what is outside."""
    begins = np.concatenate([rows["start"], rows["start"] + rows["length"]])
    edges: Offsets = np.unique(np.concatenate([begins, np.array([start, stop])]))
    edges = edges[(edges >= start) & (edges <= stop)]
    if edges.size < 2:
        return single(start, stop, Kind.UNALLOCATED)
    out = np.zeros(edges.size - 1, EXTENT)
    out["start"] = out["host"] = edges[:-1]
    out["length"] = np.diff(edges)
    if rows.size:
        row = np.searchsorted(rows["start"], edges[:-1], side="right") - 1
        inside = (row >= 0) & (edges[:-1] < rows["start"][row] + rows["length"][row])
        out["kind"] = np.where(inside, rows["kind"][row], Kind.UNALLOCATED)
    return out
