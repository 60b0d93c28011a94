"""Encoding segments: equal blocks become copies, the rest is coded against similar ones.

Three steps, so that the result does not depend on how many threads there are. :meth:`plan` looks
at a segment and the base alone, and any number of segments at once; :meth:`link` looks at the
segments before it, and takes them one after the other; :meth:`encode` does the long work, again
any number at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from ..extents import Mask, Offsets
from ..image import Image
from ..ranges import RangeReader
from ..reader import Readable
from . import layout
from .blocks import BLOCK, Blocks, Features, Keys, block_keys, features
from .codec import encode_lz4, encode_zstd
from .effort import Settings
from .layout import Codec, OperationKind, Space
from .scan import BaseScan
from .segment import Rows, Segment
from .table import Table

# Features that a segment must share with another one for each that it would come to need.
_WORTH = 8
_NEAR = 4  # blocks beside one that was found, in which those that a table lost are looked for
_COPY_WEIGHT = 8  # what a block that can be copied counts, in features shared


@dataclass
class Plan:
    """A segment on its way.

    Attributes:
        number, start, length: its number and its range of the target, bytes.
        leaf_digests: of its whole content.
        block: numbers of the blocks in it that changed, ascending.
        content: these blocks' content, the last padded with zeros.
        kind, source: what is to become of each, and where a copy comes from.
        keys: the hash of each block.
        data: which blocks are DATA so far, as indexes of ``block``.
        features: the features of these.
        partners: offsets of similar blocks of the base for each of these; -1: none.
        others: the same for blocks of the target.
        references: the segments that these, and copies, lie in.
    """

    number: int
    start: int
    length: int
    leaf_digests: tuple[bytes, ...]
    block: Offsets
    content: Blocks
    kind: npt.NDArray[np.uint8]
    source: Offsets
    keys: Keys
    data: npt.NDArray[np.intp]
    features: Features
    partners: Offsets
    others: Offsets = field(default_factory=lambda: np.empty((0, 0), np.int64))
    references: tuple[int, ...] = ()


class Encoder:
    """Encodes the segments of one patch.

    Args:
        base: what it is made from.
        target: what it leads to.
        scan: what was found in the base.
        settings: how.
    """

    def __init__(self, base: Image, target: Readable, scan: BaseScan, settings: Settings) -> None:
        self._base, self._target = RangeReader(base), RangeReader(target)
        self._scan, self._settings = scan, settings
        self._bits = settings.segment_bits
        blocks = min(target.size // BLOCK, 1 << 20)
        self._closures: dict[int, tuple[int, ...]] = {}
        self._equal = Table(blocks, target.size)
        self._similar = Table(blocks * (BLOCK // settings.per if settings.per else 0), target.size)

    def plan(self, number: int, block: Offsets) -> Plan:
        """Look at a segment alone.

        Args:
            number: which.
            block: numbers of its blocks that changed, counted from its beginning, ascending.
        """
        size = 1 << self._bits
        start = number << self._bits
        length = min(size, self._target.size - start)
        buffer = bytearray(-(-length // BLOCK) * BLOCK)
        self._target.read_into(start, memoryview(buffer)[:length])
        view = memoryview(buffer)[:length]
        digests = (
            blake3(view[i : i + layout.LEAF]).digest() for i in range(0, length, layout.LEAF)
        )
        content = np.frombuffer(buffer, np.uint8).reshape(-1, BLOCK)[block]
        keys = block_keys(content)
        kind = np.full(block.size, OperationKind.DATA, np.uint8)
        zero = keys == 0
        zero[zero] = ~content[zero].any(axis=1)
        kind[zero] = OperationKind.ZERO
        source = self._find_equal(block, content, keys, kind)
        data = np.flatnonzero(kind == OperationKind.DATA)
        found = np.empty((0, 0), np.uint32)
        partners = np.empty((data.size, 0), np.int64)
        if self._settings.per and data.size:
            found = features(np.ascontiguousarray(content[data]), self._settings.per)
            partners = self._scan.similar.get(found.astype(np.uint64))
        return Plan(
            number=number,
            start=start,
            length=length,
            leaf_digests=tuple(digests),
            block=block,
            content=content,
            kind=kind,
            source=source,
            keys=keys,
            data=data,
            features=found,
            partners=partners,
        )

    def _find_equal(
        self, block: Offsets, content: Blocks, keys: Keys, kind: npt.NDArray[np.uint8]
    ) -> Offsets:
        """Turn blocks that are in the base into copies; return where they come from."""
        source = self._scan.equal.get(keys)
        source[kind == OperationKind.ZERO] = -1
        far = block.size if self._scan.equal.crowded else _NEAR
        wanted = kind == OperationKind.DATA
        source = _continue_runs(block, source, self._base.size, wanted, far)
        candidates = np.flatnonzero(source >= 0)
        equal = self._verify(self._base, source[candidates], content[candidates])
        source[candidates[~equal]] = -1
        kind[source >= 0] = OperationKind.COPY_BASE
        return np.maximum(source, 0)

    def _verify(self, side: RangeReader, source: Offsets, content: Blocks) -> Mask:
        """Tell which blocks really are what lies at their sources."""
        if not source.size:
            return np.zeros(0, bool)
        data = side.read(source, np.full(source.size, BLOCK))
        there = np.frombuffer(data, np.uint64).reshape(-1, BLOCK // 8)
        equal: Mask = (there == content.view(np.uint64)).all(axis=1)
        return equal

    def link(self, plan: Plan) -> None:
        """Look for a segment's blocks in the segments before it; to be called in their order."""
        self._closures[plan.number] = ()
        if not plan.data.size:
            return
        keys, found = plan.keys[plan.data], plan.features.astype(np.uint64)
        copies = self._equal.get(keys)
        others = self._similar.get(found) if found.size else found.astype(np.int64)
        self._refer(plan, copies, others)
        offsets = plan.start + plan.block[plan.data] * BLOCK
        self._equal.put_new(keys, offsets)
        if found.size:
            each = np.repeat(offsets, found.shape[1])
            self._similar.put_new(found.reshape(-1), each)

    def _refer(self, plan: Plan, copies: Offsets, others: Offsets) -> None:
        """Make a segment use the segments that give it most."""
        copied, near = copies[copies >= 0], others[others >= 0]
        numbers, which = np.unique(
            np.concatenate([copied, near]) >> self._bits, return_inverse=True
        )
        weight = np.bincount(which, np.repeat([_COPY_WEIGHT, 1], [copied.size, near.size]))
        order = np.argsort(-weight, kind="stable")
        plan.references = self._closed(numbers[order].tolist(), weight[order].tolist())
        self._closures[plan.number] = plan.references
        copies = np.where(np.isin(copies >> self._bits, plan.references), copies, -1)
        plan.others = np.where(np.isin(others >> self._bits, plan.references), others, -1)
        exact = copies >= 0
        plan.kind[plan.data[exact]] = OperationKind.COPY_TARGET
        plan.source[plan.data[exact]] = copies[exact]

    def _closed(self, wanted: list[int], weights: list[float]) -> tuple[int, ...]:
        """Take segments, each with all that it needs itself, as long as there is room for them."""
        taken: set[int] = set()
        for number, weight in zip(wanted, weights, strict=True):
            more = taken.union((number,), self._closures[number])
            worth = weight >= _WORTH * (len(more) - len(taken))
            if worth and len(more) <= self._settings.references:
                taken = more
        return tuple(sorted(taken))

    def encode(self, plan: Plan) -> Segment:
        """Do the rest."""
        self._verify_copies(plan)
        data = plan.kind == OperationKind.DATA
        operations = _operations(plan, self._bits)
        lengths = operations["length"][operations["kind"] == OperationKind.DATA]
        payload = plan.content[data].reshape(-1)[: int(lengths.sum())].tobytes()
        ranges = self._dictionary(plan, data) if payload else np.empty(0, layout.RANGE)
        dictionary = self._read(ranges)
        codec, stored = self._code(payload, dictionary)
        if codec != Codec.ZSTD:
            ranges, dictionary = ranges[:0], b""
        copies = operations[operations["kind"] == OperationKind.COPY_BASE]
        used = blake3(
            self._base.read(copies["source"].astype(np.int64), copies["length"].astype(np.int64))
        )
        used.update(dictionary[: _length(ranges, Space.BASE)])
        return Segment(
            number=plan.number,
            start=plan.start,
            length=plan.length,
            operations=operations,
            ranges=ranges,
            references=plan.references,
            leaf_digests=plan.leaf_digests,
            base_digest=used.digest(),
            codec=codec,
            payload=stored,
            data_length=len(payload),
            dictionary_length=len(dictionary),
            segment_size=1 << self._bits,
        )

    def _verify_copies(self, plan: Plan) -> None:
        copied = np.flatnonzero(plan.kind == OperationKind.COPY_TARGET)
        equal = self._verify(self._target, plan.source[copied], plan.content[copied])
        plan.kind[copied[~equal]] = OperationKind.DATA
        plan.source[copied[~equal]] = 0

    def _code(self, payload: bytes, dictionary: bytes) -> tuple[Codec, bytes]:
        level = self._settings.level
        if not payload:
            return Codec.STORED, b""
        packed = encode_zstd(payload, dictionary, level) if level else encode_lz4(payload)
        if packed is None:
            return Codec.STORED, payload
        return Codec.ZSTD if level else Codec.LZ4, packed

    def _dictionary(self, plan: Plan, data: Mask) -> Rows:
        """Choose the base's and the target's blocks that the DATA is coded against."""
        if self._settings.level is None or not self._settings.dictionary:
            return np.empty(0, layout.RANGE)
        left = data[plan.data]
        # One number space: the target's blocks behind all of the base's.
        beyond = -(-self._base.size // BLOCK) + 1
        candidates = _numbers(plan.partners[left], 0)
        if plan.references and plan.others.size:
            candidates = np.concatenate([candidates, _numbers(plan.others[left], beyond)], axis=1)
        here = self._with_data(plan.start // BLOCK + plan.block[data])
        chosen = _most_voted(candidates, self._settings.partners)
        for neighbours in range(self._settings.neighbours, -1, -1):
            numbers = _with_neighbours(chosen, here, neighbours)
            if numbers.size * BLOCK <= self._settings.dictionary:
                break
        numbers = numbers[: self._settings.dictionary // BLOCK]
        of_base = numbers[numbers < beyond - 1]
        of_target = numbers[numbers >= beyond] - beyond
        known = np.isin(of_target * BLOCK >> self._bits, plan.references)
        return np.concatenate(
            [
                _ranges(of_base * BLOCK, self._base.size, Space.BASE, None),
                _ranges(of_target[known] * BLOCK, self._target.size, Space.TARGET, self._bits),
            ]
        )

    def _with_data(self, numbers: Offsets) -> Offsets:
        """Return those of some blocks that are not zeros in the base.

        Its content tells, not its metadata, or else the patch would depend on how the base is
        stored, and on what the host has written out of it.
        """
        start = numbers[numbers * BLOCK < self._base.size] * BLOCK
        if not start.size:
            return start
        length = np.minimum(self._base.size - start, BLOCK)
        words = np.frombuffer(self._base.read(start, length), np.uint64)
        begins = (np.cumsum(length) - length) // words.itemsize
        with_data: Offsets = start[np.maximum.reduceat(words, begins) != 0] // BLOCK
        return with_data

    def _read(self, ranges: Rows) -> bytes:
        parts = []
        for space, side in ((Space.BASE, self._base), (Space.TARGET, self._target)):
            rows = ranges[ranges["space"] == space]
            lengths = rows["length"].astype(np.int64)
            parts.append(side.read(rows["start"].astype(np.int64), lengths))
        return b"".join(parts)


def _length(ranges: Rows, space: Space) -> int:
    return int(ranges["length"][ranges["space"] == space].astype(np.int64).sum())


def _operations(plan: Plan, bits: int) -> Rows:
    """Join blocks to operations."""
    copied = plan.kind >= OperationKind.COPY_BASE
    together = (np.diff(plan.block) == 1) & (plan.kind[1:] == plan.kind[:-1])
    together &= ~copied[1:] | (np.diff(plan.source) == BLOCK)
    inside = plan.source[1:] & ((1 << bits) - 1) != 0
    together &= (plan.kind[1:] != OperationKind.COPY_TARGET) | inside
    first = np.flatnonzero(np.append(True, ~together))
    rows = np.empty(first.size, layout.OPERATION)
    last = np.append(first[1:], plan.block.size) - 1
    start = plan.block[first] * BLOCK
    rows["start"] = start
    rows["length"] = np.minimum(plan.block[last] * BLOCK + BLOCK, plan.length) - start
    rows["kind"] = plan.kind[first]
    rows["source"] = np.where(copied[first], plan.source[first], 0)
    return rows


def _continue_runs(block: Offsets, source: Offsets, size: int, wanted: Mask, far: int) -> Offsets:
    """Guess that up to so many blocks beside one that was found come from beside its source.

    A table loses keys that share a place, and a crowded one knows only some of the base's
    blocks. What is guessed is verified.
    """
    source = source.copy()
    for order in (slice(None), slice(None, None, -1)):
        found = np.where(source[order] >= 0, np.arange(source.size), -1)
        last = np.maximum.accumulate(found)
        guess = source[order][last] + (block[order] - block[order][last]) * BLOCK
        missing = (source[order] < 0) & (last >= 0) & wanted[order]
        missing &= np.arange(source.size) - last <= far
        missing &= (guess >= 0) & (guess + BLOCK <= size)
        source[order][missing] = guess[missing]
    return source


def _numbers(offsets: Offsets, beyond: int) -> Offsets:
    return np.where(offsets >= 0, offsets // BLOCK + beyond, -1)


def _most_voted(candidates: Offsets, count: int) -> Offsets:
    """Return for each row the candidates that occur most often in it, all in one array."""
    left = candidates.copy()
    chosen = []
    for _ in range(count if left.size else 0):
        votes = (left[:, :, None] == left[:, None, :]).sum(axis=2)
        votes[left < 0] = -1
        best = np.take_along_axis(left, votes.argmax(axis=1)[:, None], axis=1)
        chosen.append(best[best >= 0])
        left[left == best] = -1
    return np.unique(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)


def _with_neighbours(chosen: Offsets, here: Offsets, neighbours: int) -> Offsets:
    shifts = np.arange(-neighbours, neighbours + 1)
    around = (chosen[:, None] + shifts).reshape(-1)
    return np.unique(np.concatenate([around[around >= 0], here]))


def _ranges(starts: Offsets, size: int, space: Space, bits: int | None) -> Rows:
    """Join blocks that follow each other to ranges; those of the target end with a segment."""
    starts = starts[starts < size]
    apart = np.append(True, np.diff(starts) != BLOCK)[: starts.size]
    if bits is not None:
        apart |= starts & ((1 << bits) - 1) == 0
    first = np.flatnonzero(apart)
    rows = np.empty(first.size, layout.RANGE)
    last = np.append(first[1:], starts.size)[: first.size] - 1
    rows["start"] = starts[first]
    rows["length"] = np.minimum(starts[last] + BLOCK, size) - starts[first]
    rows["space"] = space
    return rows
