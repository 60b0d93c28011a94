"""Which of patch, base and target is wrong, and where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from blake3 import blake3

from ..errors import CorruptImageError, FormatError, ImageError, UnsupportedFeatureError
from ..extents import Offsets
from ..hashtree import LEAF, TreeHasher, content_digest, leaf_digests, leaf_length, zero_leaf
from ..image import Image
from ..ranges import RangeReader
from .container import PatchFile
from .decode import SegmentDecoder
from .header import MAGIC_FIELD
from .open import other_readings, roots, size_of

_MOST = 1000

Leaves: TypeAlias = dict[int, bytes]
Range: TypeAlias = tuple[int, int]


@dataclass
class Finding:
    """What was found out about one of the three.

    Attributes:
        good: whether nothing is wrong with it; None: it was not checked.
        problem: what is, or why it was not checked.
        ranges: guest ranges (start, length) that are known to be wrong, bytes; at most 1000.
    """

    good: bool | None = True
    problem: str = ""
    ranges: list[tuple[int, int]] = field(default_factory=list)

    def fail(self, problem: str, ranges: list[tuple[int, int]] | None = None) -> None:
        """Note a problem; the first one counts, the ranges of all do."""
        self.problem = self.problem or problem
        self.good = False
        self.ranges = [*self.ranges, *(ranges or [])][:_MOST]


@dataclass
class Verification:
    """What was found; None for what was not given."""

    patch: Finding
    base: Finding | None = None
    target: Finding | None = None

    @property
    def good(self) -> bool:
        """Whether nothing is wrong with any of them, all that was given having been checked."""
        return all(found is None or found.good for found in (self.patch, self.base, self.target))


def verify_patch(
    patch: PatchFile, base: Image | None = None, target: Image | None = None
) -> Verification:
    """Check a patch, whose header and index are known to be whole, and the images it is about.

    Raises:
        CorruptImageError: an image cannot be read.
    """
    segments = _Segments(patch)
    found = Verification(segments.finding)
    if base is not None:
        found.base = Finding()
        _check_base(segments, base, found.base)
        if found.base.good and found.patch.good:
            _check_result(segments, base, found.patch)
    if target is not None:
        found.target = Finding()
        wrong = found.base if found.base is not None and not found.base.good else None
        known = _check_target(segments, base if wrong is None else None, target, found.target)
        if base is not None and wrong is not None and found.target.good:
            _pin_base(segments, base, target, known, wrong)
    return found


def damaged_patch(error: ImageError, *, base: bool, target: bool) -> Verification:
    """Return what is known where a patch could not even be opened.

    Args:
        error: what opening it raised.
        base: whether one was given, which cannot be checked then.
        target: likewise.

    Raises:
        ImageError: the error itself, where it says something else than that the header, the
            index, the footer or the length is damaged: that the file is no patch at all, is of a
            later version, or was not opened.
    """
    damage = isinstance(error, FormatError | CorruptImageError)
    if not damage or isinstance(error, UnsupportedFeatureError) or error.field == MAGIC_FIELD:
        raise error
    unchecked = Finding(None, "was not checked, since the patch is damaged")
    return Verification(
        Finding(False, f"is damaged: {error.message}"),
        unchecked if base else None,
        unchecked if target else None,
    )


class _Segments:
    """The readable segments of a patch; the others are told."""

    def __init__(self, patch: PatchFile) -> None:
        self.patch = patch
        self.finding = Finding()
        self.leaves: dict[int, bytes] = {}
        self.readable: list[int] = []
        bits = patch.header.segment_bits
        for at, number in enumerate(patch.entries["number"].tolist()):
            try:
                segment = patch.segment(at)
            except ImageError as error:
                self.finding.fail(error.message, [_clipped(patch, number << bits, 1 << bits)])
                continue
            self.readable.append(at)
            self.leaves.update(enumerate(segment.leaf_digests, segment.start // LEAF))

    def stored(self, leaf: int) -> bool:
        """Tell whether a leaf of the target lies in a stored segment, readable or not."""
        start = leaf * LEAF
        return self.patch.find(start >> self.patch.header.segment_bits) is not None


def _clipped(patch: PatchFile, start: int, length: int) -> tuple[int, int]:
    return start, min(length, patch.header.target_size - start)


def _check_base(segments: _Segments, base: Image, finding: Finding) -> None:
    header = segments.patch.header
    hint = other_readings(base, header.base_size, "base")
    if base.size != header.base_size:
        finding.fail(f"{size_of(base)}, not {header.base_size}{hint}")
        return
    whole = segments.finding.good
    base_root, target_root = roots(segments.patch, base) if whole else (content_digest(base), b"")
    if base_root == header.base_digest:
        if whole and target_root != header.target_digest:
            segments.finding.fail("does not make up the target that its header names")
        return
    finding.fail(f"is not the base that the patch was made from: its content is different{hint}")
    reader = RangeReader(base)
    for at in segments.readable:
        segment = segments.patch.segment(at)
        starts, lengths = segment.of_base()
        if blake3(reader.read(starts, lengths)).digest() != segment.base_digest:
            pairs = zip(starts.tolist(), lengths.tolist(), strict=True)
            finding.fail("", list(pairs))


def _check_result(segments: _Segments, base: Image, finding: Finding) -> None:
    """Decode everything: a patch that is whole can still be a wrong one."""
    decoder = SegmentDecoder(segments.patch, base)
    try:
        decoder.check_rest()
    except ImageError as error:
        finding.fail(error.message)
    finally:
        decoder.close()


def _check_target(
    segments: _Segments, base: Image | None, target: Image, finding: Finding
) -> Leaves:
    """Check the target, with the base if that is right; return the target's leaves."""
    header = segments.patch.header
    hint = other_readings(target, header.target_size, "target", snapshots=False)
    if target.size != header.target_size:
        finding.fail(f"{size_of(target)}, not {header.target_size}{hint}")
        return {}
    known = dict(leaf_digests(base)) if base is not None else None
    tree, wrong = TreeHasher(target.size), []
    actual = dict(leaf_digests(target))
    for index in sorted({*actual, *segments.leaves, *(known or ())}):
        length = leaf_length(target.size, index)
        digest = actual.get(index) or zero_leaf(length)
        if length:
            tree.add(index, digest)
        expected = segments.leaves.get(index)
        if known is not None and base is not None and not segments.stored(index):
            same = leaf_length(base.size, index) == length
            expected = known.get(index, zero_leaf(length)) if same else None
        if length and expected is not None and expected != digest:
            wrong.append((index * LEAF, length))
    if tree.root() != header.target_digest:
        finding.fail(f"is not what the patch leads to: its content is different{hint}", wrong)
    return actual


