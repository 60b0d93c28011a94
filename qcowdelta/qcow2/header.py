"""Reading and judging a qcow2 header and its extensions (spec sections "Header" on).

Limits are those QEMU enforces (block/qcow2.c), or stricter: formats/qcow2-profile.md lists them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import CorruptImageError, FormatError, UnsupportedFeatureError, printable
from ..hostfile import HostFile
from ..units import MIB, SECTOR
from . import layout
from .geometry import Geometry
from .layout import Autoclear, CompressionType, ExtensionType, Incompatible

V2_LENGTH = 72
V3_MIN_LENGTH = 104
MIN_CLUSTER_BITS, MAX_CLUSTER_BITS = 9, 21
MIN_EXTENDED_L2_BITS = 14
MAX_L1_BYTES = 32 * MIB
MAX_REFCOUNT_TABLE_BYTES = 8 * MIB
MAX_SNAPSHOTS = 65536
MAX_REFCOUNT_ORDER = 6
MAX_BACKING_NAME = 1023
MAX_BACKING_FORMAT = 15
MAX_BITMAPS = 65535
MAX_EXTENSIONS = 256
MAX_BITMAP_DIRECTORY = MAX_BITMAPS * 1024
MAX_SIZE = (1 << 63) - 1
KNOWN_INCOMPATIBLE = sum(Incompatible)
CRYPT_NAMES = {0: "none", 1: "AES", 2: "LUKS"}


@dataclass(frozen=True)
class HeaderExtension:
    """A header extension as it lies in the file.

    Attributes:
        type: its number; :class:`~.layout.ExtensionType` has the known ones.
        offset: where its data begins in the file, bytes.
        data: its data, without padding.
    """

    type: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class BitmapsInfo:
    """The bitmaps extension: where the bitmap directory is."""

    count: int
    directory_size: int
    directory_offset: int


@dataclass(frozen=True)
class Header:
    """A header that has passed every check that needs nothing but the header.

    Names are those of the specification; sizes and offsets are bytes. For version 2, feature
    fields are 0 and refcount_order is 4.
    """

    version: int
    backing_file_offset: int
    backing_file_size: int
    cluster_bits: int
    size: int
    crypt_method: int
    l1_size: int
    l1_table_offset: int
    refcount_table_offset: int
    refcount_table_clusters: int
    nb_snapshots: int
    snapshots_offset: int
    incompatible_features: int
    compatible_features: int
    autoclear_features: int
    refcount_order: int
    header_length: int
    compression_type: CompressionType
    extensions: tuple[HeaderExtension, ...]
    backing_file: bytes | None

    @property
    def geometry(self) -> Geometry:
        """The image's geometry."""
        return Geometry(self.cluster_bits, self.has(Incompatible.EXTENDED_L2))

    def has(self, feature: Incompatible) -> bool:
        """Tell whether an incompatible feature bit is set."""
        return bool(self.incompatible_features & feature)

    def has_autoclear(self, feature: Autoclear) -> bool:
        """Tell whether an autoclear feature bit is set."""
        return bool(self.autoclear_features & feature)

    def extension(self, kind: ExtensionType) -> HeaderExtension | None:
        """Return the extension of that type, or None."""
        return next((e for e in self.extensions if e.type == kind), None)

    @property
    def backing_format(self) -> str | None:
        """The recorded format of the backing file, or None."""
        found = self.extension(ExtensionType.BACKING_FORMAT)
        return None if found is None else found.data.decode("ascii", "backslashreplace")

    @property
    def data_file(self) -> bytes | None:
        """The recorded name of the external data file, or None."""
        found = self.extension(ExtensionType.DATA_FILE_NAME)
        return None if found is None else found.data


def is_qcow2(file: HostFile) -> bool:
    """Tell whether a file begins with the qcow2 magic."""
    return file.size >= len(layout.MAGIC) and file.read(0, len(layout.MAGIC)) == layout.MAGIC


