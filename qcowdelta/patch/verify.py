"""Which of patch, base and target is wrong, and where."""

from __future__ import annotations

from dataclasses import dataclass, field

from blake3 import blake3

from ..errors import ImageError
from ..hashtree import LEAF, TreeHasher, content_digest, leaf_digests, leaf_length, zero_leaf
from ..image import Image
from ..ranges import RangeReader
from .container import PatchFile
from .decode import SegmentDecoder
from .open import roots

_MOST = 1000


@dataclass
class Finding:
    """What was found out about one of the three.

    Attributes:
        good: whether nothing is wrong with it.
        problem: what is.
        ranges: guest ranges (start, length) that are known to be wrong, bytes; at most 1000.
    """

    good: bool = True
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
        """Whether nothing is wrong with any of them."""
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
        _check_target(segments, base if found.base and found.base.good else None, target, found)
    return found


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


def _clipped(patch: PatchFile, start: int, length: int) -> tuple[int, int]:
    return start, min(length, patch.header.target_size - start)


def _check_base(segments: _Segments, base: Image, finding: Finding) -> None:
    header = segments.patch.header
    if base.size != header.base_size:
        finding.fail(f"is {base.size} bytes large, not {header.base_size}")
        return
    whole = segments.finding.good
    base_root, target_root = roots(segments.patch, base) if whole else (content_digest(base), b"")
    if base_root == header.base_digest:
        if whole and target_root != header.target_digest:
            segments.finding.fail("does not make up the target that its header names")
        return
    finding.fail("is not the base that the patch was made from: its content is different")
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
    segments: _Segments, base: Image | None, target: Image, found: Verification
) -> None:
    header, finding = segments.patch.header, found.target or Finding()
    if target.size != header.target_size:
        finding.fail(f"is {target.size} bytes large, not {header.target_size}")
        return
    known = dict(leaf_digests(base)) if base is not None else None
    tree, wrong = TreeHasher(target.size), []
    actual = dict(leaf_digests(target))
    for index in sorted({*actual, *segments.leaves, *(known or ())}):
        length = leaf_length(target.size, index)
        digest = actual.get(index) or zero_leaf(length)
        if length:
            tree.add(index, digest)
        expected = segments.leaves.get(index)
        if expected is None and known is not None and base is not None:
            same = leaf_length(base.size, index) == length
            expected = known.get(index, zero_leaf(length)) if same else None
        if length and expected is not None and expected != digest:
            wrong.append((index * LEAF, length))
    if tree.root() != header.target_digest:
        finding.fail("is not what the patch leads to: its content is different", wrong)