def _pin_base(
    segments: _Segments, base: Image, target: Image, known: Leaves, finding: Finding
) -> None:
    """Tell where a wrong base is wrong in what the patch leaves alone, given the right target.

    Args:
        segments: those of the patch.
        base: the wrong one.
        target: the right one.
        known: its leaves.
        finding: what is known of the base.
    """
    if base.size != segments.patch.header.base_size:
        return
    readers = RangeReader(base), RangeReader(target)
    found: list[Range] = []
    for starts, lengths in _left_alone(segments, base, target, known):
        ours, theirs = (reader.read(starts, lengths) for reader in readers)
        if ours == theirs:
            continue
        at = 0
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
            if ours[at : at + length] != theirs[at : at + length]:
                found.append((start, length))
            at += length
        if len(found) >= _MOST:
            break
    finding.fail("", found)


def _left_alone(
    segments: _Segments, base: Image, target: Image, known: Leaves
) -> Iterator[tuple[Offsets, Offsets]]:
    """Yield, as starts and lengths, some ranges at a time that have to be equal in both.

    Leaves of segments that are not stored are left out where their hashes prove them equal.
    """
    end = min(base.size, target.size)
    leaves = dict(leaf_digests(base))
    for index in sorted({*leaves, *known}):
        start, stop = index * LEAF, min(end, (index + 1) * LEAF)
        lengths = leaf_length(base.size, index), leaf_length(target.size, index)
        digests = leaves.get(index), known.get(index)
        ours, theirs = (d or zero_leaf(n) for d, n in zip(digests, lengths, strict=True))
        if start < stop and ours != theirs and not segments.stored(index):
            yield np.array([start], np.int64), np.array([stop - start], np.int64)
    for at in segments.readable:
        segment = segments.patch.segment(at)
        rows = segment.operations["start"].astype(np.int64) + segment.start
        ends = rows + segment.operations["length"]
        starts = np.concatenate([[segment.start], ends])
        stops = np.minimum(np.concatenate([rows, [segment.start + segment.length]]), end)
        kept = starts < stops
        yield starts[kept], (stops - starts)[kept]
