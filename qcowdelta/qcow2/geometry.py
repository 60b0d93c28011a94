"""The arithmetic of a qcow2 image: every shift, mask and rounding, once.

Facts are from docs/interop/qcow2.rst, sections "Cluster mapping" and "Extended L2 Entries".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import OptionError
from ..units import ClusterIndex, GuestOffset, HostOffset, ceil_div

Entries: TypeAlias = npt.NDArray[np.uint64]

COPIED = 1 << 63
COMPRESSED = 1 << 62
ALL_ZERO = 1
OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00
L1_RESERVED = ~(COPIED | OFFSET_MASK) & (1 << 64) - 1
L2_RESERVED = ~(COPIED | COMPRESSED | OFFSET_MASK | ALL_ZERO) & (1 << 64) - 1
REFTABLE_RESERVED = 0x1FF
ALL_ONES = 1
BITMAP_RESERVED = ~(OFFSET_MASK | ALL_ONES) & (1 << 64) - 1
SUBCLUSTERS = 32
ALL_SUBCLUSTERS = (1 << SUBCLUSTERS) - 1
COMPRESSED_SECTOR = 512


@dataclass(frozen=True)
class Geometry:
    """Sizes and descriptors that follow from cluster_bits and the extended L2 feature."""

    cluster_bits: int
    extended_l2: bool = False

    @classmethod
    def of_size(cls, cluster_size: int, *, subclusters: bool = False) -> Geometry:
        """Return the geometry of an image that is to be written.

        Raises:
            OptionError: the cluster size is not a power of two, 512 to 2 MiB, or too small for
                sub-clusters.
        """
        bits = cluster_size.bit_length() - 1
        if not 9 <= bits <= 21 or cluster_size != 1 << bits:
            raise OptionError(f"a cluster size of {cluster_size} is not a power of 2, 512 to 2 MiB")
        if subclusters and bits < 14:
            raise OptionError("sub-clusters need clusters of 16 KiB or more")
        return cls(bits, subclusters)

    @property
    def cluster_size(self) -> int:
        """Bytes in a cluster."""
        return 1 << self.cluster_bits

    @property
    def unit(self) -> int:
        """The smallest length that can be allocated: a sub-cluster or a cluster, bytes."""
        return self.cluster_size // SUBCLUSTERS if self.extended_l2 else self.cluster_size

    @property
    def entry_words(self) -> int:
        """How many 64-bit words one L2 entry has."""
        return 2 if self.extended_l2 else 1

    @property
    def l2_entries(self) -> int:
        """How many guest clusters one L2 table maps."""
        return self.cluster_size // (8 * self.entry_words)

    @property
    def l2_reach(self) -> int:
        """How many bytes of guest space one L2 table maps."""
        return self.l2_entries << self.cluster_bits

    def clusters(self, length: int) -> int:
        """Return how many clusters hold ``length`` bytes."""
        return ceil_div(length, self.cluster_size)

    def cluster_of(self, guest: int) -> ClusterIndex:
        """Return the guest cluster that holds a guest offset."""
        return ClusterIndex(guest >> self.cluster_bits)

    def guest_of(self, cluster: int) -> GuestOffset:
        """Return where a guest cluster begins."""
        return GuestOffset(cluster << self.cluster_bits)

    def l1_entries(self, size: int) -> int:
        """Return how many L1 entries a disk of ``size`` bytes needs."""
        return ceil_div(size, self.l2_reach)

    def bitmap_entries(self, size: int, granularity: int) -> int:
        """Return how many entries a bitmap's table has, for a disk of ``size`` bytes."""
        return self.clusters(ceil_div(ceil_div(size, granularity), 8))

    def bitmap_reach(self, granularity: int) -> int:
        """Return how many bytes of guest space one entry of a bitmap's table tells of."""
        return self.cluster_size * 8 * granularity

    def is_aligned(self, host: int) -> bool:
        """Tell whether an offset lies on a cluster boundary."""
        return host & (self.cluster_size - 1) == 0

    def refcount_block_entries(self, order: int) -> int:
        """Return how many host clusters one refcount block of 2^order bits an entry counts."""
        return (self.cluster_size * 8) >> order

    @property
    def _compressed_shift(self) -> int:
        return 62 - (self.cluster_bits - 8)

    def compressed_host(self, entries: Entries) -> npt.NDArray[np.int64]:
        """Return where the payloads of compressed cluster descriptors begin, bytes."""
        return (entries & np.uint64((1 << self._compressed_shift) - 1)).astype(np.int64)

    def compressed_bound(self, entries: Entries) -> npt.NDArray[np.int64]:
        """Return upper bounds of the payloads' lengths, bytes: they end with a 512-byte sector."""
        mask = np.uint64((1 << (self.cluster_bits - 8)) - 1)
        sectors = ((entries >> np.uint64(self._compressed_shift)) & mask).astype(np.int64) + 1
        begun = self.compressed_host(entries) & (COMPRESSED_SECTOR - 1)
        bound: npt.NDArray[np.int64] = sectors * COMPRESSED_SECTOR - begun
        return bound

    def compressed_entries(self, host: npt.NDArray[np.int64], length: npt.NDArray[Any]) -> Entries:
        """Return descriptors of payloads of ``length`` bytes at ``host``."""
        last = (host + length - 1) // COMPRESSED_SECTOR
        sectors = (last - host // COMPRESSED_SECTOR).astype(np.uint64)
        entries: Entries = (
            host.astype(np.uint64)
            | (sectors << np.uint64(self._compressed_shift))
            | np.uint64(COMPRESSED)
        )
        return entries

    def compressed_fits_anywhere(self, length: int) -> bool:
        """Tell whether a descriptor can express that length however it lies in its sectors."""
        return self.compressed_fits(COMPRESSED_SECTOR - 1, length)

    def compressed_fits(self, host: HostOffset | int, length: int) -> bool:
        """Tell whether a descriptor can express a payload of that place and length."""
        sectors = (host + length - 1) // COMPRESSED_SECTOR - host // COMPRESSED_SECTOR
        return host + length <= 1 << self._compressed_shift and sectors < 1 << (
            self.cluster_bits - 8
        )
