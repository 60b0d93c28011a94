"""Comparing two images: a delta found by the cheapest proof that decides each range."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from .delta import CHANGE, WINDOW_ALIGNMENT, ChangeKind, Changes, ChangeWindow, DeltaStats
from .dirty import DirtyRanges, Suspects
from .errors import OptionError
from .extents import Extents, Kind, Mask, Offsets, multiples_inside, runs, spread
from .image import Image
from .payloads import Outcome, PayloadComparer, Words, comparable, differing, has_data
from .pieces import Classifier, Verdict
from .units import MIB, SECTOR, align_down, align_up, usable_cpus

MAX_GRANULARITY = 2 * MIB
# What one thread reads of each side at a time. Between its calls it waits for its turn with the
# interpreter: the longer they are, the less; and all threads' buffers stay in the shared cache.
_MAX_BATCH = 4 * MIB
_MIN_BATCH = MIB
_BUFFERS = 32 * MIB
_PAYLOAD_BATCH = 64
_BATCHES = 8  # to a task
# A window is bounded by how many extents it can have, and while there is much to read in it,
# by that too, so that what has been found can be written while the next is compared.
_MAX_UNITS = 64 << 10
_MIN_UNITS = 4 << 10
_MUCH_TO_READ = 128 * MIB
_WINDOWS_AHEAD = 2
# Clean stretches shorter than this are not worth a window's end.
_LONG = 64 * MIB


class ImageDelta:
    """The delta between two images, found by comparing them.

    Args:
        old: the base.
        new: the target.
        granularity: what changes are rounded to, bytes: a power of two, 512 to 2 MiB.
        threads: how many threads compare content; None takes as many as there are processors.
        dirty: what of NEW may differ from OLD: all else is taken to be equal without a look, but
            for what lies beyond the end of OLD or of what it tells of. None: anything may differ.
        trust: do not even compare what is dirty: each granule that has any of it is a change,
            unless metadata proves that it is none. It is ADDED, MODIFIED or ZEROED by metadata
            alone, so a change may be none after all, and data may be zeros.
    """

    def __init__(
        self,
        old: Image,
        new: Image,
        *,
        granularity: int = 64 << 10,
        threads: int | None = None,
        dirty: DirtyRanges | None = None,
        trust: bool = False,
    ) -> None:
        if not SECTOR <= granularity <= MAX_GRANULARITY or granularity & (granularity - 1):
            raise OptionError(f"a granularity of {granularity} is not a power of 2, 512 to 2 MiB")
        if trust and dirty is None:
            raise OptionError("there are no dirty ranges to trust")
        self.base = old
        self.target = new
        self.size = new.size
        self.granularity = granularity
        self.stats = DeltaStats()
        self._threads = threads or usable_cpus()
        self._dirty = None if dirty is None else Suspects(dirty, old.size, new.size)
        self._trust = trust

    def windows(self) -> Iterator[ChangeWindow]:
        """Compare the images, window by window.

        Raises:
            CorruptImageError: something that has to be read cannot be.
        """
        self.stats = DeltaStats()
        pools = _Pools(self._threads)
        pending: deque[_Window] = deque()
        plan = _Plan(self.base, self.target, self.granularity, self._dirty)
        comparer = _Comparer(
            self.base, self.target, self.granularity, self._dirty, self._trust, self._batch()
        )
        try:
            for start, stop in plan:
                window = _Window(comparer, start, stop)
                plan.adapt(window.to_read)
                window.submit(pools)
                pending.append(window)
                # What has nothing to compare need not wait for what comes after it.
                while pending and (len(pending) > _WINDOWS_AHEAD or pending[0].is_compared):
                    yield pending.popleft().finish(self.stats)
            while pending:
                yield pending.popleft().finish(self.stats)
            self.stats.zero += plan.unmapped
            self.stats.not_dirty += plan.not_dirty
        finally:
            pools.shutdown()

    def _batch(self) -> int:
        """Return how much a thread reads of each side at a time: a power of two."""
        batch = _MAX_BATCH
        while batch > _MIN_BATCH and 2 * batch * self._threads > _BUFFERS:
            batch //= 2
        return max(batch, self.granularity)


class _Pools:
    """Threads that compare.

    Reading and comparing plain content is a few long calls, which run side by side. Payloads are
    compared in many calls of microseconds: more than one thread would wait for the others' turn
    with the interpreter longer than it works.
    """

    def __init__(self, threads: int) -> None:
        self.content = ThreadPoolExecutor(threads, "qcowdelta-compare")
        self.payloads = ThreadPoolExecutor(1, "qcowdelta-payloads")

    def shutdown(self) -> None:
        """Forget what has not begun, and wait for what has."""
        for pool in (self.content, self.payloads):
            pool.shutdown(cancel_futures=True)


class _Plan:
    """Chooses the windows: whole granules, skipping what is clean, or unmapped on both sides.

    Attributes:
        unmapped, not_dirty: how many bytes were skipped so far, for either reason.
    """

    def __init__(self, old: Image, new: Image, granularity: int, dirty: DirtyRanges | None) -> None:
        self._old, self._new, self._dirty = old, new, dirty
        self._unit = min(old.unit, new.unit, granularity)
        if dirty is not None:
            self._unit = min(self._unit, dirty.granularity)
        self._units = _MIN_UNITS
        self.unmapped = self.not_dirty = 0

    def adapt(self, to_read: int) -> None:
        """Take larger windows while there is little to read, smaller ones otherwise."""
        if to_read > _MUCH_TO_READ:
            self._units = max(self._units // 2, _MIN_UNITS)
        elif to_read < _MUCH_TO_READ // 4:
            self._units = min(self._units * 2, _MAX_UNITS)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        position, size = 0, self._new.size
        while position < size:
            dirty = self._first_window(position, self._next_dirty(position))
            self.not_dirty += dirty - position
            mapped = self._first_window(dirty, self._next_mapped(dirty))
            self.unmapped += mapped - dirty
            position = mapped
            if position < size and self._next_dirty(position) < position + WINDOW_ALIGNMENT:
                step = max(self._units * self._unit, WINDOW_ALIGNMENT)
                stop = self._cut(position, min(align_down(position, step) + step, size))
                yield position, stop
                position = stop

    def _first_window(self, position: int, wanted: int) -> int:
        """Return where a window from ``position`` on begins, so as to have what is wanted."""
        size = self._new.size
        return size if wanted >= size else max(position, align_down(wanted, WINDOW_ALIGNMENT))

    def _next_mapped(self, position: int) -> int:
        size = self._new.size
        if position >= size:
            return size
        return min(self._old.next_mapped(position), self._new.next_mapped(position), size)

    def _next_dirty(self, position: int) -> int:
        if self._dirty is None or position >= self._new.size:
            return position
        found = self._dirty.next_dirty(position)
        return self._new.size if found is None else found

    def _cut(self, start: int, stop: int) -> int:
        """Return where the first long clean stretch of a window begins, or else its end."""
        if self._dirty is None:
            return stop
        ranges = self._dirty.ranges(start, stop)
        clean = np.append(ranges[1:, 0], stop) - ranges[:, 1]
        long = np.flatnonzero(clean >= _LONG)
        return align_up(int(ranges[long[0], 1]), WINDOW_ALIGNMENT) if long.size else stop


class _Scratch(threading.local):
    """Each comparing thread's own buffers and readers."""

    def __init__(self, old: Image, new: Image, size: int) -> None:
        self.readers = (old.reader(), new.reader())
        self.buffers = (bytearray(size), bytearray(size))


