"""Attributing a delta: whose the changed bytes are, and what became of each file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .advice import advise
from .attribution import Attribution, PartitionShare, SourceFacts
from .cells import CellSums
from .delta import ChangeKind, Changes, ChangeSource, Progress
from .disk.diskmap import DiskMap, read_disk
from .disk.kinds import SpaceKind
from .disk.space import nothing, pieces, tile
from .extents import Kind, Mask, Offsets
from .filechanges import FileComparison
from .image import Image
from .layer import Layer
from .units import GIB

_KINDS = len(SpaceKind)


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
    attributor = Attributor(old, new, delta.size, delta.granularity, cells=cells)
    for window in delta.windows():
        attributor.add(window.changes)
        if each is not None:
            each(window.changes)
        if progress is not None:
            progress(window.stop, delta.size)
    return attributor.finish()


class Attributor:
    """Attributes changes as they come; see :func:`attribute`."""

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
        self._granularity = granularity
        self._map = _unread(size) if new is None else read_disk(new)
        self._rows = self._map.spaces
        self._changed = np.zeros(self._rows.size, np.int64)
        self._zeroed = np.zeros(self._rows.size, np.int64)
        self._certain = np.zeros(self._rows.size, bool)
        self._cells = CellSums(self._map, granularity, cells)

    def add(self, changes: Changes) -> None:
        """Take the changes of one window; windows come in order."""
        if not changes.size:
            return
        which, row, start, length = pieces(changes["start"], changes["length"], self._rows)
        np.add.at(self._changed, row, length)
        kind = changes["kind"][which]
        zeroed = kind == ChangeKind.ZEROED
        np.add.at(self._zeroed, row[zeroed], length[zeroed])
        self._certain[row[self._whole_granule(start, length)]] = True
        self._cells.add(kind, row, start, length)

    def _whole_granule(self, start: Offsets, length: Offsets) -> Mask:
        """Tell which pieces have a whole granule in them: something of theirs surely differs."""
        size, stop = self._granularity, start + length
        whole: Mask = -(-start // size) * size + size <= stop
        whole |= (start % size == 0) & (stop == self._map.size)
        return whole

    def finish(self) -> Attribution:
        """Return whose the changes are.

        Raises:
            CorruptImageError: an image cannot be read.
        """
        files = FileComparison(self._map, self._old, self._new, self._changed, self._certain)
        notes = [*self._map.notes, *files.notes]
        if self._new is None:
            notes.append(
                "without its base, a patch tells where it changes the disk but not what is there: "
                "nothing is attributed"
            )
        found = Attribution(
            size=self._map.size,
            granularity=self._granularity,
            changed_bytes=int(self._changed.sum()),
            by_kind=self._by_kind(self._changed),
            zeroed=self._by_kind(self._zeroed),
            partitions=(*self._map.partitions, *files.gone),
            by_partition=tuple(self._share(n) for n in (*range(len(self._map.partitions)), -1)),
            files=files.changes,
            cells=self._cells.finish(files.index_of_owner),
            sources=(_facts(self._old), _facts(self._new)),
            notes=tuple(notes),
        )
        return replace(found, advice=advise(found))

    def _share(self, number: int) -> PartitionShare:
        of = self._map.partition == number
        changed = self._by_kind(self._changed, of)
        return PartitionShare(
            None if number < 0 else self._map.partitions[number],
            sum(changed.values()),
            changed,
            self._by_kind(self._zeroed, of),
            self._by_kind(self._rows["length"], of),
        )

    def _by_kind(self, weights: Offsets, of: Mask | None = None) -> dict[SpaceKind, int]:
        """Add up by kind of space, of all records or of some."""
        some = slice(None) if of is None else of
        sums = np.zeros(_KINDS, np.int64)
        np.add.at(sums, self._rows["kind"][some], weights[some])
        return {SpaceKind(kind): int(sums[kind]) for kind in np.flatnonzero(sums).tolist()}


def _unread(size: int) -> DiskMap:
    """Return the map of a disk of which nothing is known."""
    rows = tile(nothing(), size, SpaceKind.UNKNOWN)
    return DiskMap(size, (), (), rows, (0,), np.full(rows.size, -1), ())


def _facts(image: Image | None) -> SourceFacts | None:
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
