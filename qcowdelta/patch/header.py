"""The header of a cluster patch: what it is for, and what it needs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from blake3 import blake3

from .. import declare
from ..errors import CorruptImageError, FormatError, PathName, UnsupportedFeatureError
from ..hostfile import HostFile
from ..units import ceil_div
from . import layout

_FIXED: int = layout.Header.sizeof()
_PREFIX = 16  # magic, version and length

MAGIC_FIELD = "magic"
"""The field that the error about a file names which is no patch at all."""


@dataclass(frozen=True)
class Header:
    """A patch's header.

    Attributes:
        base_size, target_size: virtual sizes, bytes.
        base_digest, target_digest: roots of the hash trees over all of their content.
        segment_bits: a segment covers two to the power of this many bytes of the target.
        segment_count: how many segments are stored, those with a change.
        segments_length: bytes of all segments.
        memory: the most that decoding one segment takes, bytes.
        compatible_features: bits that may be ignored.
        sections: (type, data) of each section.
    """

    base_size: int
    target_size: int
    base_digest: bytes
    target_digest: bytes
    segment_bits: int
    segment_count: int = 0
    segments_length: int = 0
    memory: int = 0
    compatible_features: int = 0
    sections: tuple[tuple[int, bytes], ...] = ()

    @property
    def segment_size(self) -> int:
        """Bytes of the target that a segment covers."""
        return 1 << self.segment_bits

    @property
    def segments(self) -> int:
        """How many segments the target has, stored or not."""
        return ceil_div(self.target_size, self.segment_size)

    @property
    def length(self) -> int:
        """The length of the header in the file, where the first segment begins."""
        sections = sum(8 + len(data) + -len(data) % 8 for _, data in self.sections)
        return _FIXED + sections + layout.DIGEST

    @property
    def creator(self) -> str | None:
        """What the patch says it was made by."""
        for kind, data in self.sections:
            if kind == layout.SectionType.CREATOR:
                return data.decode("utf-8", "replace")
        return None

    def build(self) -> bytes:
        """Return the header as it is stored."""
        fields = {
            "version": layout.VERSION,
            "header_length": self.length,
            "incompatible_features": 0,
            **{name: getattr(self, name) for name in _PLAIN},
        }
        data = layout.Header.build(fields)
        for kind, content in self.sections:
            data += layout.Section.build({"type": kind, "length": len(content), "data": content})
        return bytes(data + blake3(data).digest())

    def finished(self, *, count: int, length: int, memory: int, target_digest: bytes) -> Header:
        """Return the header with what is known when all segments are written."""
        return replace(
            self,
            segment_count=count,
            segments_length=length,
            memory=memory,
            target_digest=target_digest,
        )


_PLAIN = (
    "compatible_features",
    "base_size",
    "target_size",
    "base_digest",
    "target_digest",
    "segment_bits",
    "memory",
    "segment_count",
    "segments_length",
)


def is_patch(file: HostFile) -> bool:
    """Tell whether a file begins as a patch, or as the index of one, does."""
    return _magic(file) == layout.MAGIC or is_sidecar(file)


def is_sidecar(file: HostFile) -> bool:
    """Tell whether a file begins as the index of a patch does."""
    return _magic(file) == layout.SIDECAR_MAGIC


def _magic(file: HostFile) -> bytes:
    length = len(layout.MAGIC)
    return file.read(0, length) if file.size >= length else b""


def read_header(file: HostFile, at: int = 0) -> tuple[Header, bytes]:
    """Read and check the header at an offset of a file.

    Returns:
        The header, and its digest.

    Raises:
        FormatError: it is not a patch's header, or goes beyond a limit.
        UnsupportedFeatureError: it is of a later version, or needs something not known here.
        CorruptImageError: it is damaged.
    """
    magic = len(layout.MAGIC)
    if file.size < at + magic or file.read(at, magic) != layout.MAGIC:
        raise FormatError("is not a cluster patch", path=file.path, offset=at, field=MAGIC_FIELD)
    if file.size < at + _PREFIX:
        raise FormatError(
            "the header is cut off", path=file.path, offset=at + magic, field="header"
        )
    version, length = (int.from_bytes(file.read(at + place, 4), "little") for place in (8, 12))
    fits = _FIXED + layout.DIGEST <= length <= min(layout.MAX_HEADER, file.size - at)
    if version != layout.VERSION:
        if fits and _only_version_is_damaged(file.read(at, length)):
            raise CorruptImageError(
                "the header is damaged", path=file.path, offset=at + 8, field="version"
            )
        raise UnsupportedFeatureError(
            f"is a cluster patch of version {version}, and only {layout.VERSION} is known here",
            path=file.path,
            offset=at + 8,
            field="version",
        )
    if not fits:
        raise FormatError(
            f"a header of {length} bytes is too short, too long or cut off",
            path=file.path,
            offset=at + 12,
            field="header_length",
        )
    data = file.read(at, length)
    body, digest = data[: -layout.DIGEST], data[-layout.DIGEST :]
    if blake3(body).digest() != digest:
        raise CorruptImageError("the header is damaged", path=file.path, offset=at, field="header")
    return _parse(body, file.path, at), digest


def _only_version_is_damaged(data: bytes) -> bool:
    """Tell whether a header of another version has the digest of one of the version known here.

    Else damage there would be told as a reason to get a later release.
    """
    body = data[:8] + layout.VERSION.to_bytes(4, "little") + data[12 : -layout.DIGEST]
    return blake3(body).digest() == data[-layout.DIGEST :]


def _parse(body: bytes, path: PathName, at: int) -> Header:
    fields = declare.parse(layout.Header, body[:_FIXED], path=path, offset=at, name="header.")
    if fields.incompatible_features:
        raise UnsupportedFeatureError(
            f"needs features {fields.incompatible_features:#x}, which are not known here",
            path=path,
            offset=at + 16,
            field="incompatible_features",
        )
    header = Header(**{name: fields[name] for name in _PLAIN}, sections=_sections(body, path, at))
    _check(header, path)
    return header


def _sections(body: bytes, path: PathName, at: int) -> tuple[tuple[int, bytes], ...]:
    sections, position = [], _FIXED
    while position < len(body):
        section = declare.parse(
            layout.Section, body[position:], path=path, offset=at + position, name="section."
        )
        if section.type & layout.CRITICAL:
            raise UnsupportedFeatureError(
                f"has a section of type {section.type:#x}, which must be understood and is not "
                "known here",
                path=path,
                offset=at + position,
                field="section.type",
            )
        sections.append((section.type, section.data))
        position += 8 + section.length + -section.length % 8
    return tuple(sections)


def _check(header: Header, path: PathName) -> None:
    """Hold the fields against the limits and each other."""
    wrong = None
    for name in ("base_size", "target_size"):
        if getattr(header, name) > layout.MAX_SIZE or getattr(header, name) % 512:
            wrong = name
    if not layout.MIN_SEGMENT_BITS <= header.segment_bits <= layout.MAX_SEGMENT_BITS:
        wrong = "segment_bits"
    elif header.segment_count > header.segments:
        wrong = "segment_count"
    if wrong is not None:
        raise FormatError(
            f"{wrong} {getattr(header, wrong)} is outside of what it can be",
            path=path,
            field=wrong,
        )