class _Comparer:
    """What compares content; safe to be used by several threads."""

    def __init__(
        self,
        old: Image,
        new: Image,
        granularity: int,
        dirty: DirtyRanges | None,
        trust: bool,
        batch: int,
    ) -> None:
        self.old, self.new, self.granularity, self.trust = old, new, granularity, trust
        self.classifier = Classifier(old, new, dirty, trust)
        self.payloads = PayloadComparer(old.sources, new.sources, granularity)
        self.batch = batch
        self._scratch = _Scratch(old, new, self.batch)

    def compare(self, batches: list[tuple[Extents, Extents]]) -> list[Outcome]:
        """Compare batches of pieces by content."""
        return [self._compare(old, new) for old, new in batches]

    def compare_payloads(self, old: Extents, new: Extents) -> list[Outcome]:
        """Compare clusters that are compressed, or zeros on one side."""
        return [self.payloads.compare(old, new)]

    def _compare(self, old: Extents, new: Extents) -> Outcome:
        """Read both sides of at most a batch of pieces and compare them, granule by granule."""
        reads = [int(e["length"][e["kind"] != Kind.ZERO].sum()) for e in (old, new)]
        a, b = self._read(0, old), self._read(1, new)
        if a is not None and b is not None and np.array_equal(a, b):
            return Outcome.of([], reads)
        unit = _common_unit(new, self.granularity)
        _, place = spread(new["start"] // unit, new["length"] // unit)
        granule = place // (self.granularity // unit)
        a, b = (None if side is None else side.reshape(-1, unit // 8) for side in (a, b))
        differs, old_nonzero, new_nonzero = differing(a, b, granule)
        length = np.full(differs.size, self.granularity)
        return Outcome(differs * self.granularity, length, old_nonzero, new_nonzero, 0, *reads)

    def _read(self, number: int, extents: Extents) -> Words | None:
        """Return the content of one side's pieces, or None where it is zeros by metadata."""
        if not (extents["kind"] != Kind.ZERO).any():
            return None
        view = memoryview(self._scratch.buffers[number])[: int(extents["length"].sum())]
        self._scratch.readers[number].read_extents(extents, view)
        return np.frombuffer(view, np.uint64)

    def nonzero(self, start: int, stop: int) -> list[bool]:
        """Tell whether a range has anything but zeros in OLD, and in NEW."""
        return [has_data(reader.read(start, stop - start)) for reader in self._scratch.readers]


def _common_unit(extents: Extents, granularity: int) -> int:
    """Return the largest power of two that divides every boundary and the granularity."""
    bits = granularity | int(np.bitwise_or.reduce(extents["start"] | extents["length"]))
    return bits & -bits


def _batches(old: Extents, new: Extents, batch: int) -> Iterator[tuple[Extents, Extents]]:
    """Group pieces, none of which crosses a multiple of ``batch``, to at most that many bytes.

    What lies between two such multiples stays together, so a granule is never torn apart.
    """
    first, _ = runs(new["start"] // batch)
    sizes = np.add.reduceat(new["length"], first).tolist()
    begin, total = 0, 0
    for at, size in zip(first.tolist(), sizes, strict=True):
        if total + size > batch:
            yield old[begin:at], new[begin:at]
            begin, total = at, 0
        total += size
    yield old[begin:], new[begin:]


@dataclass
class _Flags:
    """What is known of each granule of a window."""

    differs: Mask
    old_nonzero: Mask
    new_nonzero: Mask


class _Window:
    """One window on its way from metadata to changes."""

    def __init__(self, comparer: _Comparer, start: int, stop: int) -> None:
        self._comparer = comparer
        self._start, self._stop = start, stop
        self._granularity = comparer.granularity
        self._pieces = comparer.classifier.pieces(start, stop)
        self._tasks: list[Future[list[Outcome]]] = []
        self.to_read = self._pieces.bytes_of(Verdict.OPEN)

    def submit(self, pools: _Pools) -> None:
        """Hand all comparing of content to the pool."""
        comparer, pieces = self._comparer, self._pieces
        read = pieces.open & ~self._payloads()
        pieces.cut(multiples_inside(pieces.start[read], pieces.length[read], comparer.batch))
        payloads = self._payloads()
        old, new = pieces.old[payloads], pieces.new[payloads]
        for i in range(0, old.size, _PAYLOAD_BATCH):
            rows = slice(i, i + _PAYLOAD_BATCH)
            task = pools.payloads.submit(comparer.compare_payloads, old[rows], new[rows])
            self._tasks.append(task)
        read = pieces.open & ~payloads
        if read.any():
            batches = list(_batches(pieces.old[read], pieces.new[read], comparer.batch))
            for i in range(0, len(batches), _BATCHES):
                self._tasks.append(
                    pools.content.submit(comparer.compare, batches[i : i + _BATCHES])
                )

    @property
    def is_compared(self) -> bool:
        """Whether nothing has to be waited for."""
        return all(task.done() for task in self._tasks)

    def _payloads(self) -> Mask:
        comparer = self._comparer
        return comparable(self._pieces, comparer.old.sources, comparer.new.sources)

    def finish(self, stats: DeltaStats) -> ChangeWindow:
        """Wait for the comparing, and return the changes."""
        granules = -(-(self._stop - self._start) // self._granularity)
        flags = _Flags(*(np.zeros(granules, bool) for _ in range(3)))
        equal_payload = 0
        for outcome in (outcome for task in self._tasks for outcome in task.result()):
            equal_payload += outcome.equal_payload
            stats.bytes_read_old += outcome.read_old
            stats.bytes_read_new += outcome.read_new
            self._mark(flags, outcome)
        self._count(stats, equal_payload)
        self._mark_told(flags)
        if not self._comparer.trust:
            self._look_again(flags)
        return ChangeWindow(self._start, self._stop, self._changes(flags), self._pieces.new)

    def _mark(self, flags: _Flags, outcome: Outcome) -> None:
        """Carry over what differs: each range lies in one granule, which may hold several."""
        if not outcome.start.size:
            return
        granule = (outcome.start - self._start) // self._granularity
        flags.differs[granule] = True
        flags.old_nonzero[granule[outcome.old_nonzero]] = True
        flags.new_nonzero[granule[outcome.new_nonzero]] = True

    def _mark_told(self, flags: _Flags) -> None:
        """Carry over what is known to differ without being read."""
        pieces = self._pieces
        told = pieces.verdict == Verdict.CHANGED
        # Where nothing is read, the rest of a changed granule is known by its metadata too.
        known = told | self._comparer.trust
        for mask, field in (
            (told, flags.differs),
            (known & (pieces.new["kind"] != Kind.ZERO), flags.new_nonzero),
            (known & (pieces.old["kind"] != Kind.ZERO), flags.old_nonzero),
        ):
            start, stop = pieces.start[mask], pieces.start[mask] + pieces.length[mask]
            first = (start - self._start) // self._granularity
            last = (stop - self._start - 1) // self._granularity
            depth = np.zeros(field.size + 1, np.int64)
            np.add.at(depth, first, 1)
            np.add.at(depth, last + 1, -1)
            field |= np.cumsum(depth[:-1]) > 0

    def _count(self, stats: DeltaStats, equal_payload: int) -> None:
        pieces = self._pieces
        stats.shared_layer += pieces.bytes_of(Verdict.SHARED_LAYER)
        stats.zero += pieces.bytes_of(Verdict.ZERO)
        stats.shared_extent += pieces.bytes_of(Verdict.SHARED_EXTENT)
        stats.told += pieces.bytes_of(Verdict.CHANGED)
        stats.not_dirty += pieces.bytes_of(Verdict.NOT_DIRTY)
        stats.equal_payload += equal_payload
        stats.read += self.to_read - equal_payload

    def _look_again(self, flags: _Flags) -> None:
        """Read what differs only in a part, where the parts not read decide if it is zeros.

        A granule that differs can hold pieces proved equal without being read.
        """
        pieces, size = self._pieces, self._granularity
        payloads = self._payloads()
        known = (pieces.open & ~payloads) | (pieces.verdict == Verdict.ZERO)
        known |= payloads & (pieces.length >= size)
        known |= pieces.verdict == Verdict.CHANGED
        sums = np.concatenate([[0], np.cumsum(np.where(known, pieces.length, 0))])

        def known_before(offset: Offsets) -> Offsets:
            row = np.searchsorted(pieces.start, offset, side="right") - 1
            return sums[row] + np.where(known[row], offset - pieces.start[row], 0)

        granule = np.flatnonzero(flags.differs & ~(flags.old_nonzero & flags.new_nonzero))
        start = self._start + granule * size
        stop = np.minimum(start + size, self._stop)
        unsure = known_before(stop) - known_before(start) < stop - start
        for number, i, j in zip(granule[unsure], start[unsure], stop[unsure], strict=True):
            old, new = self._comparer.nonzero(int(i), int(j))
            flags.old_nonzero[number], flags.new_nonzero[number] = old, new

    def _changes(self, flags: _Flags) -> Changes:
        granule = np.flatnonzero(flags.differs)
        data = np.where(flags.old_nonzero[granule], ChangeKind.MODIFIED, ChangeKind.ADDED)
        kind = np.where(flags.new_nonzero[granule], data, ChangeKind.ZEROED)
        # A run goes on while granule numbers rise by one and the kind stays.
        first, counts = runs((granule - np.arange(granule.size)) * len(ChangeKind) * 2 + kind)
        changes = np.empty(first.size, CHANGE)
        changes["start"] = self._start + granule[first] * self._granularity
        stop = changes["start"] + counts * self._granularity
        changes["length"] = np.minimum(stop, self._stop) - changes["start"]
        changes["kind"] = kind[first]
        return changes
