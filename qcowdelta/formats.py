"""Formats of disk images, by the names that qemu-img has for them, and telling which a file is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import FormatError

if TYPE_CHECKING:
    from .hostfile import HostFile

NATIVE = ("qcow2", "raw")
"""Formats that are read without QEMU, as long as the image allows it."""
FOREIGN = ("luks", "parallels", "qcow", "qed", "vdi", "vhdx", "vmdk", "vpc")
"""Formats that are read through QEMU."""
FORMATS = tuple(sorted(NATIVE + FOREIGN))

PATCH_MAGIC = b"QCPATCH\n"
"""What a cluster patch begins with."""

# What a file of a format has at an offset. A fixed vpc has its footer at the end only, where any
# raw disk's guest may write one: it is never looked for there. Nor is qcow, whose magic is qcow2's.
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"QFI\xfb", "qcow2"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"conectix", "vpc"),
    (0, b"LUKS\xba\xbe", "luks"),
    (0, b"QED\0", "qed"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
)
_HEAD = 0x48


def probe(file: HostFile) -> str:
    """Return the format that a file's first bytes tell, raw where they tell none.

    For files that the user named: an image's guest cannot choose the format of a file that an
    image names, since that one's is recorded.

    Raises:
        FormatError: it is a cluster patch: compared as a raw disk it would give a result that
            nobody can want.
    """
    head = file.read(0, min(file.size, _HEAD))
    if head.startswith(PATCH_MAGIC):
        raise FormatError(
            "is a cluster patch, not a disk image; make the image with 'qcowdelta apply PATCH "
            "--base OLD -o NEW' or an overlay with 'qcowdelta convert'; see what it changes with "
            "'qcowdelta inspect PATCH' or 'qcowdelta inspect OLD PATCH'; only where it is a raw "
            "disk that happens to begin so, give its format as raw",
            path=file.path,
        )
    for offset, magic, name in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return name
    return "raw"
