"""Attributing a delta: whose the changed bytes are, and what became of each file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..delta import ChangeKind, Changes, ChangeSource, Progress
from ..disk.kinds import SpaceKind
from ..disk.space import Index, nothing, pieces, tile
from ..extents import Kind, Mask, Offsets
from ..image import Image
from ..layer import Layer
from ..units import GIB
from .cells import CellSums
from .figures import Attribution, PartitionShare, SourceFacts

if TYPE_CHECKING:
    from ..disk.diskmap import DiskMap
    from ..disk.pairing import Pairing

_KINDS = len(SpaceKind)
_MANY = 1 << 20
"""So many changes are kept at most while the file systems are being read."""


def attribute(
    delta: ChangeSource,
    old: Image | None,
    new: Image | None,
    *,
    cells: int = 4096,
    each: Callable[[Changes], None] | None = None,
    progress: Progress | None = None,
) -> Attribution:
    """Go through a delta and tell whose its bytes are.

    Args:
        delta: what changed from OLD to NEW. The finer its granularity, the less of what it
            counts as changed is not: files that only share a granule with a change have a part
            of it.
        old: the base, where it is at hand.
        new: the target; without it, with a patch alone say, nothing can be attributed, and the
            notes say so.
        cells: into how many ranges the map divides the disk, at most.
        each: called with the changes of each window, in order.
        progress: called after each window.

    Raises:
        CorruptImageError: an image cannot be read.
    """
    with Attributor(old, new, delta.size, delta.granularity, cells=cells) as attributor:
        for window in delta.windows():
            attributor.add(window.changes)
            if each is not None:
                each(window.changes)
            if progress is not None:
                progress(window.stop, delta.size)
        return attributor.finish()


class Attributor:
    """Attributes changes as they come; see :func:`attribute`. Use as a context manager.

    The file systems are read and compared by a thread of its own, while whoever compares the
    images goes on: until they are known, changes are kept. The many modules that it takes are
    imported by that thread too, so that comparing begins before they are.
    """

    def __init__(
        self,
        old: Image | None,
        new: Image | None,
        size: int,
        granularity: int,
        *,
        cells: int = 4096,
    ) -> None:
        self._old, self._new = old, new
        self._size, self._granularity, self._cell_count = size, granularity, cells
        self._pool = ThreadPoolExecutor(1, "qcowdelta-files")
        self._reading = self._pool.submit(self._read, new, size)
        self._pairing: Future[Pairing] | None = None
        self._waiting: list[Changes] = []
        self._sums: _Sums | None = None

    def __enter__(self) -> Attributor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading."""
        self._pool.shutdown(cancel_futures=True)

    @staticmethod
    def _read(image: Image | None, size: int) -> DiskMap:
        from ..disk.diskmap import read_disk

        return _unread(size) if image is None else read_disk(image)

    def _pair(self) -> Pairing:
        from ..disk.pairing import pair_disks

        before = self._read(self._old, 0)
        return pair_disks(before, self._reading.result(), self._old, self._new)

    def add(self, changes: Changes) -> None:
        """Take the changes of one window; windows come in order.

        Raises:
            CorruptImageError: an image cannot be read.
        """
        if not changes.size:
            return
        if self._pairing is None:
            self._pairing = self._pool.submit(self._pair)
        self._waiting.append(changes)
        if self._reading.done() or sum(part.size for part in self._waiting) > _MANY:
            self._catch_up()

    def _catch_up(self) -> _Sums:
        """Add up the changes that were kept."""
        if self._sums is None:
            self._sums = _Sums(self._reading.result(), self._granularity, self._cell_count)
        for changes in self._waiting:
            self._sums.add(changes)
        self._waiting.clear()
        return self._sums

    def finish(self) -> Attribution:
        """Return whose the changes are.

        Raises:
            CorruptImageError: an image cannot be read.
        """
        from ..disk.doubts import doubts
        from ..disk.pairing import same_disk
        from ..dropfree import is_free_space_sure
        from .advice import advise
        from .files import FileChanges

        sums = self._catch_up()
        disk = sums.disk
        pairing = self._pairing.result() if self._pairing is not None else same_disk(disk)
        files = FileChanges(pairing, sums.changed, sums.certain, (self._old, self._new))
        notes: list[str] = []
        if not disk.partitions and not pairing.old.partitions:
            notes += disk.notes
        if self._new is None:
            notes.append(
                "without its base, a patch tells where it changes the disk but not what is there: "
                "nothing is attributed"
            )
        found = Attribution(
            size=disk.size,
            granularity=self._granularity,
            changed_bytes=int(sums.changed.sum()),
            by_kind=sums.by_kind(sums.changed),
            zeroed=sums.by_kind(sums.zeroed),
            droppable_bytes=sums.droppable,
            partitions=(*disk.partitions, *files.gone),
            by_partition=tuple(sums.shares()),
            files=files.files,
            cells=sums.cells.finish(files.index_of_owner),
            sources=(source_facts(self._old), source_facts(self._new)),
            free_is_sure=self._new is not None and is_free_space_sure(self._new, disk),
            doubts=(*doubts(pairing.old, disk), *pairing.notes, *_untold(files.untold)),
            notes=tuple(notes),
        )
        return replace(found, advice=advise(found))


