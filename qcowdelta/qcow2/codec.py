"""Compressed clusters: raw deflate and zstd, one cluster a stream.

A descriptor gives whole sectors, so a payload is followed by bytes that are not its own: every
decoder here stops where the stream ends. A stream that gives less than a cluster is corrupt;
one that gives more is cut, as QEMU does.
"""

from __future__ import annotations

import threading
import zlib
from typing import Any, TypeAlias

import zstandard
from isal import isal_zlib

from .layout import CompressionType

Buffer: TypeAlias = bytes | bytearray | memoryview

# QEMU inflates with a window of 4 KiB, but streams made by others use up to 32 KiB and QEMU
# reads those too (its buffer is the window); what we write must fit the smaller one.
_INFLATE_WBITS, _DEFLATE_WBITS = -15, -12
_ZLIB_LEVEL, _ZLIB_MEM_LEVEL = -1, 9
_ZSTD_LEVEL = 3
_ZLIB = CompressionType.ZLIB  # an enum member takes its time to look up


_IsalError: Any = isal_zlib.error


class CodecError(ValueError):
    """A payload cannot be decoded to a whole cluster."""


class _PerThread(threading.local):
    """zstd contexts, which must not be shared between threads."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
        self.decompressor = zstandard.ZstdDecompressor()


_local = _PerThread()


def inflate(codec: CompressionType, payload: Buffer, size: int) -> bytes:
    """Return the ``size`` bytes of a cluster.

    Raises:
        CodecError: the stream is invalid, cut short, or gives less than ``size`` bytes; or, with
            zstd, a frame that gives more.
    """
    if codec is not _ZLIB:
        return _inflate_zstd(payload, size)
    try:
        data = bytes(isal_zlib.decompressobj(_INFLATE_WBITS).decompress(payload, size))
    except _IsalError:
        data = b""
    # isal is the faster one, zlib the one that QEMU uses: where they differ, zlib decides.
    return data if len(data) == size else _whole(prefix(codec, payload, size), size)


def _whole(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise CodecError(f"gives {len(data)} of {size} bytes")
    return data


def _inflate_zstd(payload: Buffer, size: int) -> bytes:
    """Decode frames until there is a cluster, which must be where the last of them ends."""
    data = b""
    while len(data) < size:
        left = size - len(data)
        try:
            if zstandard.frame_content_size(payload) < 0:  # not stated: it must be all there is
                return data + _whole(_zstd_reader(payload).read(left + 1), left)
            frame, payload = _zstd_frame(payload, left)
        except zstandard.ZstdError as error:
            raise CodecError(str(error)) from error
        data += frame
    return data


def _zstd_frame(payload: Buffer, limit: int) -> tuple[bytes, Buffer]:
    """Decode a frame that states its size; return its content and what follows it."""
    size = zstandard.frame_content_size(payload)
    if size > limit:
        raise CodecError(f"gives {size} bytes where {limit} are wanted")
    frame = _local.decompressor.decompress(payload) if size else b""
    # Decoded in one piece, a frame cannot give more than it states; only then as a stream, which
    # tells where it ends.
    stream = _local.decompressor.decompressobj()
    stream.decompress(payload)
    if not stream.eof:
        raise CodecError("is cut short")
    return frame, stream.unused_data


def _zstd_reader(payload: Buffer) -> zstandard.ZstdDecompressionReader:
    return _local.decompressor.stream_reader(
        payload, read_across_frames=False, read_size=len(payload) or 1
    )


def prefix(codec: CompressionType, payload: Buffer, size: int) -> bytes:
    """Return the first ``size`` bytes of a stream, or fewer where it ends before.

    Raises:
        CodecError: the stream is invalid.
    """
    try:
        if codec is _ZLIB:
            return zlib.decompressobj(_INFLATE_WBITS).decompress(payload, size)
        return _zstd_reader(payload).read(size)
    except (zlib.error, zstandard.ZstdError) as error:
        raise CodecError(str(error)) from error


def payload_length(codec: CompressionType, payload: Buffer, size: int) -> int | None:
    """Return how many bytes of ``payload`` the stream of one whole cluster really takes.

    None where the stream is not one that ends by itself with exactly ``size`` bytes.
    """
    try:
        if codec is _ZLIB:
            stream = isal_zlib.decompressobj(_INFLATE_WBITS)
            data = stream.decompress(payload, size + 1)
            rest: Buffer | None = stream.unused_data if stream.eof else None
        elif zstandard.frame_content_size(payload) == size:
            data, rest = _zstd_frame(payload, size)
        else:
            return None
    except (_IsalError, zstandard.ZstdError, CodecError):
        return None
    return len(payload) - len(rest) if rest is not None and len(data) == size else None


def deflate(codec: CompressionType, cluster: Buffer) -> bytes | None:
    """Return the payload of a cluster, or None where it would not be smaller.

    Streams are as QEMU writes them: raw deflate with a 4 KiB window, or one zstd frame that
    states its content size and has no checksum.
    """
    if codec is _ZLIB:
        stream = zlib.compressobj(_ZLIB_LEVEL, zlib.DEFLATED, _DEFLATE_WBITS, _ZLIB_MEM_LEVEL)
        payload = stream.compress(cluster) + stream.flush()
    else:
        payload = _local.compressor.compress(cluster)
    return payload if len(payload) < len(cluster) else None
