"""Comparing compressed clusters with compressed clusters, inflating as little as can be.

A descriptor bounds a payload only by whole sectors, so a neighbour's bytes follow it. But a
stream ends by itself: where two payloads agree for as long as one of them lasts, both decode to
the same content. What differs is inflated a little at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .extents import Extents, Kind, Mask, Offsets, runs
from .layer import Source
from .pieces import Pieces
from .qcow2.codec import CodecError, payload_length, prefix
from .qcow2.layout import CompressionType
from .reader import payload_spans

# How much of a cluster is inflated first: to see that it differs, and that it is not zeros.
_PREFIX = 4096
_GLANCE = 64
_CODE_TABLES = 512  # what a deflate stream begins with, at most, about


Words: TypeAlias = npt.NDArray[np.uint64]
Difference: TypeAlias = tuple[int, int, bool, bool]
"""A guest range that differs (start, length), and whether OLD and NEW have more than zeros."""


@dataclass
class Outcome:
    """What became of compared pieces.

    Attributes:
        start, length: the guest ranges that differ, none across a granule's boundary.
        old_nonzero, new_nonzero: whether each has anything but zeros, on either side.
        equal_payload: bytes of guest space proved equal by payload.
        read_old, read_new: bytes of guest content read or inflated.
    """

    start: Offsets
    length: Offsets
    old_nonzero: Mask
    new_nonzero: Mask
    equal_payload: int = 0
    read_old: int = 0
    read_new: int = 0

    @classmethod
    def of(cls, differences: list[Difference], reads: list[int], equal_payload: int = 0) -> Outcome:
        """Return the outcome of comparing clusters one by one."""
        columns = np.array(differences, np.int64).reshape(-1, 4).T
        old_nonzero, new_nonzero = columns[2] != 0, columns[3] != 0
        return cls(columns[0], columns[1], old_nonzero, new_nonzero, equal_payload, *reads)


def differing(old: Words | None, new: Words | None, granule: Offsets) -> tuple[Offsets, Mask, Mask]:
    """Compare content, given in rows, granule by granule.

    Args:
        old: one side's rows; None where all are zeros.
        new: the other's.
        granule: the number of the granule that each row lies in, ascending.

    Returns:
        The numbers of the granules that differ, and whether each has more than zeros in OLD, and
        in NEW.
    """
    old_nonzero, new_nonzero = (
        np.zeros(granule.size, bool) if rows is None else np.bitwise_or.reduce(rows, axis=1) != 0
        for rows in (old, new)
    )
    differ = old_nonzero | new_nonzero
    if old is not None and new is not None:
        differ = np.any(old != new, axis=1)
    first, _ = runs(granule)
    differs, old_data, new_data = (
        np.logical_or.reduceat(flags, first) for flags in (differ, old_nonzero, new_nonzero)
    )
    return granule[first][differs], old_data[differs], new_data[differs]


def comparable(pieces: Pieces, old: tuple[Source, ...], new: tuple[Source, ...]) -> Mask:
    """Return the open pieces that are one whole compressed cluster, or that against zeros."""
    mask = pieces.open.copy()
    compressed = np.zeros(mask.shape, bool)
    for side, sources in ((pieces.old, old), (pieces.new, new)):
        sizes = np.array([source.cluster_size for source in sources])
        whole = (side["kind"] == Kind.COMPRESSED) & (side["within"] == 0)
        whole &= side["length"] == sizes[side["source"]]
        mask &= whole | (side["kind"] == Kind.ZERO)
        compressed |= whole
    mask &= compressed
    return mask


class _Scratch(threading.local):
    """Each thread's buffers for payloads; new memory for every span would cost more than it."""

    def __init__(self) -> None:
        self._buffers = [bytearray(), bytearray()]

    def view(self, side: int, length: int) -> memoryview:
        """Return a buffer of a length, valid until the same side's next one is asked for."""
        if len(self._buffers[side]) < length:
            self._buffers[side] = bytearray(2 * length)
        return memoryview(self._buffers[side])[:length]


class PayloadComparer:
    """Compares clusters that are compressed in both images, or in one and zeros in the other.

    Args:
        old, new: the sources of both images.
        granularity: what differences are rounded to, bytes.
    """

    def __init__(self, old: tuple[Source, ...], new: tuple[Source, ...], granularity: int) -> None:
        self._old, self._new, self._granularity = old, new, granularity
        self._scratch = _Scratch()

    def compare(self, old: Extents, new: Extents) -> Outcome:
        """Compare clusters one by one; ``old[i]`` and ``new[i]`` are the same guest range.

        Raises:
            CorruptImageError: one that had to be inflated cannot be.
        """
        found: list[Difference] = []
        equal_payload, reads = 0, [0, 0]
        for i, j in _spans(old, new):
            sides = (
                _Side(self._old[old["source"][i]], old[i:j], self._scratch, 0),
                _Side(self._new[new["source"][i]], new[i:j], self._scratch, 1),
            )
            equal = _equal_payloads(*sides)
            lengths = new["length"][i:j]
            equal_payload += int(lengths[equal].sum())
            for number, side in enumerate(sides):
                reads[number] += 0 if side.zeros else int(lengths[~equal].sum())
            left = np.flatnonzero(~equal)
            ranges = np.stack([left, new["start"][i:j][left], lengths[left]], axis=1).tolist()
            found += _differences(sides, ranges, self._granularity)
        return Outcome.of(found, reads, equal_payload)