def read_header(file: HostFile, *, any_features: bool = False) -> Header:
    """Read a qcow2 header, its extensions and the backing file's name.

    Args:
        file: the qcow2 file.
        any_features: accept incompatible features that are not known here, for who only wants to
            know what the image names.

    Raises:
        FormatError: it is not qcow2, or a field is outside its limits.
        UnsupportedFeatureError: an unknown version, incompatible feature or codec.
        CorruptImageError: the file ends inside of it, or inside of a table that it names.
    """
    return _Reader(file, any_features).read()


class _Reader:
    """Reads one header; holds what every check needs for its message."""

    def __init__(self, file: HostFile, any_features: bool) -> None:
        self._file = file
        self._any_features = any_features

    def read(self) -> Header:
        file = self._file
        if not is_qcow2(file):
            raise FormatError("is not a qcow2 image (no QFI\\xfb magic)", path=file.path, offset=0)
        data = file.read(0, min(file.size, 1 << MAX_CLUSTER_BITS))
        first = layout.parse(layout.Header, data, path=file.path, offset=0, name="header")
        self._check_version(first)
        third = self._third(first, data)
        self._check_cluster_bits(first, third)
        extensions = self._extensions(first, third, data)
        self._check_features(third, extensions)
        header = Header(
            **{k: v for k, v in first.items() if k not in ("_io", "magic", "size")},
            **{k: v for k, v in third.items() if k != "compression_type"},
            size=first.size - first.size % SECTOR,
            compression_type=self._compression(third),
            extensions=extensions,
            backing_file=self._backing_name(first, data),
        )
        self._check_tables(header)
        self._check_extensions(header)
        return header

    def _refuse(self, message: str, field: str, offset: int | None = None) -> FormatError:
        return FormatError(message, path=self._file.path, field=field, offset=offset)

    def _unsupported(self, message: str, field: str) -> UnsupportedFeatureError:
        return UnsupportedFeatureError(message, path=self._file.path, field=field)

    def _check_version(self, first: Any) -> None:
        if first.version not in (2, 3):
            older = "; version 1 is the older format qcow, to be named as such"
            raise self._unsupported(
                f"qcow2 version {first.version} is not 2 or 3{older * (first.version == 1)}",
                "version",
            )

    def _third(self, first: Any, data: bytes) -> dict[str, int]:
        """Return the fields of version 3, as they are implied for version 2."""
        if first.version == 2:
            return {
                "incompatible_features": 0,
                "compatible_features": 0,
                "autoclear_features": 0,
                "refcount_order": 4,
                "header_length": V2_LENGTH,
                "compression_type": 0,
            }
        third = layout.parse(
            layout.HeaderV3,
            data[V2_LENGTH:],
            path=self._file.path,
            offset=V2_LENGTH,
            name="header",
        )
        fields = {k: v for k, v in third.items() if k not in ("_io", "additional")}
        fields["compression_type"] = third.additional.compression_type if third.additional else 0
        return fields

    def _check_cluster_bits(self, first: Any, third: dict[str, int]) -> None:
        bits = first.cluster_bits
        if not MIN_CLUSTER_BITS <= bits <= MAX_CLUSTER_BITS:
            raise self._refuse(f"cluster_bits {bits} is not 9 to 21", "cluster_bits")
        extended = third["incompatible_features"] & Incompatible.EXTENDED_L2
        if extended and bits < MIN_EXTENDED_L2_BITS:
            raise self._refuse(
                f"extended L2 entries need clusters of 16 KiB or more, not {1 << bits} bytes",
                "cluster_bits",
            )
        length = third["header_length"]
        if first.version == 3 and (not V3_MIN_LENGTH <= length <= 1 << bits or length % 8):
            raise self._refuse(
                f"header_length {length} is not a multiple of 8 from 104 to {1 << bits}",
                "header_length",
            )
        if third["refcount_order"] > MAX_REFCOUNT_ORDER:
            raise self._refuse(
                f"refcount_order {third['refcount_order']} is above 6", "refcount_order"
            )
        if first.crypt_method not in CRYPT_NAMES:
            raise self._unsupported(f"unknown encryption {first.crypt_method}", "crypt_method")
        if first.size >= MAX_SIZE:
            raise self._refuse(f"a virtual size of {first.size} bytes is too large", "size")

    def _extensions(
        self, first: Any, third: dict[str, int], data: bytes
    ) -> tuple[HeaderExtension, ...]:
        """Walk the extensions, from the header's end to the backing name or the cluster's end."""
        stop = min(first.backing_file_offset or 1 << 21, 1 << first.cluster_bits, len(data))
        position = third["header_length"]
        found: dict[int, HeaderExtension] = {}
        while position + 8 <= stop:
            length = int.from_bytes(data[position + 4 : position + 8])
            if position + 8 + length > stop:
                raise self._refuse("goes beyond its area", "header extension", position)
            extension = layout.parse(
                layout.Extension,
                data[position : position + 8 + length] + bytes(-length % 8),
                path=self._file.path,
                offset=position,
                name="header extension",
            )
            if extension.type == ExtensionType.END:
                break
            if len(found) >= MAX_EXTENSIONS:
                raise self._refuse(f"there are more than {MAX_EXTENSIONS}", "header extension")
            if extension.type in found:
                raise self._refuse(
                    f"header extension {extension.type:#010x} occurs twice",
                    "header extension",
                    position,
                )
            found[extension.type] = HeaderExtension(extension.type, position + 8, extension.data)
            position += 8 + extension.length + -extension.length % 8
        return tuple(found.values())

    def _check_features(
        self, third: dict[str, int], extensions: tuple[HeaderExtension, ...]
    ) -> None:
        unknown = third["incompatible_features"] & ~KNOWN_INCOMPATIBLE
        if unknown and not self._any_features:
            names = _feature_names(extensions, self._file.path)
            bits = [bit for bit in range(64) if unknown >> bit & 1]
            told = ", ".join(f"{b} ({names[0, b]})" if (0, b) in names else str(b) for b in bits)
            raise self._unsupported(
                f"needs features that are not known here: incompatible bit {told}",
                "incompatible_features",
            )

    def _compression(self, third: dict[str, int]) -> CompressionType:
        code = third["compression_type"]
        flagged = bool(third["incompatible_features"] & Incompatible.COMPRESSION_TYPE)
        if code not in tuple(CompressionType):
            raise self._unsupported(f"unknown compression type {code}", "compression_type")
        if flagged != (code != CompressionType.ZLIB):
            raise self._refuse(
                f"compression type {code} disagrees with incompatible feature bit 3",
                "compression_type",
            )
        return CompressionType(code)

    def _backing_name(self, first: Any, data: bytes) -> bytes | None:
        offset, length = first.backing_file_offset, first.backing_file_size
        cluster_size = 1 << first.cluster_bits
        if offset > cluster_size:
            raise self._refuse(f"{offset:#x} is beyond the first cluster", "backing_file_offset")
        if not offset or not length:
            return None
        if length > min(MAX_BACKING_NAME, cluster_size - offset):
            raise self._refuse(f"a name of {length} bytes is too long", "backing_file_size")
        if offset + length > len(data):
            raise self._refuse("lies beyond the end of the file", "backing_file_offset", offset)
        name = data[offset : offset + length]
        if b"\0" in name:
            raise self._refuse(f"{printable(name)!r} has a NUL byte", "backing file name", offset)
        return name

    def _check_tables(self, header: Header) -> None:
        """Check that the tables are aligned, not too large, and inside the file."""
        geometry = header.geometry
        needed = geometry.l1_entries(header.size)
        if header.l1_size * 8 > MAX_L1_BYTES:
            raise self._refuse(f"{header.l1_size} entries are above 32 MiB", "l1_size")
        if header.l1_size < needed:
            raise self._refuse(
                f"{header.l1_size} entries do not cover the disk, which needs {needed}", "l1_size"
            )
        clusters = header.refcount_table_clusters
        if not clusters or clusters * geometry.cluster_size > MAX_REFCOUNT_TABLE_BYTES:
            raise self._refuse(f"{clusters} clusters are not 1 to 8 MiB", "refcount_table_clusters")
        if header.nb_snapshots > MAX_SNAPSHOTS:
            raise self._refuse(f"{header.nb_snapshots} is above 65536", "nb_snapshots")
        self._check_place("l1_table_offset", header.l1_table_offset, header.l1_size * 8, geometry)
        self._check_place(
            "refcount_table_offset",
            header.refcount_table_offset,
            clusters * geometry.cluster_size,
            geometry,
        )
        length = 40 if header.nb_snapshots else 0
        self._check_place("snapshots_offset", header.snapshots_offset, length, geometry)

    def _check_place(self, field: str, offset: int, length: int, geometry: Geometry) -> None:
        if not geometry.is_aligned(offset):
            raise self._refuse(f"{offset:#x} is not on a cluster boundary", field)
        if length and offset < geometry.cluster_size:
            raise self._refuse(f"{offset:#x} lies over the header", field)
        if length and offset + length > self._file.size:
            raise CorruptImageError(
                f"{offset:#x} + {length} bytes is beyond the end of the file, {self._file.size:#x}",
                path=self._file.path,
                field=field,
            )

    def _check_extensions(self, header: Header) -> None:
        found = header.extension(ExtensionType.BACKING_FORMAT)
        if found and len(found.data) > MAX_BACKING_FORMAT:
            raise self._refuse(
                f"a name of {len(found.data)} bytes is too long", "backing format", found.offset
            )
        if header.has_autoclear(Autoclear.RAW_EXTERNAL_DATA):
            if not header.has(Incompatible.EXTERNAL_DATA_FILE):
                raise self._refuse("raw external data without a data file", "autoclear_features")
            if header.backing_file is not None:
                raise self._refuse(
                    "a raw external data file excludes a backing file", "autoclear_features"
                )
        if header.has_autoclear(Autoclear.BITMAPS):
            read_bitmaps_info(header, self._file.path)


