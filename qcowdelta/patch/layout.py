"""Every structure of a cluster patch, declared in construct (formats/cluster-patch.md).

All integers are little-endian and unsigned; offsets and lengths are bytes.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
from construct import (
    Array,
    Bytes,
    Const,
    Construct,
    Int8ul,
    Int32ul,
    Int64ul,
    Padding,
    Struct,
    stream_read,
    stream_write,
    this,
)

from ..formats import PATCH_MAGIC
from ..units import KIB, MIB

MAGIC = PATCH_MAGIC
FOOTER_MAGIC = b"QCPEND\r\n"
SIDECAR_MAGIC = b"QCPINDX\n"
SEGMENT_MAGIC = b"QSEG"
VERSION = 1
DIGEST = 32

LEAF = MIB
"""What one digest of a segment covers, and what the leaves of both hash trees are."""
MIN_SEGMENT_BITS = 20
MAX_SEGMENT_BITS = 22
MAX_SIZE = (1 << 63) - 1
MAX_HEADER = 64 * KIB
MAX_OPERATIONS = 64 << 10
MAX_RANGES = 64 << 10
MAX_REFERENCES = 64
MAX_DICTIONARY = 16 * MIB
MAX_WINDOW = 32 * MIB
"""The window a zstd frame may ask for."""
CRITICAL = 1 << 31
"""A section whose type has this bit must be understood."""


class SectionType(IntEnum):
    """What a section of the header holds."""

    CREATOR = 1


class OperationKind(IntEnum):
    """Where the content of a range comes from; what no operation covers is SAME."""

    ZERO = 0
    DATA = 1
    COPY_BASE = 2
    COPY_TARGET = 3


class Space(IntEnum):
    """What a range of a dictionary is a range of."""

    BASE = 0
    TARGET = 1


class Codec(IntEnum):
    """How bytes are stored."""

    STORED = 0
    LZ4 = 1
    ZSTD = 2


class Columns(Construct):  # type: ignore[misc] # construct has no types
    """A table of ``count`` rows, stored column by column.

    Args:
        dtype: a numpy structured type, whose fields give the columns in order.
        count: how many rows; may depend on the context.

    Building takes a structured array; parsing gives one, in one pass a column.
    """

    def __init__(self, dtype: npt.DTypeLike, count: Any) -> None:
        super().__init__()
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.count = count

    def _rows(self, context: Any) -> int:
        return int(self.count(context) if callable(self.count) else self.count)

    def _parse(self, stream: Any, context: Any, path: str) -> npt.NDArray[np.void]:
        rows = np.empty(self._rows(context), self.dtype)
        for name in self.dtype.names or ():
            column = self.dtype[name]
            data = stream_read(stream, rows.size * column.itemsize, path)
            rows[name] = np.frombuffer(data, column)
        return rows

    def _build(self, obj: Any, stream: Any, context: Any, path: str) -> Any:
        for name in self.dtype.names or ():
            data = np.ascontiguousarray(obj[name]).tobytes()
            stream_write(stream, data, len(data), path)
        return obj

    def _sizeof(self, context: Any, path: str) -> int:
        return self._rows(context) * self.dtype.itemsize


Header = Struct(
    "magic" / Const(MAGIC),
    "version" / Int32ul,
    "header_length" / Int32ul,
    "incompatible_features" / Int64ul,
    "compatible_features" / Int64ul,
    "base_size" / Int64ul,
    "target_size" / Int64ul,
    "base_digest" / Bytes(DIGEST),
    "target_digest" / Bytes(DIGEST),
    "segment_bits" / Int32ul,
    "memory" / Int32ul,
    "segment_count" / Int64ul,
    "segments_length" / Int64ul,
)
"""The fixed part; sections follow, and a digest of all before it ends the header."""

Section = Struct(
    "type" / Int32ul,
    "length" / Int32ul,
    "data" / Bytes(this.length),
    Padding(lambda c: -c.length % 8),
)

SegmentHead = Struct(
    "magic" / Const(SEGMENT_MAGIC),
    "length" / Int32ul,
    "number" / Int64ul,
    "operations" / Int32ul,
    "ranges" / Int32ul,
    "directory_length" / Int32ul,
    "payload_length" / Int32ul,
    "data_length" / Int32ul,
    "dictionary_length" / Int32ul,
    "memory" / Int32ul,
    "directory_codec" / Int8ul,
    "payload_codec" / Int8ul,
    "leaves" / Int8ul,
    "references" / Int8ul,
    "base_digest" / Bytes(DIGEST),
)
"""The fixed part of a segment; digests of its leaves and its references follow."""

SegmentLists = Struct(
    "leaf_digests" / Array(lambda c: c._.leaves, Bytes(DIGEST)),
    "referenced" / Array(lambda c: c._.references, Int64ul),
)

OPERATION = np.dtype(
    [("start", "<u4"), ("length", "<u4"), ("kind", "u1"), ("source", "<u8")], align=False
)
RANGE = np.dtype([("start", "<u8"), ("length", "<u4"), ("space", "u1")], align=False)

Directory = Struct(
    "operations" / Columns(OPERATION, lambda c: c._.operations),
    "ranges" / Columns(RANGE, lambda c: c._.ranges),
)

ENTRY = np.dtype(
    [
        ("number", "<u8"),
        ("offset", "<u8"),
        ("length", "<u4"),
        ("memory", "<u4"),
        ("users", "<u4"),
    ]
)

Index = Columns(ENTRY, this.count)

Footer = Struct(
    "index_offset" / Int64ul,
    "index_length" / Int64ul,
    "digest" / Bytes(DIGEST),
    "magic" / Const(FOOTER_MAGIC),
)
