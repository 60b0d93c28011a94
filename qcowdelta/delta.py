"""A delta: what turns one disk's content into another's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from .extents import Extents
from .image import Image
from .reader import Readable
from .units import MIB


class ChangeKind(IntEnum):
    """What became of a range."""

    ADDED = 1
    """All zeros in the base, data in the target."""
    MODIFIED = 2
    """Data in both, and different."""
    ZEROED = 3
    """Data in the base, all zeros in the target."""


WINDOW_ALIGNMENT = 2 * MIB
"""Windows begin at multiples of this, the largest cluster, so that none tears a cluster."""

CHANGE = np.dtype([("start", np.int64), ("length", np.int64), ("kind", np.uint8)])

Changes: TypeAlias = npt.NDArray[np.void]
Progress: TypeAlias = Callable[[int, int], None]
"""Called with how many bytes of the disk are done, and how many there are."""


@dataclass(frozen=True)
class ChangeWindow:
    """The changes in one range of guest space.

    Attributes:
        start, stop: the range, bytes; windows come in order and tile the target.
        changes: records of :data:`CHANGE`, sorted and apart, each of whole granules except that
            the last may end with the target.
        extents: what the target is there, so that its data need not be looked up again.
    """

    start: int
    stop: int
    changes: Changes
    extents: Extents


@dataclass
class DeltaStats:
    """How a delta was found: bytes of guest space by the proof that decided them.

    Attributes:
        shared_layer: the same place of the same file on both sides.
        zero: zeros on both sides, by metadata.
        equal_payload: compressed on both sides, with the same payload.
        shared_extent: the same physical blocks on both sides, says the host file system.
        told: changed, as a patch over the same base says, or a bitmap that is trusted.
        not_dirty: outside of what a dirty bitmap marks, and so not looked at.
        read: decided by comparing content.
        bytes_read_old, bytes_read_new: guest bytes that were read (or inflated) for that.
    """

    shared_layer: int = 0
    zero: int = 0
    equal_payload: int = 0
    shared_extent: int = 0
    told: int = 0
    not_dirty: int = 0
    read: int = 0
    bytes_read_old: int = 0
    bytes_read_new: int = 0


class ChangeSource(Protocol):
    """What tells the changes between a base and a target, but not the target's content."""

    @property
    def size(self) -> int:
        """The target's virtual size, bytes."""

    @property
    def granularity(self) -> int:
        """What changes are rounded to: each granule that differs is in one, and no other."""

    @property
    def stats(self) -> DeltaStats:
        """How it was found; complete when the windows are."""

    def windows(self) -> Iterator[ChangeWindow]:
        """Find the changes, window by window."""


class Delta(ChangeSource, Protocol):
    """What turns a base's content into a target's: every sink takes one of these."""

    @property
    def base(self) -> Image:
        """The base; beyond its end it counts as zeros."""

    @property
    def target(self) -> Readable:
        """The target's content, of which only the changed ranges need be read."""


@dataclass
class Summary:
    """A delta in figures: (count of granules, bytes) by kind.

    Attributes:
        size: the target's virtual size, bytes.
        granularity: the size of a granule, bytes.
        count, length: for each kind of change, how many granules and bytes.
        base_size: the base's virtual size, bytes; None counts as the target's.
        changed_beyond: changed bytes that lie beyond the end of the base.
    """

    size: int
    granularity: int
    count: dict[ChangeKind, int] = field(default_factory=lambda: dict.fromkeys(ChangeKind, 0))
    length: dict[ChangeKind, int] = field(default_factory=lambda: dict.fromkeys(ChangeKind, 0))
    base_size: int | None = None
    changed_beyond: int = 0

    def add(self, changes: Changes) -> None:
        """Count changes in."""
        for kind in ChangeKind:
            lengths = changes["length"][changes["kind"] == kind]
            self.count[kind] += int((-(-lengths // self.granularity)).sum())
            self.length[kind] += int(lengths.sum())
        if self.base_size is not None:
            stops = changes["start"] + changes["length"]
            beyond = np.minimum(stops - self.base_size, changes["length"])
            self.changed_beyond += int(np.maximum(beyond, 0).sum())

    @property
    def resized(self) -> bool:
        """Whether the target's size is known not to be the base's."""
        return self.base_size is not None and self.base_size != self.size

    @property
    def changed_clusters(self) -> int:
        """How many granules differ."""
        return sum(self.count.values())

    @property
    def data_bytes(self) -> int:
        """Bytes of granules that are data in the target."""
        return self.length[ChangeKind.ADDED] + self.length[ChangeKind.MODIFIED]

    @property
    def zero_bytes(self) -> int:
        """Bytes of granules that became zeros."""
        return self.length[ChangeKind.ZEROED]

    @property
    def unchanged_bytes(self) -> int:
        """Bytes of the target that the base has already."""
        return self.size - self.data_bytes - self.zero_bytes - self.new_zero_bytes

    @property
    def new_zero_bytes(self) -> int:
        """Zeros of the target beyond the end of the base: neither changed nor in the base."""
        if self.base_size is None:
            return 0
        return max(0, self.size - self.base_size) - self.changed_beyond