def _feature_names(
    extensions: tuple[HeaderExtension, ...], path: str
) -> dict[tuple[int, int], str]:
    """Return the feature name table as {(type, bit): name}."""
    for extension in extensions:
        if extension.type == ExtensionType.FEATURE_NAMES:
            rows = layout.parse(
                layout.FeatureNames,
                extension.data,
                path=path,
                offset=extension.offset,
                name="feature name table",
            )
            return {(r.type, r.bit): printable(r.name.split(b"\0")[0]) for r in rows}
    return {}


def feature_names(header: Header, path: str) -> dict[tuple[int, int], str]:
    """Return the image's own names for its feature bits: {(type, bit): name}.

    The type is 0 for incompatible, 1 for compatible and 2 for autoclear features.
    """
    return _feature_names(header.extensions, path)


def read_bitmaps_info(header: Header, path: str) -> BitmapsInfo | None:
    """Return where the bitmap directory is, or None where there is no such extension.

    Raises:
        FormatError: a count or size is beyond QEMU's limits.
    """
    found = header.extension(ExtensionType.BITMAPS)
    if found is None:
        return None
    fields = layout.parse(
        layout.BitmapsExtension, found.data, path=path, offset=found.offset, name="bitmaps"
    )
    info = BitmapsInfo(fields.nb_bitmaps, fields.directory_size, fields.directory_offset)
    if not 0 < info.count <= MAX_BITMAPS:
        raise FormatError(f"{info.count} bitmaps are not 1 to 65535", path=path, field="bitmaps")
    if info.directory_size > MAX_BITMAP_DIRECTORY:
        raise FormatError(
            f"a directory of {info.directory_size} bytes is too large", path=path, field="bitmaps"
        )
    if not header.geometry.is_aligned(info.directory_offset):
        raise FormatError(
            f"directory offset {info.directory_offset:#x} is not on a cluster boundary",
            path=path,
            field="bitmaps",
        )
    return info
