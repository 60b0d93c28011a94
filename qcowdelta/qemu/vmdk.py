"""VMDK descriptors: the files that a VMDK names, read by us so that QEMU follows no name.

What QEMU makes of a descriptor is in its block/vmdk.c; where that would leave out something in
silence, it is refused here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import CorruptImageError, FormatError, UnsupportedFeatureError, printable
from ..formats import probe
from ..hostfile import HostFile
from ..units import SECTOR

_SPARSE_MAGIC = (b"KDMV", b"COWD")
_LONGEST = 1 << 20  # as in QEMU, which reads 20 sectors of an embedded descriptor
_EMBEDDED = 20 * SECTOR
_QEMU_LOOKS_AT = 0x200
_MAX_EXTENTS = 4096
_NO_PARENT = 0xFFFFFFFF

_EXTENT = re.compile(
    rb"^\s*(?P<access>RW|RDONLY|NOACCESS)\s+(?P<sectors>\d{1,19})\s+(?P<kind>[A-Z]+)"
    rb'(?:\s+"(?P<name>[^"\r\n]{1,511})"(?:\s+(?P<offset>\d{1,19}))?)?'
)
_ENTRY = re.compile(
    rb"^\s*(?P<key>CID|parentCID|createType|parentFileNameHint)\s*=\s*(?P<value>.*?)\s*$"
)
_KINDS = {"FLAT", "VMFS", "SPARSE", "VMFSSPARSE", "SESPARSE"}


@dataclass(frozen=True)
class VmdkExtent:
    """One line of a descriptor: sectors that lie in a file."""

    sectors: int
    kind: str
    name: bytes
    offset: int | None


@dataclass(frozen=True)
class VmdkDescriptor:
    """What a VMDK says of the files that it consists of.

    Attributes:
        extents: the files with its content, in order; none where that is in the VMDK itself.
        size: the sum of the extents, or what the header says, bytes.
        parent: the name of the VMDK below, or None.
        cid, parent_cid: the content ids of this one and of the one below.
        create_type: what kind of VMDK it is.
    """

    extents: tuple[VmdkExtent, ...]
    size: int
    parent: bytes | None
    cid: int
    parent_cid: int
    create_type: str

    def rewritten(self, names: Mapping[bytes, str]) -> bytes:
        """Return a descriptor that says the same with other names for its extents' files.

        It names no parent, which QEMU is to be given apart.
        """
        lines = [
            "# Disk DescriptorFile",
            "version=1",
            f"CID={self.cid:08x}",
            f"parentCID={self.parent_cid:08x}",
            f'createType="{self.create_type}"',
        ]
        for extent in self.extents:
            line = f'RW {extent.sectors} {extent.kind} "{names[extent.name]}"'
            lines.append(line if extent.offset is None else f"{line} {extent.offset}")
        return "\n".join([*lines, ""]).encode("ascii")


def read_vmdk(file: HostFile) -> VmdkDescriptor:
    """Read what a VMDK names.

    Raises:
        FormatError: it is no VMDK, or its descriptor makes no sense.
        UnsupportedFeatureError: it consists of something that QEMU would leave out.
    """
    magic = file.read(0, min(file.size, 4))
    if magic not in _SPARSE_MAGIC:
        return _Parser(file, file.read(0, min(file.size, _LONGEST))).of_a_file()
    if magic == b"COWD":
        raise UnsupportedFeatureError(
            "is a VMDK of version 3 (COWD), which may have a parent that is not named where QEMU "
            "looks for it; convert it with the tools of its maker",
            path=file.path,
        )
    return _read_sparse(file)


def check_extent(file: HostFile) -> None:
    """Refuse a sparse extent that is a descriptor itself: QEMU would follow its names.

    Raises:
        FormatError: it is.
    """
    head = file.read(0, min(file.size, SECTOR))
    if head[:4] == b"KDMV" and _capacity(head) == 0:
        raise FormatError("is a VMDK extent that names other extents", path=file.path)


def _capacity(head: bytes) -> int:
    return int.from_bytes(head[12:20], "little")


def _read_sparse(file: HostFile) -> VmdkDescriptor:
    head = file.read(0, min(file.size, SECTOR))
    if len(head) < SECTOR:
        raise CorruptImageError("ends inside of its VMDK header", path=file.path)
    capacity = _capacity(head)
    place = int.from_bytes(head[28:36], "little") * SECTOR
    if capacity == 0:  # then QEMU takes what is in it for a descriptor file
        return _Parser(file, _text(file, place)).of_a_file()
    found = _Parser(file, _text(file, place)).of_itself(capacity * SECTOR)
    if place != _QEMU_LOOKS_AT and b"parentFileNameHint" in _text(file, _QEMU_LOOKS_AT):
        raise FormatError("names a parent where no descriptor is", path=file.path)
    return found


def _text(file: HostFile, place: int) -> bytes:
    if place <= 0 or place >= file.size:
        return b""
    return file.read(place, min(_EMBEDDED, file.size - place))


class _Parser:
    """Parses one descriptor; holds what every check needs for its message."""

    def __init__(self, file: HostFile, text: bytes) -> None:
        self._file = file
        self._text = text.split(b"\0", 1)[0]
        self._entries = self._read_entries()

    def of_a_file(self) -> VmdkDescriptor:
        """Return what a descriptor says that names its extents."""
        extents = tuple(self._extents())
        if not extents:
            raise FormatError(self._without_extents(), path=self._file.path)
        return self._make(extents, sum(extent.sectors for extent in extents) * SECTOR)

    def _without_extents(self) -> str:
        looks = probe(self._file)
        if self._entries or looks == "vmdk":
            return "is a VMDK descriptor that names no extents"
        return "is no VMDK" if looks == "raw" else f"is no VMDK: it looks like {looks}"

    def of_itself(self, size: int) -> VmdkDescriptor:
        """Return what a descriptor says that lies in its only extent."""
        return self._make((), size)

    def _make(self, extents: tuple[VmdkExtent, ...], size: int) -> VmdkDescriptor:
        parent_cid = self._cid("parentCID", _NO_PARENT)
        parent = self._entries.get("parentFileNameHint")
        if (parent is None) != (parent_cid == _NO_PARENT):
            raise FormatError(
                "has a parent, but does not name it"
                if parent is None
                else "names a parent, but says with parentCID that it has none",
                path=self._file.path,
            )
        # QEMU finds the word anywhere, and would take it for a name.
        if parent is None and b"parentFileNameHint" in self._text:
            raise FormatError("names a parent in a line that is none", path=self._file.path)
        kind = printable(self._entries.get("createType", b"")).replace('"', "")
        return VmdkDescriptor(extents, size, parent, self._cid("CID", 0), parent_cid, kind)

    def _read_entries(self) -> dict[str, bytes]:
        entries: dict[str, bytes] = {}
        for line in self._text.splitlines():
            found = _ENTRY.match(line)
            if found is None:
                continue
            key = found["key"].decode("ascii")
            if key in entries:
                raise FormatError(f"its VMDK descriptor has {key} twice", path=self._file.path)
            entries[key] = found["value"].strip(b'"')
        return entries

    def _cid(self, key: str, default: int) -> int:
        text = self._entries.get(key)
        if text is None:
            return default
        if not re.fullmatch(rb"[0-9a-fA-F]{1,8}", text):
            raise FormatError(f"{printable(text)!r} is no {key}", path=self._file.path)
        return int(text, 16)

    def _extents(self) -> list[VmdkExtent]:
        found: list[VmdkExtent] = []
        for line in self._text.splitlines():
            if re.match(rb"\s*(RW|RDONLY|NOACCESS)\b", line) is None:
                continue
            if len(found) == _MAX_EXTENTS:
                raise FormatError(f"has more than {_MAX_EXTENTS} extents", path=self._file.path)
            found.append(self._extent(line))
        return found

    def _extent(self, line: bytes) -> VmdkExtent:
        match = _EXTENT.match(line)
        if match is None:
            raise FormatError(f"{printable(line)!r} is no VMDK extent", path=self._file.path)
        kind = match["kind"].decode("ascii")
        if match["access"] != b"RW" or kind not in _KINDS or match["name"] is None:
            raise UnsupportedFeatureError(
                f"has an extent that QEMU leaves out: {printable(line)!r}", path=self._file.path
            )
        offset = None if match["offset"] is None else int(match["offset"])
        return VmdkExtent(int(match["sectors"]), kind, match["name"], offset)
