"""Two images over one range, cut alike, and what metadata alone proves equal.

The proofs, cheapest first; each looks only at what those before it left open:

0. where a dirty bitmap limits the comparing, what it does not mark: taken to be equal;
1. the same place of the same file: equal; the changes of a patch over this very base: changed;
2. zeros on both sides by metadata, holes of the host files included: equal;
3. both compressed: left to :mod:`.payloads`, which compares payloads before it inflates any;
4. the same physical blocks, says the host file system: equal;
5. where the bitmap is trusted, what is left: taken to be changed;
6. everything else has to be read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from .dirty import DirtyRanges
from .extents import (
    Extents,
    Kind,
    Mask,
    Offsets,
    coalesce,
    cut_at,
    cut_index,
    guest_points,
    inside,
    pick,
)
from .hostfile import WORTH_ASKING, HostFile
from .image import Image


class Verdict(IntEnum):
    """What decided a piece."""

    OPEN = 0
    SHARED_LAYER = 1
    ZERO = 2
    SHARED_EXTENT = 3
    CHANGED = 4
    """Differs, as a patch or a bitmap says; what has data is taken to have more than zeros."""
    NOT_DIRTY = 5


@dataclass
class Pieces:
    """Two tilings of one range with the same cuts, and a verdict for each piece."""

    old: Extents
    new: Extents
    verdict: npt.NDArray[np.uint8]

    @classmethod
    def pair(cls, old: Extents, new: Extents) -> Pieces:
        """Cut two tilings of the same range at each other's boundaries."""
        old, new = cut_at(old, new["start"]), cut_at(new, old["start"])
        return cls(old, new, np.zeros(new.size, np.uint8))

    @property
    def start(self) -> Offsets:
        """Where each piece begins, guest offset."""
        start: Offsets = self.new["start"]
        return start

    @property
    def length(self) -> Offsets:
        """How long each piece is, bytes."""
        length: Offsets = self.new["length"]
        return length

    @property
    def open(self) -> Mask:
        """Which pieces are not decided yet."""
        mask: Mask = self.verdict == Verdict.OPEN
        return mask

    def cut(self, points: Offsets) -> None:
        """Cut the pieces at the given guest offsets."""
        if points.size:
            starts, index = cut_index(self.new, points)
            self.old = pick(self.old, starts, index)
            self.new = pick(self.new, starts, index)
            self.verdict = self.verdict[index]

    def decide(self, mask: Mask, verdict: Verdict) -> None:
        """Give a verdict to the open pieces of a mask."""
        self.verdict[mask & self.open] = verdict

    def bytes_of(self, verdict: Verdict) -> int:
        """Return how many bytes have that verdict."""
        return int(self.length[self.verdict == verdict].sum())


