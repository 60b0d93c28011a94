"""NTFS, read through The Sleuth Kit."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..units import MIB
from .contents import Contents, UnreadableError
from .files import Type
from .kinds import SpaceKind, VolumeState
from .space import Spaces, apart, nothing, spaces, stops, tile
from .told import Heard, claims, hear, used_and_free
from .tsk import ask_tsk
from .volume import Volume

_DATA, _INDEX, _BITMAP_ATTRIBUTE = 128, 160, 176
_MFT, _LOG, _VOLUME_BITMAP, _BAD = 0, 2, 6, 8
_METADATA_FILES = 24
_ROOT = 5
_SHOWN = {_ROOT, 11}
"""The root and ``$Extend`` are directories with files of interest; other metadata has no name."""
_DIRTY = 0x1
_AT_ONCE = 4 * MIB


def read_ntfs(volume: Volume) -> Contents:
    """Tell whose each cluster of a file system is.

    Raises:
        UnreadableError: The Sleuth Kit is not there or cannot read it.
        CorruptImageError: the image cannot be read.
    """
    told = ask_tsk(volume, "NTFS")
    told.names = [row for row in told.names if row[1] in _SHOWN or row[1] >= _METADATA_FILES]
    heard = hear(told, lambda kind: kind == _DATA)
    cluster = int(told.facts["block_size"])
    blocks = int(told.facts["blocks"])
    if cluster < 1 or not 0 < blocks * cluster <= volume.length + cluster:
        raise UnreadableError("its boot sector is damaged")
    limit = min(blocks * cluster, volume.length)
    taken, twice = apart(claims(heard, _kind_of, cluster, 0), limit)
    free = _free(volume, heard, cluster, limit)
    whole, notes = used_and_free(taken, free, twice, "bitmap")
    state = _state(told.facts, damaged=bool(notes))
    heard.files.opaque |= heard.files.inode < _METADATA_FILES
    return Contents(
        tile(whole, volume.length, SpaceKind.UNKNOWN),
        heard.files,
        state,
        read=True,
        notes=notes,
        sound=state is VolumeState.CLEAN and not notes,
        label=str(told.facts.get("label", ""))[:128],
    )


def _state(facts: dict[str, Any], *, damaged: bool) -> VolumeState:
    if int(facts.get("flags", _DIRTY)) & _DIRTY:
        return VolumeState.DIRTY
    return VolumeState.DAMAGED if damaged else VolumeState.CLEAN


def _kind_of(inode: int, type_: int, attribute: int) -> tuple[SpaceKind, bool]:
    """Tell what the clusters of an attribute are, and whether they are the file's own."""
    if inode < _METADATA_FILES and inode != _ROOT:
        return _METADATA_KINDS.get(inode, SpaceKind.METADATA), False
    if attribute == _DATA:
        return SpaceKind.FILE_DATA, True
    if attribute == _INDEX and type_ == Type.DIRECTORY:
        return SpaceKind.DIRECTORY, True
    return SpaceKind.METADATA, False


_METADATA_KINDS = {
    _MFT: SpaceKind.INODE_TABLE,
    _LOG: SpaceKind.JOURNAL,
    _VOLUME_BITMAP: SpaceKind.BITMAP,
    _BAD: SpaceKind.UNKNOWN,
}


def _free(volume: Volume, heard: Heard, cluster: int, limit: int) -> Spaces:
    """Return what the file ``$Bitmap`` says is free, in bytes, sorted and apart."""
    found: list[Spaces] = []
    first = 0
    for one in heard.attributes:
        if one.inode != _VOLUME_BITMAP or one.kind != _DATA:
            continue
        for start, length, _ in one.runs:
            for at in range(start, min(start + length, volume.length), _AT_ONCE):
                data = volume.read(at, min(_AT_ONCE, start + length - at))
                found.append(zero_bits(np.frombuffer(data, np.uint8), first, cluster))
                first += len(data) * 8
                if first * cluster >= limit:
                    return _cut(found, limit)
    return _cut(found, limit)


def zero_bits(data: Any, first: int, unit: int, base: int = 0) -> Spaces:
    """Return the runs of zeros among bits, lowest first, as free space.

    Args:
        data: bytes.
        first: the number of the first bit.
        unit: how many bytes a bit stands for.
        base: where what bit 0 stands for begins.
    """
    bits = np.unpackbits(data, bitorder="little")
    edges = np.diff(np.concatenate([[1], bits, [1]]).astype(np.int8))
    begin, end = np.flatnonzero(edges == -1), np.flatnonzero(edges == 1)
    return spaces(base + (first + begin) * unit, (end - begin) * unit, SpaceKind.FREE)


def _cut(found: list[Spaces], limit: int) -> Spaces:
    rows = np.concatenate(found) if found else nothing()
    rows = rows[rows["start"] < limit]
    rows["length"] = np.minimum(stops(rows), limit) - rows["start"]
    return rows
