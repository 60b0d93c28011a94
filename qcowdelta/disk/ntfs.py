"""NTFS, read through The Sleuth Kit."""

from __future__ import annotations

from typing import Any

import numpy as np
from construct import Const, Int16ul, Int32ul, Int64ul, Struct

from ..units import MIB
from .contents import Contents, UnreadableError
from .files import Type
from .kinds import SpaceKind, VolumeState
from .space import Spaces, apart, nothing, spaces, stops, tile
from .told import Heard, claims, hear, used_and_free
from .tsk import Told, ask_tsk
from .volume import Volume

_DATA, _INDEX, _BITMAP_ATTRIBUTE = 128, 160, 176
_MFT, _LOG, _VOLUME_BITMAP, _BAD = 0, 2, 6, 8
_METADATA_FILES = 24
_ROOT = 5
_SHOWN = {_ROOT, 11}
"""The root and ``$Extend`` are directories with files of interest; other metadata has no name."""
_DIRTY = 0x1
_AT_ONCE = 4 * MIB
_HIBERNATION_FILE = "hiberfil.sys"
_HIBERNATION_HEADER = 4096
_HIBERNATED = {b"hibr", b"HIBR"}
_RESTART_PLACES = (0, *(512 << n for n in range(8)))
"""Restart pages are the first two of the log, of whatever size pages are."""
_MAX_RESTART_AREA = 510 - 16
"""The last two bytes of a sector are kept elsewhere."""
_NO_CLIENT = 0xFFFF
_LOG_IS_CLEAN = 0x2

RestartPage = Struct(
    "magic" / Const(b"RSTR"),
    "fixup_offset" / Int16ul,
    "fixups" / Int16ul,
    "checked_to" / Int64ul,
    "system_page_size" / Int32ul,
    "log_page_size" / Int32ul,
    "area_offset" / Int16ul,
    "version" / Int32ul,
)
"""At the beginning of ``$LogFile``, twice; what counts is the newer one."""

RestartArea = Struct(
    "lsn" / Int64ul,
    "clients" / Int16ul,
    "first_free_client" / Int16ul,
    "first_client_in_use" / Int16ul,
    "flags" / Int16ul,
)


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
    state = VolumeState.DAMAGED if notes else VolumeState.CLEAN
    if not _log_is_clean(volume, heard):
        state = VolumeState.NEEDS_RECOVERY
    hibernated = _is_hibernated(volume, told, heard)
    if hibernated:
        notes.append("Windows is hibernated on it, or was shut down for a fast start")
    if hibernated or int(told.facts.get("flags", _DIRTY)) & _DIRTY:
        state = VolumeState.DIRTY
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


def _log_is_clean(volume: Volume, heard: Heard) -> bool:
    """Tell whether ``$LogFile`` says that nothing has to be replayed: it is empty, or was closed.

    A volume that is mounted, or whose system crashed, has it open, whatever its flags say.
    """
    head = _beginning(volume, heard, _LOG, 2 * _RESTART_PLACES[-1])
    pages = [head[at : at + 512] for at in _RESTART_PLACES if head[at : at + 4] == b"RSTR"]
    areas = [_restart_area(page) for page in pages]
    if not areas:
        return bool(head) and head == b"\xff" * len(head)
    known = [area for area in areas if area is not None]
    if len(known) < len(areas):
        return False
    newest = max(area.lsn for area in known)
    return all(
        area.first_client_in_use == _NO_CLIENT or area.flags & _LOG_IS_CLEAN
        for area in known
        if area.lsn == newest
    )


def _restart_area(page: bytes) -> Any | None:
    """Return the restart area of a restart page; None: it is not where it could be."""
    if len(page) < 512:
        return None
    offset = RestartPage.parse(page).area_offset
    if not RestartPage.sizeof() <= offset <= _MAX_RESTART_AREA:
        return None
    return RestartArea.parse(page[offset:])


def _is_hibernated(volume: Volume, told: Told, heard: Heard) -> bool:
    """Tell whether the root has a hibernation file that is in use, or is none of a known kind."""
    for parent, inode, name in told.names:
        if parent == _ROOT and name.lower() == _HIBERNATION_FILE:
            head = _beginning(volume, heard, inode, _HIBERNATION_HEADER)
            return len(head) < _HIBERNATION_HEADER or head[:4] in _HIBERNATED
    return False


def _beginning(volume: Volume, heard: Heard, inode: int, length: int) -> bytes:
    """Return the first bytes of a file's clusters, fewer where it has no more."""
    data = bytearray()
    for one in heard.attributes:
        if one.inode != inode or one.kind != _DATA:
            continue
        for start, size, offset in one.runs:
            if offset != len(data) or len(data) >= length:
                break
            data += volume.read(start, min(size, length - len(data)))
    return bytes(data)


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
