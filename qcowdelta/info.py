"""Describing one image file, without opening any other."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from .errors import ImageError, printable
from .formats import probe
from .hostfile import HostFile
from .identity import BaseIdentity
from .patch.describe import describe_patch
from .patch.header import is_patch
from .qcow2.bitmaps import read_bitmaps
from .qcow2.geometry import ALL_SUBCLUSTERS, ALL_ZERO, COMPRESSED, OFFSET_MASK, SUBCLUSTERS
from .qcow2.header import CRYPT_NAMES, Header, feature_names, read_header
from .qcow2.layout import Autoclear, Compatible, ExtensionType, Incompatible
from .qcow2.snapshots import read_snapshots
from .qcow2.tables import ClusterMap
from .qemu.headers import describe_foreign
from .units import SECTOR, align_up


@dataclass(frozen=True)
class TableStatistics:
    """How an image's guest clusters are stored, in clusters.

    Attributes:
        l2_tables: how many L2 tables there are.
        data, compressed, zero: clusters stored so; with extended L2 entries, ``data`` are those
            with a host cluster, and ``zero`` those without one that have zero sub-clusters.
        unallocated: all others.
        data_subclusters, zero_subclusters: with extended L2 entries, how many of each.
    """

    l2_tables: int
    data: int
    compressed: int
    zero: int
    unallocated: int
    data_subclusters: int | None = None
    zero_subclusters: int | None = None


def table_statistics(file: HostFile, header: Header) -> TableStatistics:
    """Count how the active state's clusters are stored.

    Raises:
        CorruptImageError: a table is damaged or lies beyond the end of the file.
    """
    geometry = header.geometry
    needed = geometry.l1_entries(header.size)
    tables = ClusterMap(file, header, header.l1_table_offset, needed)
    total = geometry.clusters(header.size)
    counts = np.zeros(5, np.int64)
    external = header.has(Incompatible.EXTERNAL_DATA_FILE)
    for _, entries in tables.stretches(total):
        words = entries[:, 0]
        compressed = (words & np.uint64(COMPRESSED)) != 0
        zero = ~compressed & ((words & np.uint64(ALL_ZERO)) != 0)
        placed = words if external else words & np.uint64(OFFSET_MASK)
        data = ~compressed & ~zero & (placed != 0)
        if geometry.extended_l2:
            bitmap = entries[:, 1]
            zero = ~compressed & ~data & (bitmap != 0)
            counts[3] += int(np.bitwise_count(bitmap & np.uint64(ALL_SUBCLUSTERS)).sum())
            counts[4] += int(np.bitwise_count(bitmap >> np.uint64(SUBCLUSTERS)).sum())
        counts[:3] += [int(mask.sum()) for mask in (data, compressed, zero)]
    data_count, compressed_count, zero_count, data_units, zero_units = counts.tolist()
    return TableStatistics(
        l2_tables=int((tables.l1 != 0).sum()),
        data=data_count,
        compressed=compressed_count,
        zero=zero_count,
        unallocated=total - data_count - compressed_count - zero_count,
        data_subclusters=data_units if geometry.extended_l2 else None,
        zero_subclusters=zero_units if geometry.extended_l2 else None,
    )


def describe(file: HostFile) -> dict[str, Any]:
    """Return everything that a file says of itself, as values that JSON can hold.

    Raises:
        FormatError, CorruptImageError: it cannot be read.
    """
    if is_patch(file):
        return describe_patch(file)
    base = {"filename": printable(file.path), "file_size": file.size}
    fmt = probe(file)
    if fmt == "raw":
        return {**base, "format": "raw", "virtual_size": align_up(file.size, SECTOR)}
    if fmt != "qcow2":
        return {**base, "format": fmt, **describe_foreign(file, fmt)}
    header = read_header(file)
    return {
        **base,
        "format": "qcow2",
        "virtual_size": header.size,
        "cluster_size": header.geometry.cluster_size,
        "backing_file": None if header.backing_file is None else printable(header.backing_file),
        "backing_format": None
        if header.backing_format is None
        else printable(header.backing_format),
        "data_file": None if header.data_file is None else printable(header.data_file),
        "encryption": CRYPT_NAMES[header.crypt_method],
        "compression_type": header.compression_type.name.lower(),
        "refcount_bits": 1 << header.refcount_order,
        "header": _header_fields(header),
        "features": _features(header, file.path),
        "extensions": [_extension(e.type, e.offset, e.data) for e in header.extensions],
        "delta": _delta(header, file.path),
        "snapshots": _snapshots(file, header),
        "bitmaps": _bitmaps(file, header),
        "tables": vars_of(table_statistics(file, header)),
    }


def vars_of(record: Any) -> dict[str, Any]:
    """Return a dataclass's fields that have a value."""
    values = {f.name: getattr(record, f.name) for f in fields(record)}
    return {name: value for name, value in values.items() if value is not None}


def _header_fields(header: Header) -> dict[str, int]:
    return {f.name: v for f in fields(header) if isinstance(v := getattr(header, f.name), int)}


def _features(header: Header, path: str) -> list[dict[str, Any]]:
    """Return the feature bits that are set, named by us or else by the image itself."""
    own = feature_names(header, path)
    kinds: list[tuple[str, int, Any]] = [
        ("incompatible", header.incompatible_features, Incompatible),
        ("compatible", header.compatible_features, Compatible),
        ("autoclear", header.autoclear_features, Autoclear),
    ]
    found = []
    for number, (kind, value, known) in enumerate(kinds):
        for bit in (bit for bit in range(64) if value >> bit & 1):
            ours = known(1 << bit).name if 1 << bit in tuple(known) else None
            name = (ours or "").lower().replace("_", " ") or own.get((number, bit), "unknown")
            found.append({"kind": kind, "bit": bit, "name": name})
    return found


def _extension(kind: int, offset: int, data: bytes) -> dict[str, Any]:
    names = {int(k): k.name.lower().replace("_", " ") for k in ExtensionType}
    return {
        "type": f"{kind:#010x}",
        "name": names.get(kind, "unknown"),
        "offset": offset,
        "length": len(data),
    }


def _delta(header: Header, path: str) -> dict[str, Any] | None:
    found = header.extension(ExtensionType.DELTA)
    if found is None:
        return None
    identity = BaseIdentity.parse(found.data, path, found.offset)
    return {
        "base_size": identity.size,
        "base_mtime_ns": identity.mtime_ns,
        "base_fingerprint": identity.fingerprint.hex(),
        "base_digest": identity.digest.hex() if identity.digest else None,
        "data_bytes": identity.data_bytes,
        "zero_bytes": identity.zero_bytes,
    }


def _snapshots(file: HostFile, header: Header) -> list[dict[str, Any]]:
    return [
        {
            "id": printable(s.id),
            "name": printable(s.name),
            "disk_size": s.disk_size,
            "vm_state_size": s.vm_state_size,
            "date_sec": s.date_sec,
            "vm_clock_nsec": s.vm_clock_nsec,
        }
        for s in read_snapshots(file, header)
    ]


def _bitmaps(file: HostFile, header: Header) -> list[dict[str, Any]]:
    try:
        bitmaps = read_bitmaps(file, header)
    except ImageError:
        if header.has_autoclear(Autoclear.BITMAPS):
            raise
        bitmaps = ()  # a writer that knows no bitmaps has let the directory go stale
    return [
        {
            "name": printable(b.name),
            "granularity": b.granularity,
            "flags": [str(f.name).lower().replace("_", "-") for f in b.known_flags],
            "state": b.state.value,
        }
        for b in bitmaps
    ]