class Classifier:
    """Applies the proofs that need no content to windows of two images.

    Args:
        old, new: the images.
        dirty: what may differ; None: anything may.
        trust: take what is dirty to be changed where no other proof says that it is not.
    """

    def __init__(
        self, old: Image, new: Image, dirty: DirtyRanges | None = None, trust: bool = False
    ) -> None:
        self._old, self._new, self._dirty, self._trust = old, new, dirty, trust
        known: dict[tuple[int, ...], int] = {}
        keys = [
            np.array([known.setdefault(s.file.key, len(known)) for s in image.sources])
            for image in (old, new)
        ]
        self._old_keys, self._new_keys = keys
        # What a layer of changes has, its base has not: nothing of it need be compared.
        over_old = keys[1][1:].tolist() == keys[0].tolist()
        self._changes_only = new.layers[0].changes_only and over_old

    def pieces(self, start: int, stop: int) -> Pieces:
        """Return the pieces of ``[start, stop)`` with all verdicts that metadata can give.

        Raises:
            CorruptImageError: a table in the way is damaged.
        """
        pieces = Pieces.pair(self._old.extents(start, stop), self._new.extents(start, stop))
        if self._dirty is not None:
            self._decide_not_dirty(pieces, self._dirty.ranges(start, stop))
        self._decide_shared_layers(pieces)
        if self._changes_only:
            changed = (pieces.new["kind"] == Kind.DATA) & (pieces.new["source"] == 0)
            pieces.decide(changed, Verdict.CHANGED)
        self._find_holes(pieces)
        zero = (pieces.old["kind"] == Kind.ZERO) & (pieces.new["kind"] == Kind.ZERO)
        pieces.decide(zero, Verdict.ZERO)
        self._decide_shared_extents(pieces)
        if self._trust:
            pieces.decide(pieces.open, Verdict.CHANGED)
        return pieces

    def _decide_not_dirty(self, pieces: Pieces, dirty: Offsets) -> None:
        pieces.cut(dirty.reshape(-1))
        pieces.decide(~inside(pieces.start, dirty), Verdict.NOT_DIRTY)

    def _decide_shared_layers(self, pieces: Pieces) -> None:
        old, new = pieces.old, pieces.new
        same = self._old_keys[old["source"]] == self._new_keys[new["source"]]
        for name in ("kind", "host", "within", "bound"):
            same &= old[name] == new[name]
        pieces.decide(same & (new["kind"] >= Kind.DATA), Verdict.SHARED_LAYER)

    def _find_holes(self, pieces: Pieces) -> None:
        """Turn open data that lies in holes of its host file into zeros."""
        for name, image in (("old", self._old), ("new", self._new)):
            side = getattr(pieces, name)
            for number in np.unique(side["source"][_open_data(pieces, side)]).tolist():
                file = image.sources[number].file
                if not isinstance(file, HostFile):
                    continue
                side = getattr(pieces, name)
                mask = _open_data(pieces, side) & (side["source"] == number)
                holes = _ask(side[mask], file.hole_ranges)
                if holes.size:
                    pieces.cut(guest_points(side, mask, np.unique(holes)))
                    side = getattr(pieces, name)
                    mask = _open_data(pieces, side) & (side["source"] == number)
                    side["kind"][mask & (_row_of(side, holes) >= 0)] = Kind.ZERO

    def _decide_shared_extents(self, pieces: Pieces) -> None:
        """Find data on both sides that is one range of blocks on the host."""
        both = _open_data(pieces, pieces.old) & _open_data(pieces, pieces.new)
        pairs = np.stack([pieces.old["source"][both], pieces.new["source"][both]], axis=1)
        for a, b in np.unique(pairs, axis=0).tolist():
            files = self._old.sources[a].file, self._new.sources[b].file
            if files[0].key[:-1] != files[1].key[:-1]:  # on another device
                continue
            tables = []
            for name, file in (("old", files[0]), ("new", files[1])):
                if not isinstance(file, HostFile):
                    break
                side, mask = getattr(pieces, name), _between(pieces, a, b)
                tables.append(_ask(side[mask], file.shared_ranges))
                pieces.cut(guest_points(side, mask, np.unique(tables[-1][:, :2])))
                if not tables[-1].size:
                    break
            else:
                same = _physical(pieces.old, tables[0]) == _physical(pieces.new, tables[1])
                known = _row_of(pieces.old, tables[0]) >= 0
                pieces.decide(_between(pieces, a, b) & known & same, Verdict.SHARED_EXTENT)


def _open_data(pieces: Pieces, side: Extents) -> Mask:
    mask: Mask = pieces.open & (side["kind"] == Kind.DATA)
    return mask


def _between(pieces: Pieces, old_source: int, new_source: int) -> Mask:
    """Return the open pieces that are data of these two sources."""
    mask: Mask = _open_data(pieces, pieces.old) & _open_data(pieces, pieces.new)
    mask &= pieces.old["source"] == old_source
    mask &= pieces.new["source"] == new_source
    return mask


def _ask(rows: Extents, question: Callable[[int, int], Offsets]) -> Offsets:
    """Ask a host file about the long runs among extents of one source.

    ``question`` takes a host range and returns rows whose first two columns are a host range;
    the answers come back as one array of such rows, sorted and apart.
    """
    merged = coalesce(rows)
    merged = np.sort(merged[merged["length"] >= WORTH_ASKING], order="host")
    answers, done = [], 0
    for start, length in zip(merged["host"].tolist(), merged["length"].tolist(), strict=True):
        start, stop = max(start, done), start + length
        if start < stop:
            answers.append(question(start, stop))
            done = stop
    return np.concatenate(answers) if answers else np.empty((0, 2), np.int64)


def _row_of(side: Extents, ranges: Offsets) -> npt.NDArray[np.intp]:
    """Return for each extent the index of the host range it lies in whole, or -1."""
    if not ranges.size:
        return np.full(side.size, -1, np.intp)
    row = np.searchsorted(ranges[:, 0], side["host"], side="right") - 1
    outside = side["host"] + side["length"] > ranges[row, 1]
    row[outside] = -1
    return row


def _physical(side: Extents, ranges: Offsets) -> Offsets:
    """Return where each extent physically lies; -1 where that is not known."""
    row = _row_of(side, ranges)
    address = ranges[row, 2] + side["host"] - ranges[row, 0]
    return np.where(row >= 0, address, -1)
