"""The bitmap directory (spec section "Bitmaps")."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag

from ..errors import CorruptImageError, FormatError
from ..hostfile import HostFile
from ..units import MIB
from . import layout
from .header import Header, read_bitmaps_info
from .layout import Autoclear

MAX_NAME = 1023
MAX_BITS = 512 * MIB
MIN_GRANULARITY_BITS, MAX_GRANULARITY_BITS = 9, 31
_DIRTY_TRACKING = 1
_FIXED = 24


class BitmapFlags(IntFlag):
    """Flags of a bitmap."""

    IN_USE = 1
    AUTO = 2


@dataclass(frozen=True)
class Bitmap:
    """A persistent bitmap. The name is bytes from the file; sizes are bytes.

    Attributes:
        table_size: entries of its table.
        usable: False where a writer did not close the image: the bits on disk are stale.
    """

    name: bytes
    granularity: int
    flags: int
    type: int
    table_offset: int
    table_size: int
    usable: bool

    @property
    def known_flags(self) -> list[BitmapFlags]:
        """The flags that are set and have a name."""
        return [flag for flag in BitmapFlags if self.flags & flag]


def read_bitmaps(file: HostFile, header: Header) -> tuple[Bitmap, ...]:
    """Read the bitmap directory; none where there is no extension.

    Raises:
        FormatError: an entry is beyond QEMU's limits, or the directory is not as long as it says.
        CorruptImageError: the directory lies beyond the end of the file.
    """
    info = read_bitmaps_info(header, file.path)
    if info is None:
        return ()
    if info.directory_offset + info.directory_size > file.size:
        raise CorruptImageError(
            "bitmap directory lies beyond the end of the file",
            path=file.path,
            offset=info.directory_offset,
            field="bitmaps",
        )
    data = file.read(info.directory_offset, info.directory_size)
    found, position = [], 0
    for index in range(info.count):
        offset = info.directory_offset + position
        entry = data[position : position + _FIXED + MAX_NAME]
        bitmap, length = _read_one(file, header, entry, offset, f"bitmap {index}")
        found.append(bitmap)
        position += length
    if position != len(data):
        raise FormatError(
            f"directory has {len(data)} bytes, its entries {position}",
            path=file.path,
            offset=info.directory_offset,
            field="bitmaps",
        )
    return tuple(found)


def _read_one(
    file: HostFile, header: Header, data: bytes, offset: int, name: str
) -> tuple[Bitmap, int]:
    cluster_size = header.geometry.cluster_size
    fixed = layout.parse(
        layout.compiled(layout.BitmapHeader),
        data[:_FIXED],
        path=file.path,
        offset=offset,
        name=name,
    )
    stop = _FIXED + fixed.name_size
    limits = (
        not fixed.extra_data_size,
        not fixed.flags & ~sum(BitmapFlags),
        fixed.type == _DIRTY_TRACKING,
        cluster_size <= fixed.table_offset <= file.size - fixed.table_size * 8,
        not fixed.table_offset % cluster_size,
        0 < fixed.table_size * cluster_size <= MAX_BITS,
        fixed.name_size <= MAX_NAME,
        MIN_GRANULARITY_BITS <= fixed.granularity_bits <= MAX_GRANULARITY_BITS,
        stop <= len(data),
    )
    if not all(limits):
        raise FormatError(
            "its name, table, granularity, flags, type or extra data is beyond the limits",
            path=file.path,
            offset=offset,
            field=name,
        )
    bitmap = Bitmap(
        name=data[_FIXED:stop],
        granularity=1 << fixed.granularity_bits,
        flags=fixed.flags,
        type=fixed.type,
        table_offset=fixed.table_offset,
        table_size=fixed.table_size,
        usable=header.has_autoclear(Autoclear.BITMAPS) and not fixed.flags & BitmapFlags.IN_USE,
    )
    return bitmap, stop + -stop % 8
