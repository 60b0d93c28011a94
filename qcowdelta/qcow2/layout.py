"""Every qcow2 structure, declared in construct (docs/interop/qcow2.rst).

Nothing is validated here beyond what the shape itself says; :mod:`.header` and the readers of
the tables do that, with names and offsets in their messages.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Any

import numpy as np
import numpy.typing as npt
from construct import (
    Bytes,
    Const,
    Construct,
    GreedyRange,
    If,
    Int8ub,
    Int16ub,
    Int32ub,
    Int64ub,
    Padding,
    Struct,
    stream_read,
    stream_write,
    this,
)

from ..declare import compiled as compiled
from ..declare import parse as parse

MAGIC = b"QFI\xfb"


class Incompatible(IntFlag):
    """Incompatible feature bits: a reader that does not know one must not read the image."""

    DIRTY = 1 << 0
    CORRUPT = 1 << 1
    EXTERNAL_DATA_FILE = 1 << 2
    COMPRESSION_TYPE = 1 << 3
    EXTENDED_L2 = 1 << 4


class Compatible(IntFlag):
    """Compatible feature bits: safe to ignore."""

    LAZY_REFCOUNTS = 1 << 0


class Autoclear(IntFlag):
    """Autoclear feature bits: a writer that does not know one must clear it."""

    BITMAPS = 1 << 0
    RAW_EXTERNAL_DATA = 1 << 1


class ExtensionType(IntEnum):
    """Header extension types."""

    END = 0
    BACKING_FORMAT = 0xE2792ACA
    FEATURE_NAMES = 0x6803F857
    BITMAPS = 0x23852875
    FULL_DISK_ENCRYPTION = 0x0537BE77
    DATA_FILE_NAME = 0x44415441
    DELTA = 0x5143_444C
    """Our own, "QCDL": what a delta overlay was made from (formats/qcow2-profile.md)."""


class CompressionType(IntEnum):
    """The codec of compressed clusters."""

    ZLIB = 0
    ZSTD = 1


class Words(Construct):  # type: ignore[misc] # construct has no types
    """A table of 64-bit big-endian words: as an array, not as a list of integers.

    Building takes any array of integers; parsing gives a read-only uint64 array, in one pass.
    """

    def __init__(self, count: Any) -> None:
        super().__init__()
        self.count = count

    def _length(self, context: Any) -> int:
        count = self.count(context) if callable(self.count) else self.count
        return int(count) * 8

    def _parse(self, stream: Any, context: Any, path: str) -> npt.NDArray[np.uint64]:
        data = stream_read(stream, self._length(context), path)
        return np.frombuffer(data, ">u8").astype(np.uint64)

    def _build(self, obj: Any, stream: Any, context: Any, path: str) -> Any:
        data = np.asarray(obj, np.uint64).astype(">u8").tobytes()
        stream_write(stream, data, self._length(context), path)
        return obj

    def _sizeof(self, context: Any, path: str) -> int:
        return self._length(context)


Header = Struct(
    "magic" / Const(MAGIC),
    "version" / Int32ub,
    "backing_file_offset" / Int64ub,
    "backing_file_size" / Int32ub,
    "cluster_bits" / Int32ub,
    "size" / Int64ub,
    "crypt_method" / Int32ub,
    "l1_size" / Int32ub,
    "l1_table_offset" / Int64ub,
    "refcount_table_offset" / Int64ub,
    "refcount_table_clusters" / Int32ub,
    "nb_snapshots" / Int32ub,
    "snapshots_offset" / Int64ub,
)
"""The first 72 bytes: all of a version 2 header."""

HeaderV3 = Struct(
    "incompatible_features" / Int64ub,
    "compatible_features" / Int64ub,
    "autoclear_features" / Int64ub,
    "refcount_order" / Int32ub,
    "header_length" / Int32ub,
    "additional" / If(this.header_length >= 112, Struct("compression_type" / Int8ub, Padding(7))),
)
"""What version 3 adds, from byte 72; byte 104 on is there when header_length says so."""

Extension = Struct(
    "type" / Int32ub,
    "length" / Int32ub,
    "data" / Bytes(this.length),
    Padding(lambda c: -c.length % 8),
)

FeatureNames = GreedyRange(Struct("type" / Int8ub, "bit" / Int8ub, "name" / Bytes(46)))

BitmapsExtension = Struct(
    "nb_bitmaps" / Int32ub,
    "reserved" / Int32ub,
    "directory_size" / Int64ub,
    "directory_offset" / Int64ub,
)

EncryptionExtension = Struct("offset" / Int64ub, "length" / Int64ub)

DeltaExtension = Struct(
    "version" / Const(1, Int16ub),
    "flags" / Int16ub,
    "reserved" / Const(0, Int32ub),
    "base_size" / Int64ub,
    "base_mtime_ns" / Int64ub,
    "base_fingerprint" / Bytes(32),
    "base_digest" / Bytes(32),
    "data_bytes" / Int64ub,
    "zero_bytes" / Int64ub,
)
"""Our own extension: the identity of an overlay's base, and the delta's figures."""

SnapshotHeader = Struct(
    "l1_table_offset" / Int64ub,
    "l1_size" / Int32ub,
    "id_size" / Int16ub,
    "name_size" / Int16ub,
    "date_sec" / Int32ub,
    "date_nsec" / Int32ub,
    "vm_clock_nsec" / Int64ub,
    "vm_state_size" / Int32ub,
    "extra_data_size" / Int32ub,
)
"""A snapshot table entry's fixed 40 bytes; extra data, id and name follow, padded to 8 bytes."""

SnapshotExtra = Struct(
    "vm_state_size" / Int64ub,
    "disk_size" / Int64ub,
    "icount" / If(lambda c: c._.length >= 24, Int64ub),
)

BitmapHeader = Struct(
    "table_offset" / Int64ub,
    "table_size" / Int32ub,
    "flags" / Int32ub,
    "type" / Int8ub,
    "granularity_bits" / Int8ub,
    "name_size" / Int16ub,
    "extra_data_size" / Int32ub,
)
"""A bitmap directory entry's fixed 24 bytes; extra data and name follow, padded to 8 bytes."""
