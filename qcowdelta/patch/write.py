"""A delta as a portable cluster patch."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from blake3 import blake3

from ..delta import Changes, Delta, Progress, Summary
from ..errors import OptionError
from ..extents import Offsets, spread
from ..hashtree import LEAF, TreeHasher, leaf_length
from ..layer import keep_inflated
from ..output import AtomicOutput
from ..ranges import RangeReader
from ..units import ceil_div, usable_cpus
from ..version import __version__
from .blocks import BLOCK
from .container import PatchWriter
from .effort import SETTINGS, Effort
from .encode import Encoder, Plan
from .header import Header
from .layout import OperationKind, SectionType
from .scan import BaseScan
from .segment import Segment


@dataclass(frozen=True)
class PatchOptions:
    """How a patch is written.

    Attributes:
        effort: how much is done for a smaller patch.
        threads: how many work on it; None takes as many as there are processors. The patch does
            not depend on it.
    """

    effort: Effort = "default"
    threads: int | None = None


@dataclass
class PatchReport:
    """What was written.

    Attributes:
        summary: the delta in figures.
        file_size: the patch's length, bytes.
        segments: how many segments it has.
        operations: bytes of the target by kind of operation.
        stored: bytes that the DATA takes in the patch.
    """

    summary: Summary
    file_size: int = 0
    segments: int = 0
    operations: Counter[str] = field(default_factory=Counter)
    stored: int = 0

    def add(self, segment: Segment) -> None:
        """Count a segment in."""
        self.segments += 1
        self.stored += len(segment.payload)
        for kind in OperationKind:
            lengths = segment.of_kind(kind)["length"].astype(np.int64)
            self.operations[kind.name.lower()] += int(lengths.sum())


def write_patch(
    delta: Delta,
    output: AtomicOutput,
    options: PatchOptions | None = None,
    progress: Progress | None = None,
) -> PatchReport:
    """Write a delta as a patch. The output's owner decides when it gets its name.

    Args:
        delta: what to write; its granularity must be 4 KiB.
        output: where to.
        options: how.
        progress: called again and again with how much is done of reading base and target.

    Raises:
        OptionError: the delta's granularity is another.
        CorruptImageError: content that has to be read cannot be.
        OSError: reading or writing failed.
    """
    if delta.granularity != BLOCK:
        raise OptionError(f"a patch is made of a delta in steps of {BLOCK} bytes")
    options = options or PatchOptions()
    threads = options.threads or usable_cpus()
    with (
        ThreadPoolExecutor(threads, "qcowdelta-patch") as pool,
        ThreadPoolExecutor(threads, "qcowdelta-encode") as late,
    ):
        return _Writing(delta, output, options, progress, threads).run(pool, late)


class _Writing:
    def __init__(
        self,
        delta: Delta,
        output: AtomicOutput,
        options: PatchOptions,
        progress: Progress | None,
        threads: int,
    ) -> None:
        self._delta, self._progress = delta, progress
        self._settings = SETTINGS[options.effort]
        self._ahead = threads + 1
        self._total = delta.base.size + delta.target.size
        self._output = output
        self._report = PatchReport(Summary(delta.target.size, BLOCK))
        self._leaves: dict[int, bytes] = {}

    def run(self, pool: Executor, late: Executor) -> PatchReport:
        delta = self._delta
        for side in (delta.base, delta.target):
            keep_inflated(side.sources, self._output.folder)
        scan = BaseScan(delta.base, self._settings.per)
        scan.run(pool, lambda done, _: self._tell(done))
        header = Header(
            delta.base.size,
            delta.target.size,
            scan.digest,
            bytes(32),
            self._settings.segment_bits,
            sections=((SectionType.CREATOR, f"qcowdelta {__version__}".encode()),),
        )
        writer = PatchWriter(self._output, header)
        encoder = Encoder(delta.base, delta.target, scan, self._settings)
        for segment in self._encode(encoder, pool, late):
            writer.add(segment)
            self._report.add(segment)
        self._report.file_size = writer.finish(self._target_digest(scan))
        return self._report

    def _tell(self, done: int) -> None:
        if self._progress is not None:
            self._progress(done, self._total)

    def _encode(self, encoder: Encoder, pool: Executor, late: Executor) -> Iterator[Segment]:
        """Run the three steps, each for a bounded number of segments before the next one's."""
        planned: deque[Future[Plan]] = deque()
        coded: deque[Future[Segment]] = deque()

        def link() -> None:
            plan = planned.popleft().result()
            self._note_leaves(plan)
            encoder.link(plan)
            coded.append(late.submit(encoder.encode, plan))

        try:
            for number, block in self._changed():
                planned.append(pool.submit(encoder.plan, number, block))
                if len(planned) > self._ahead:
                    link()
                if len(coded) > self._ahead:
                    yield coded.popleft().result()
            while planned:
                link()
            while coded:
                yield coded.popleft().result()
        finally:
            for plan in planned:
                plan.cancel()
            for segment in coded:
                segment.cancel()

    def _note_leaves(self, plan: Plan) -> None:
        first = plan.start // LEAF
        self._leaves.update(enumerate(plan.leaf_digests, first))

    def _changed(self) -> Iterator[tuple[int, Offsets]]:
        """Yield each segment that has changes, and the numbers of its blocks that changed."""
        bits = self._settings.segment_bits
        per_segment = (1 << bits) // BLOCK
        waiting: list[Offsets] = []
        for window in self._delta.windows():
            self._report.summary.add(window.changes)
            waiting.append(_blocks(window.changes))
            # A window may end inside of a segment.
            complete = -1 if window.stop == self._delta.target.size else window.stop >> bits
            blocks = np.concatenate(waiting)
            number = blocks // per_segment
            done = np.ones(blocks.size, bool) if complete < 0 else number < complete
            waiting = [blocks[~done]]
            blocks, number = blocks[done], number[done]
            first = np.flatnonzero(np.append(True, np.diff(number) != 0)[: number.size])
            for part in np.split(blocks, first[1:]) if number.size else ():
                yield int(part[0] // per_segment), part % per_segment
            self._tell(self._delta.base.size + window.stop)
        if waiting and waiting[0].size:
            blocks = waiting[0]
            for number in np.unique(blocks // per_segment).tolist():
                yield number, blocks[blocks // per_segment == number] % per_segment

    def _target_digest(self, scan: BaseScan) -> bytes:
        """Put the target's hash tree together from changed leaves and the base's."""
        size = self._delta.target.size
        tree = TreeHasher(size)
        last = ceil_div(size, LEAF) - 1
        numbers = {n for n in scan.leaves() if n <= last} | set(self._leaves)
        reader = RangeReader(self._delta.target)
        for index in sorted(numbers):
            digest = self._leaves.get(index) or scan.leaf(index, size)
            if digest is None:
                buffer = bytearray(leaf_length(size, index))
                reader.read_into(index * LEAF, memoryview(buffer))
                digest = blake3(buffer).digest()
            tree.add(index, digest)
        return tree.root()


def _blocks(changes: Changes) -> Offsets:
    """Return the numbers of all blocks in changes."""
    first = changes["start"] // BLOCK
    return spread(first, -(-changes["length"] // BLOCK))[1]
