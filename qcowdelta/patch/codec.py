"""The codecs of a cluster patch: lz4 blocks, and zstd frames with or without a dictionary."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TypeAlias

import lz4.block
import zstandard

from .layout import MAX_WINDOW, Codec

Buffer: TypeAlias = bytes | bytearray | memoryview

_MIN_DICTIONARY = 8  # zstd takes nothing shorter as a prefix
_MIN_LOG = 10


class CodecError(ValueError):
    """Stored bytes cannot be decoded to what they should be."""


class _PerThread(threading.local):
    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=3)
        self.decompressor = zstandard.ZstdDecompressor()


_local = _PerThread()


@dataclass(frozen=True)
class ZstdLevel:
    """How hard zstd tries.

    Attributes:
        level: zstd's own level.
        hash_log, chain_log: how many entries its tables have at most, as powers of two: zstd's own
            choice would forget most of a dictionary of megabytes. The tree of the higher levels
            takes two entries of the chain table for each position.
    """

    level: int
    hash_log: int
    chain_log: int


def decode(codec: int, stored: Buffer, length: int, dictionary: Buffer = b"") -> Buffer:
    """Return the ``length`` bytes that were stored. No more than these are ever allocated.

    Raises:
        CodecError: they cannot be decoded, or to another length.
    """
    if codec == Codec.STORED:
        data = stored
    elif codec == Codec.LZ4:
        data = _decode_lz4(stored, length)
    elif codec == Codec.ZSTD:
        data = _decode_zstd(stored, length, dictionary)
    else:
        raise CodecError(f"codec {codec} is not known")
    if len(data) != length:
        raise CodecError(f"gives {len(data)} of {length} bytes")
    return data


def _decode_lz4(stored: Buffer, length: int) -> bytes:
    try:
        data: bytes = lz4.block.decompress(stored, uncompressed_size=length)
    except (lz4.block.LZ4BlockError, ValueError, OverflowError) as error:
        raise CodecError("is not an lz4 block") from error
    return data


def _decode_zstd(stored: Buffer, length: int, dictionary: Buffer) -> bytes:
    try:
        frame = zstandard.get_frame_parameters(stored)
        if frame.content_size != length or frame.window_size > MAX_WINDOW or frame.dict_id:
            raise CodecError("is not a zstd frame of the length it should have")
        if len(dictionary):
            prefix = zstandard.ZstdCompressionDict(
                dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT
            )
            decoder = zstandard.ZstdDecompressor(dict_data=prefix)
        else:
            decoder = _local.decompressor
        return decoder.decompress(stored, read_across_frames=False, allow_extra_data=False)
    except (zstandard.ZstdError, ValueError) as error:
        if isinstance(error, CodecError):
            raise
        raise CodecError("is not a zstd frame") from error


def encode_small(data: bytes) -> tuple[Codec, bytes]:
    """Store a table in as few bytes as it takes."""
    packed = _local.compressor.compress(data)
    return (Codec.ZSTD, packed) if len(packed) < len(data) else (Codec.STORED, data)


def encode_lz4(data: Buffer) -> bytes | None:
    """Return an lz4 block; None where that would not be smaller."""
    packed: bytes = lz4.block.compress(data, store_size=False)
    return packed if len(packed) < len(data) else None


def encode_zstd(data: Buffer, dictionary: bytes, level: ZstdLevel) -> bytes | None:
    """Return a zstd frame coded against a dictionary; None where that would not be smaller."""
    log = max(_MIN_LOG, (len(data) + len(dictionary)).bit_length())
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level.level,
        source_size=len(data),
        dict_size=len(dictionary),
        window_log=log,
        hash_log=min(log, level.hash_log),
        chain_log=min(log + 1, level.chain_log),
        write_content_size=True,
        write_checksum=False,
    )
    prefix = None
    if len(dictionary) >= _MIN_DICTIONARY:
        prefix = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    compressor = zstandard.ZstdCompressor(compression_params=parameters, dict_data=prefix)
    packed = compressor.compress(data)
    return packed if len(packed) < len(data) else None
