"""What a delta changes, as JSON: ``formats/inspect.md`` and its schema say what is in it.

The document is a head and lists; JSON lines are the same lists, a record a line, and the head
last, since it has the sums.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..attribution.figures import Advice, Attribution, FileChange, PartitionShare, SourceFacts
from ..delta import ChangeKind
from ..disk.kinds import SpaceKind
from ..errors import printable
from ..inspect import Extent, Inspection
from ..version import __version__
from .tree import directory_rows
from .words import advice_text

FORMAT = "qcowdelta-inspect"
VERSION = "1.1"
"""A reader of 1.x must ignore what it does not know; what it knows stays as it is."""

Record = dict[str, Any]


def head(found: Attribution, inspection: Inspection) -> Record:
    """Return all that is no list."""
    summary, stats = inspection.summary, inspection.stats
    return {
        "format": FORMAT,
        "format_version": VERSION,
        "creator": f"qcowdelta {__version__}",
        "old": _source(found.sources[0]),
        "new": _source(found.sources[1]),
        "virtual_size": summary.size,
        "old_virtual_size": summary.base_size,
        "cluster_size": summary.granularity,
        "changed_clusters": summary.changed_clusters,
        "changed_bytes": found.changed_bytes,
        "data_bytes": summary.data_bytes,
        "zero_bytes": summary.zero_bytes,
        "unchanged_bytes": summary.unchanged_bytes,
        "new_zero_bytes": summary.new_zero_bytes,
        **{
            kind.name.lower(): {"clusters": summary.count[kind], "bytes": summary.length[kind]}
            for kind in ChangeKind
        },
        "bytes_read_old": stats.bytes_read_old,
        "bytes_read_new": stats.bytes_read_new,
        "space": space(found.by_kind),
        "zeroed_space": space(found.zeroed),
        "files_by_status": _statuses(found.files),
        "notes": [printable(note) for note in (*found.doubts, *found.notes)],
    }


def lists(found: Attribution, *, directories: bool = False) -> dict[str, Iterator[Record]]:
    """Return the lists, by name: partitions, advice, files and, if asked for, directories."""
    return {
        "partitions": (partition(found, share) for share in found.by_partition),
        "advice": map(advice, found.advice),
        **({"directories": directory_rows(found)} if directories else {}),
        "files": map(file, found.files),
    }


def partition(found: Attribution, share: PartitionShare) -> Record:
    """Return a partition and what changed in it; of what lies in none, only the latter."""
    changed = {
        "changed_bytes": share.changed_bytes,
        "space": space(share.by_kind),
        "zeroed_space": space(share.zeroed),
    }
    one = share.partition
    if one is None:
        return {"index": None, **changed}
    return {
        "index": found.partitions.index(one),
        "number": one.number,
        "start": one.start,
        "length": one.length,
        "scheme": one.scheme,
        "type": printable(one.type),
        "name": printable(one.name),
        "filesystem": one.filesystem,
        "label": printable(one.label),
        "uuid": printable(one.uuid),
        "read": one.read,
        "state": one.state.value,
        "gone": one.gone,
        "note": None if one.note is None else printable(one.note),
        **changed,
    }


def file(change: FileChange) -> Record:
    """Return what became of a file."""
    return {
        **name("path", change.path),
        "partition": change.partition,
        "status": change.status.value,
        "type": change.type.value,
        **({} if change.old_path is None else name("old_path", change.old_path)),
        "size": change.size,
        "changed_bytes": change.changed_bytes,
        "freed_bytes": change.freed_bytes,
        "inode": change.inode,
    }


def name(key: str, value: bytes) -> Record:
    """Return a name as text and, where the text does not say it exactly, in base64 too."""
    text = printable(value)
    if text.encode() == value:
        return {key: text}
    return {key: text, f"{key}_base64": base64.b64encode(value).decode()}


def advice(one: Advice) -> Record:
    """Return a piece of advice."""
    return {"code": one.code, "bytes": one.bytes, "text": advice_text(one), "remedy": one.remedy}


def extent(one: Extent) -> Record:
    """Return a changed extent."""
    return {
        "start": one.start,
        "length": one.length,
        "kind": "zero" if one.kind is ChangeKind.ZEROED else "data",
        "change": one.kind.name.lower(),
    }


def lines(found: Attribution, inspection: Inspection, *, directories: bool) -> Iterator[Record]:
    """Yield the records of all lists but the extents, and the head as the last."""
    names = {"partitions": "partition", "files": "file", "directories": "directory"}
    counts = {}
    for key, rows in lists(found, directories=directories).items():
        counts[key] = 0
        for row in rows:
            counts[key] += 1
            yield {"record": names.get(key, key), **row}
    yield {"record": "summary", **head(found, inspection), "counts": counts}


def space(by_kind: Mapping[SpaceKind, int]) -> dict[str, int]:
    """Return bytes by kind of space, kinds with none left out."""
    return {kind.name.lower(): by_kind[kind] for kind in sorted(by_kind) if by_kind[kind]}


def _statuses(files: Iterable[FileChange]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for change in files:
        figures = found.setdefault(
            change.status.value, {"files": 0, "changed_bytes": 0, "freed_bytes": 0}
        )
        figures["files"] += 1
        figures["changed_bytes"] += change.changed_bytes
        figures["freed_bytes"] += change.freed_bytes
    return found


def _source(source: SourceFacts | None) -> Record | None:
    if source is None:
        return None
    return {
        "filename": printable(source.path),
        "format": source.format,
        "virtual_size": source.virtual_size,
        "file_size": source.file_size,
        "cluster_size": source.cluster_size,
        "data_bytes": source.data_bytes,
        "compressed_bytes": source.compressed_bytes,
    }
