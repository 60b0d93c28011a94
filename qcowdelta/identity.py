"""What a base is: a cheap fingerprint of it, and a digest of all its content.

formats/qcow2-profile.md specifies both, and says what each catches.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from blake3 import blake3

from .delta import Summary
from .errors import FormatError, PathName
from .hashtree import content_digest
from .image import Image
from .qcow2 import layout
from .qcow2.geometry import COPIED
from .qcow2.image import Qcow2Layer

_HAS_DIGEST = 1
_HEAD = 2 << 20
_SAMPLES = 64
_SAMPLE = 4096
_ALL = (1 << 64) - 1
_CONTEXT = b"qcowdelta base fingerprint 1"


class Match(Enum):
    """How a base compares with a recorded identity."""

    SAME_CONTENT = "same content"
    SAME_FINGERPRINT = "same fingerprint"
    TOUCHED = "same fingerprint, but modified later"
    DIFFERENT = "different"


@dataclass(frozen=True)
class BaseIdentity:
    """The identity of a base.

    Attributes:
        size: its virtual size, bytes.
        mtime_ns: when the latest of its files was modified; a hint, since copying changes it.
        fingerprint: 32 bytes over its tables and samples of its content.
        digest: 32 bytes over all of its content, or None where that was not asked for.
        data_bytes, zero_bytes: the figures of the delta that was recorded with it.
    """

    size: int
    mtime_ns: int
    fingerprint: bytes
    digest: bytes | None = None
    data_bytes: int = 0
    zero_bytes: int = 0

    @classmethod
    def of(cls, image: Image, *, digest: bool = False) -> BaseIdentity:
        """Return the identity of an image.

        Args:
            image: the base, with all that lies under it.
            digest: read all of its content too.

        Raises:
            CorruptImageError: something that has to be read cannot be.
        """
        return cls(
            image.size,
            _modified(image),
            fingerprint(image),
            content_digest(image) if digest else None,
        )

    def build(self, summary: Summary) -> bytes:
        """Return the header extension's data, with a delta's figures."""
        data: bytes = layout.DeltaExtension.build(
            {
                "flags": _HAS_DIGEST if self.digest else 0,
                "base_size": self.size,
                "base_mtime_ns": self.mtime_ns,
                "base_fingerprint": self.fingerprint,
                "base_digest": self.digest or bytes(32),
                "data_bytes": summary.data_bytes,
                "zero_bytes": summary.zero_bytes,
            }
        )
        return data

    @classmethod
    def parse(cls, data: bytes, path: PathName, offset: int) -> BaseIdentity:
        """Read the header extension's data.

        Raises:
            FormatError: it is not such an extension, or of a later version.
        """
        fields = layout.parse(
            layout.DeltaExtension, data, path=path, offset=offset, name="delta extension"
        )
        if fields.flags & ~_HAS_DIGEST:
            raise FormatError(
                f"flags {fields.flags:#x} are not known here",
                path=path,
                offset=offset,
                field="delta extension",
            )
        return cls(
            fields.base_size,
            fields.base_mtime_ns,
            fields.base_fingerprint,
            fields.base_digest if fields.flags & _HAS_DIGEST else None,
            fields.data_bytes,
            fields.zero_bytes,
        )

    def match(self, image: Image) -> Match:
        """Compare an image with this identity: by content where that is recorded.

        Raises:
            CorruptImageError: something that has to be read cannot be.
        """
        if image.size != self.size:
            return Match.DIFFERENT
        if self.digest is not None:
            same = content_digest(image) == self.digest
            return Match.SAME_CONTENT if same else Match.DIFFERENT
        if fingerprint(image) != self.fingerprint:
            return Match.DIFFERENT
        touched = _modified(image) != self.mtime_ns
        return Match.TOUCHED if touched else Match.SAME_FINGERPRINT


def _modified(image: Image) -> int:
    files = {file for layer in image.layers for file in (*layer.files, layer.source.file)}
    return max(0, *(file.mtime_ns for file in files))


def fingerprint(image: Image) -> bytes:
    """Return 32 bytes that depend on an image's tables and on samples of its content.

    Tables: of every qcow2 layer, which guest clusters are mapped and where. Samples: the first
    2 MiB of the disk, and 64 blocks of 4 KiB spread evenly over it.
    """
    state = blake3(_CONTEXT)
    state.update(image.size.to_bytes(8, "big"))
    for layer in image.layers:
        state.update(layer.format.encode().ljust(8, b"\0") + layer.size.to_bytes(8, "big"))
        if isinstance(layer, Qcow2Layer):
            _hash_tables(state, layer)
    reader = image.reader()
    state.update(reader.read(0, min(_HEAD, image.size)))
    step = image.size // _SAMPLES
    for index in range(_SAMPLES if step else 0):
        start = index * step - index * step % _SAMPLE
        state.update(reader.read(start, _SAMPLE))
    return state.digest()


def _hash_tables(state: blake3, layer: Qcow2Layer) -> None:
    """Hash the L2 tables, each behind its guest offset, without the COPIED flags.

    That flag says only whether a snapshot shares the cluster, except in an image with a data
    file, where it tells offset 0 from nothing.
    """
    geometry = layer.geometry
    kept = np.uint64(_ALL if layer.source.file is not layer.file else ~COPIED & _ALL)
    for first, table in layer.map.stretches(geometry.clusters(layer.size)):
        table[:, 0] &= kept
        state.update(geometry.guest_of(first).to_bytes(8, "big") + table.astype(">u8").tobytes())
