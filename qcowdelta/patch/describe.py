"""What a patch says of itself, without its base."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..delta import CHANGE, ChangeKind, ChangeWindow, DeltaStats
from ..errors import printable
from ..extents import EXTENT
from ..hostfile import HostFile
from .blocks import BLOCK
from .container import PatchFile, read_sidecar
from .header import Header, is_sidecar
from .layout import Codec, OperationKind, SectionType, Space
from .segment import Segment


@dataclass
class PatchStatistics:
    """A patch in figures.

    Attributes:
        operations: bytes of the target by operation, and how many of each there are.
        counts: how many operations of each kind.
        codecs: how many segments are stored by each codec.
        payload: bytes of coded DATA.
        directories: bytes of all else.
        dictionary: bytes of dictionaries, by what they are ranges of.
        referring: segments that need others.
    """

    operations: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    codecs: Counter[str] = field(default_factory=Counter)
    payload: int = 0
    dictionary: Counter[str] = field(default_factory=Counter)
    referring: int = 0

    def add(self, segment: Segment) -> None:
        """Count a segment in."""
        for kind in OperationKind:
            rows = segment.of_kind(kind)
            self.operations[kind.name.lower()] += int(rows["length"].astype(np.int64).sum())
            self.counts[kind.name.lower()] += rows.size
        for space in Space:
            rows = segment.of_space(space)
            self.dictionary[space.name.lower()] += int(rows["length"].astype(np.int64).sum())
        if segment.data_length:
            self.codecs[Codec(segment.codec).name.lower()] += 1
        self.payload += len(segment.payload)
        self.referring += bool(segment.references)


def statistics(patch: PatchFile) -> PatchStatistics:
    """Go through all segments of a patch.

    Raises:
        CorruptImageError, FormatError: one is damaged.
    """
    found = PatchStatistics()
    for segment in patch.segments():
        found.add(segment)
    return found


def describe_patch(file: HostFile) -> dict[str, Any]:
    """Return everything that a patch, or its index alone, says, as ``info --json`` prints it.

    Raises:
        CorruptImageError, FormatError: it is damaged.
    """
    if is_sidecar(file):
        header, entries = read_sidecar(file)
        return {**_header(file, "qcpatch index", header), "segments": entries.size}
    patch = PatchFile(file)
    header, figures = patch.header, statistics(patch)
    stored = int(patch.entries["length"].astype(np.int64).sum())
    covered = sum(figures.operations.values())
    return {
        **_header(file, "qcpatch", header),
        "segments": patch.entries.size,
        "segments_referring": figures.referring,
        "operations": {
            kind: {"count": figures.counts[kind], "bytes": figures.operations[kind]}
            for kind in figures.operations
        },
        "same_bytes": header.target_size - covered,
        "codecs": dict(figures.codecs),
        "dictionary_bytes": dict(figures.dictionary),
        "payload_bytes": figures.payload,
        "overhead_bytes": file.size - figures.payload,
        "index_bytes": file.size - header.length - stored,
    }


def _header(file: HostFile, fmt: str, header: Header) -> dict[str, Any]:
    return {
        "filename": printable(file.path),
        "format": fmt,
        "file_size": file.size,
        "virtual_size": header.target_size,
        "base_size": header.base_size,
        "base_digest": header.base_digest.hex(),
        "target_digest": header.target_digest.hex(),
        "segment_size": header.segment_size,
        "memory": header.memory,
        "creator": None if header.creator is None else printable(header.creator),
        "compatible_features": header.compatible_features,
        "sections": [
            {"type": kind, "name": _section(kind), "length": len(data)}
            for kind, data in header.sections
        ],
    }


def _section(kind: int) -> str:
    return SectionType(kind).name.lower() if kind in set(SectionType) else "unknown"


class PatchChanges:
    """The changes that a patch makes, told without its base.

    What was zeros in the base is not known, so what became data counts as modified.
    """

    granularity = BLOCK

    def __init__(self, patch: PatchFile) -> None:
        self._patch = patch
        self.size = patch.header.target_size
        self.stats = DeltaStats()

    def windows(self) -> Iterator[ChangeWindow]:
        """Yield a window for each segment."""
        for segment in self._patch.segments():
            changes = np.zeros(segment.operations.size, CHANGE)
            changes["start"] = segment.start + segment.operations["start"].astype(np.int64)
            changes["length"] = segment.operations["length"]
            zero = segment.operations["kind"] == OperationKind.ZERO
            changes["kind"] = np.where(zero, ChangeKind.ZEROED, ChangeKind.MODIFIED)
            stop = segment.start + segment.length
            yield ChangeWindow(segment.start, stop, changes, np.empty(0, EXTENT))