class _Sums:
    """Changed bytes by record of a disk's map.

    Attributes:
        disk: the map.
        changed, zeroed: bytes of each record that changed, and that became zeros.
        certain: whether something in a record surely differs, rather than in the same granule.
        droppable: bytes in changed granules of data that lie in free space as a whole.
        cells: the same by range of the disk.
    """

    def __init__(self, disk: DiskMap, granularity: int, cells: int) -> None:
        self.disk = disk
        self._granularity = granularity
        self.changed = np.zeros(disk.spaces.size, np.int64)
        self.zeroed = np.zeros(disk.spaces.size, np.int64)
        self.certain = np.zeros(disk.spaces.size, bool)
        self.droppable = 0
        self.cells = CellSums(disk, granularity, cells)

    def add(self, changes: Changes) -> None:
        """Take changes."""
        which, row, start, length = pieces(changes["start"], changes["length"], self.disk.spaces)
        np.add.at(self.changed, row, length)
        kind = changes["kind"][which]
        zeroed = kind == ChangeKind.ZEROED
        np.add.at(self.zeroed, row[zeroed], length[zeroed])
        self.certain[row[self._whole_granule(start, length)]] = True
        self.droppable += self._whole_free(row[~zeroed], start[~zeroed], length[~zeroed])
        self.cells.add(kind, row, start, length)

    def _whole_free(self, row: Index, start: Offsets, length: Offsets) -> int:
        """Return how many bytes of pieces are granules that lie in free space as a whole."""
        size = self._granularity
        inner = (start + length) // size * size - -(-start // size) * size
        free = self.disk.spaces["kind"][row] == SpaceKind.FREE
        return int(inner[free & (inner > 0)].sum())

    def _whole_granule(self, start: Offsets, length: Offsets) -> Mask:
        """Tell which pieces have a whole granule in them: something of theirs surely differs."""
        size, stop = self._granularity, start + length
        whole: Mask = -(-start // size) * size + size <= stop
        whole |= (start % size == 0) & (stop == self.disk.size)
        return whole

    def shares(self) -> Iterator[PartitionShare]:
        """Yield a row for each partition, and one for what is in none."""
        for number in (*range(len(self.disk.partitions)), -1):
            yield self._share(number)

    def _share(self, number: int) -> PartitionShare:
        of = self.disk.partition == number
        changed = self.by_kind(self.changed, of)
        return PartitionShare(
            None if number < 0 else self.disk.partitions[number],
            sum(changed.values()),
            changed,
            self.by_kind(self.zeroed, of),
            self.by_kind(self.disk.spaces["length"], of),
        )

    def by_kind(self, weights: Offsets, of: Mask | None = None) -> dict[SpaceKind, int]:
        """Add up by kind of space, of all records or of some."""
        some = slice(None) if of is None else of
        sums = np.zeros(_KINDS, np.int64)
        np.add.at(sums, self.disk.spaces["kind"][some], weights[some])
        return {SpaceKind(kind): int(sums[kind]) for kind in np.flatnonzero(sums).tolist()}


def _untold(count: int) -> Iterator[str]:
    """Yield what is to be said of files that could not be compared."""
    if count:
        files = "1 file shares" if count == 1 else f"{count:,} files share"
        yield (
            f"{files} clusters with what changed and could not be compared, being compressed, "
            f"encrypted or too large, and {'counts' if count == 1 else 'count'} as unchanged, or "
            "as changed in metadata only"
        )


def _unread(size: int) -> DiskMap:
    """Return the map of a disk of which nothing is known."""
    from ..disk.diskmap import DiskMap

    rows = tile(nothing(), size, SpaceKind.UNKNOWN)
    return DiskMap(size, (), (), rows, (0,), np.full(rows.size, -1), ())


def source_facts(image: Image | None) -> SourceFacts | None:
    """Return what an image is and how it stores its disk; None for None.

    Raises:
        CorruptImageError: its tables cannot be read.
    """
    if image is None:
        return None
    lengths = np.zeros(len(Kind), np.int64)
    at = image.next_mapped(0)
    while at < image.size:
        stop = min(at + GIB, image.size)
        extents = image.extents(at, stop)
        np.add.at(lengths, extents["kind"], extents["length"])
        at = stop if stop == image.size else max(stop, image.next_mapped(stop))
    return SourceFacts(
        path=image.path,
        format=image.format,
        virtual_size=image.size,
        file_size=sum(_file_size(layer) for layer in image.layers),
        cluster_size=image.cluster_size,
        data_bytes=int(lengths[Kind.DATA]),
        compressed_bytes=int(lengths[Kind.COMPRESSED]),
    )


def _file_size(layer: Layer) -> int:
    """Return the length of a layer's files: its own, and that of its data where it is another."""
    own, data = layer.file, layer.source.file
    return own.size + (data.size if data.key != own.key and data.fileno() is not None else 0)