def _spans(old: Extents, new: Extents) -> list[tuple[int, int]]:
    """Group clusters that lie close together in both files, and are of one kind on each side."""
    cuts = {i for side in (old, new) for i, _ in payload_spans(side)}
    for column in (old["kind"], new["kind"]):
        cuts.update((np.flatnonzero(column[1:] != column[:-1]) + 1).tolist())
    starts = sorted(cuts)
    return list(zip(starts, [*starts[1:], old.size], strict=True))


class _Side:
    """One side of a span: compressed clusters whose payloads are read at once, or zeros."""

    def __init__(self, source: Source, rows: Extents, scratch: _Scratch, number: int) -> None:
        self.source, self._rows = source, rows
        self.bound = rows["bound"].tolist()
        self.at = (rows["host"] - rows["host"][0]).tolist()
        self.zeros = bool(rows["kind"][0] == Kind.ZERO)
        self.payloads = memoryview(b"")
        if not self.zeros:
            self.payloads = scratch.view(number, self.at[-1] + self.bound[-1])
            source.file.read_into(self.payloads, int(rows["host"][0]))

    def payload(self, k: int) -> memoryview:
        """Return the payload of a cluster, up to its bound."""
        at = self.at[k]
        return self.payloads[at : at + self.bound[k]]

    def begin(self, k: int, size: int) -> bytes:
        """Return the first bytes of a cluster's content; fewer where they cannot be had."""
        if self.zeros:
            return bytes(size)
        payload = self.payload(k)
        if self.source.codec == CompressionType.ZLIB:  # zstd gives nothing before a whole block
            payload = payload[: 2 * size + _CODE_TABLES]
        try:
            return prefix(self.source.codec, payload, size)
        except CodecError:
            return b""  # inflating it whole says what is wrong, and where

    def whole(self, k: int, size: int) -> bytes:
        """Return a cluster's content."""
        if self.zeros:
            return bytes(size)
        row = self._rows[k]
        return self.source.inflate(self.payload(k), int(row["host"]), int(row["start"]))


def _equal_payloads(old: _Side, new: _Side) -> Mask:
    """Return which clusters of a span have payloads that are proved equal."""
    equal = np.zeros(len(old.at), bool)
    if old.zeros or new.zeros or old.source.codec != new.source.codec:
        return equal
    for k in range(len(old.at)):
        length = min(old.bound[k], new.bound[k])
        a, b = old.payload(k)[:length].tobytes(), new.payload(k)[:length].tobytes()
        equal[k] = a == b or _same_stream(old.source, a, b)
    return equal


def _same_stream(source: Source, a: bytes, b: bytes) -> bool:
    """Tell whether two payloads agree for as long as the stream lasts: the rest is not theirs."""
    agree = int(np.argmax(np.frombuffer(a, np.uint8) != np.frombuffer(b, np.uint8)))
    return agree > 0 and payload_length(source.codec, a[:agree], source.cluster_size) is not None


def _differences(
    sides: tuple[_Side, _Side], ranges: list[list[int]], granularity: int
) -> Iterator[Difference]:
    """Compare content, as little as tells that it differs and what of it is zeros.

    ``ranges`` has (number in the span, guest offset, length) of each cluster to compare.
    """
    old, new = sides
    enough = _GLANCE if old.zeros or new.zeros else _PREFIX
    for k, start, size in ranges:
        if size <= granularity:
            a, b = old.begin(k, enough), new.begin(k, enough)
            old_data, new_data = has_data(a), has_data(b)
            shared = min(len(a), len(b))
            if a[:shared] != b[:shared] and (old_data or old.zeros) and (new_data or new.zeros):
                yield start, size, old_data, new_data
                continue
        unit = min(size, granularity)
        a_rows, b_rows = (
            np.frombuffer(side.whole(k, size), np.uint64).reshape(-1, unit // 8) for side in sides
        )
        flags = differing(a_rows, b_rows, np.arange(size // unit))
        for row, old_data, new_data in zip(*(f.tolist() for f in flags), strict=True):
            yield start + row * unit, unit, old_data, new_data


def has_data(data: bytes) -> bool:
    """Tell whether there is anything but zeros."""
    return data.count(0) < len(data)
