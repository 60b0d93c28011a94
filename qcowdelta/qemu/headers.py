"""What files of foreign formats say of themselves, without QEMU and without any other file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from construct import (
    Bytes,
    Int16ub,
    Int32ub,
    Int32ul,
    Int64ub,
    Int64ul,
    Padding,
    Struct,
)

from ..declare import parse
from ..errors import CorruptImageError, printable
from ..hostfile import HostFile
from ..units import SECTOR
from .vhdx import Vhdx
from .vmdk import read_vmdk

_Vdi = Struct("text" / Bytes(64), Padding(12), "type" / Int32ul, Padding(288), "size" / Int64ul)
_Vpc = Struct(Padding(48), "size" / Int64ub, Padding(4), "type" / Int32ub)
_Luks = Struct(
    Padding(6),
    "version" / Int16ub,
    "cipher" / Bytes(32),
    "mode" / Bytes(32),
    "hash" / Bytes(32),
    "payload_offset" / Int32ub,
)
_Qed = Struct(Padding(48), "size" / Int64ul)
_Qcow = Struct(Padding(24), "size" / Int64ub)
_Parallels = Struct(Padding(36), "sectors" / Int64ul)


def describe_foreign(file: HostFile, fmt: str) -> dict[str, Any]:
    """Return what a file of a foreign format says of itself; its virtual size at least.

    Raises:
        FormatError, CorruptImageError: it cannot be read.
    """
    return _DESCRIBERS[fmt](file)


def _at(file: HostFile, declaration: Any, offset: int, length: int, name: str) -> Any:
    if offset >= file.size:
        raise CorruptImageError("ends before it", path=file.path, offset=offset, field=name)
    data = file.read(offset, min(length, file.size - offset))
    return parse(declaration, data, path=file.path, offset=offset, name=name)


def _vmdk(file: HostFile) -> dict[str, Any]:
    found = read_vmdk(file)
    return {
        "virtual_size": found.size,
        "create_type": found.create_type,
        "backing_file": None if found.parent is None else printable(found.parent),
        "extents": [
            {"file": printable(e.name), "kind": e.kind, "length": e.sectors * SECTOR}
            for e in found.extents
        ],
    }


def _vdi(file: HostFile) -> dict[str, Any]:
    return {"virtual_size": _at(file, _Vdi, 0, _Vdi.sizeof(), "VDI header").size}


def _vpc(file: HostFile) -> dict[str, Any]:
    at = 0 if file.read(0, min(8, file.size)) == b"conectix" else max(0, file.size - SECTOR)
    footer = _at(file, _Vpc, at, SECTOR, "VHD footer")
    kinds = {2: "fixed", 3: "dynamic", 4: "differencing"}
    return {"virtual_size": footer.size, "create_type": kinds.get(footer.type, "unknown")}


def _vhdx(file: HostFile) -> dict[str, Any]:
    return {"virtual_size": Vhdx(file).size}


def _luks(file: HostFile) -> dict[str, Any]:
    header = _at(file, _Luks, 0, _Luks.sizeof(), "LUKS header")
    words = (header.cipher, header.mode, header.hash)
    cipher, mode, digest = (printable(word.split(b"\0")[0]) for word in words)
    if header.version != 1:  # the place of its payload is elsewhere
        return {"virtual_size": None, "encryption": f"LUKS{header.version}"}
    payload = header.payload_offset * SECTOR
    return {
        "virtual_size": max(0, file.size - payload),
        "encryption": f"LUKS1, {cipher}-{mode}, {digest}",
    }


def _sized(declaration: Any, name: str) -> Callable[[HostFile], dict[str, Any]]:
    return lambda file: {"virtual_size": _at(file, declaration, 0, declaration.sizeof(), name).size}


def _parallels(file: HostFile) -> dict[str, Any]:
    header = _at(file, _Parallels, 0, _Parallels.sizeof(), "Parallels header")
    return {"virtual_size": header.sectors * SECTOR}


_DESCRIBERS: dict[str, Callable[[HostFile], dict[str, Any]]] = {
    "luks": _luks,
    "parallels": _parallels,
    "qcow": _sized(_Qcow, "qcow header"),
    "qed": _sized(_Qed, "QED header"),
    "vdi": _vdi,
    "vhdx": _vhdx,
    "vmdk": _vmdk,
    "vpc": _vpc,
}
