"""Copying a disk's content to an output: extents, spans of host files, and clusters compressed."""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

import numpy as np

from .errors import CorruptImageError
from .extents import Extents, Kind, Offsets, cut_at, multiples_inside, runs
from .journal import Journal
from .layer import SourceFile
from .output import AtomicOutput
from .qcow2.codec import deflate
from .qcow2.geometry import Geometry
from .qcow2.layout import CompressionType
from .reader import GuestReader, Readable
from .units import MIB, usable_cpus

TASKS_AHEAD = 32
_COPY_BATCH = 8 * MIB
_READ_BATCH = MIB
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

Span: TypeAlias = tuple[SourceFile, int, int, int]
"""Bytes to copy: the file, the offset in it, the offset in the output, the length."""


class Jobs:
    """Work handed to threads, bounded in number; the first error comes out here.

    Args:
        journal: knows which steps of writing were done before, and learns which are. Steps are
            numbered as they are given, which must not depend on anything but the inputs.
    """

    def __init__(self, journal: Journal | None = None) -> None:
        self.encoders = ThreadPoolExecutor(usable_cpus(), "qcowdelta-encode")
        self._writer = ThreadPoolExecutor(1, "qcowdelta-write")
        self._pending: deque[Future[None]] = deque()
        self._journal = journal
        self._steps = 0
        # Two threads that write would only wait for each other on the file's lock in the kernel.
        self._writing = threading.Lock()

    def __enter__(self) -> Jobs:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            while self._pending and kind is None:
                self._pending.popleft().result()
        finally:
            for pool in (self.encoders, self._writer):
                pool.shutdown(cancel_futures=True)

    def copy(self, target: Readable, rows: Extents, place: Offsets, output: AtomicOutput) -> None:
        """Write the content of extents to the given offsets of the output."""
        files = np.array([source.file.fileno() is not None for source in target.sources])
        plain = (rows["kind"] == Kind.DATA) & files[rows["source"]]
        held, there = rows[plain], place[plain]
        for i, j in by_bytes(held["length"], _COPY_BATCH):
            self._submit(self._writer, _copy_rows, target, held[i:j], there[i:j], output)
        rest, there = rows[~plain], place[~plain]
        cut = cut_at(rest, multiples_inside(rest["start"], rest["length"], _READ_BATCH))
        row = np.searchsorted(rest["start"], cut["start"], side="right") - 1
        there = there[row] + cut["start"] - rest["start"][row]
        first, counts = runs(cut["start"] // _READ_BATCH)
        for i, n in zip(first.tolist(), counts.tolist(), strict=True):
            self._submit(
                self.encoders,
                self._read_and_write,
                target,
                cut[i : i + n],
                there[i : i + n],
                output,
            )

    def copy_spans(self, spans: list[Span], output: AtomicOutput) -> None:
        """Copy spans, which follow each other in the output."""
        for i, j in by_bytes(np.array([length for *_, length in spans]), _COPY_BATCH):
            self._submit(self._writer, _copy_spans, spans[i:j], output)

    def _submit(
        self, pool: ThreadPoolExecutor, function: Callable[..., None], *args: object
    ) -> None:
        step = self._steps
        self._steps += 1
        if self._journal is not None and self._journal.done(step):
            return
        self._pending.append(pool.submit(self._run, step, function, *args))
        while len(self._pending) > TASKS_AHEAD:
            self._pending.popleft().result()

    def _run(self, step: int, function: Callable[..., None], *args: object) -> None:
        function(*args)
        if self._journal is not None:
            self._journal.add(step)

    def _read_and_write(
        self, target: Readable, rows: Extents, place: Offsets, output: AtomicOutput
    ) -> None:
        buffer = memoryview(bytearray(int(rows["length"].sum())))
        GuestReader(target).read_extents(rows, buffer)
        position = 0
        with self._writing:
            for length, offset in zip(rows["length"].tolist(), place.tolist(), strict=True):
                output.write_at(buffer[position : position + length], offset)
                position += length
        begin, end = place.min(), (place + rows["length"]).max()
        output.start_writeback(int(begin), int(end - begin))


def by_bytes(lengths: Offsets, limit: int) -> list[tuple[int, int]]:
    """Group rows, in order, so that each group's bytes are about the limit."""
    if not lengths.size:
        return []
    first, counts = runs((np.cumsum(lengths) - lengths) // limit)
    return list(zip(first.tolist(), (first + counts).tolist(), strict=True))


def encode(
    target: Readable, rows: Extents, clusters: Offsets, geometry: Geometry, codec: CompressionType
) -> list[bytes | None]:
    """Compress clusters that changed whole; None for each that does not become smaller."""
    size = geometry.cluster_size
    start = clusters << geometry.cluster_bits
    rows = cut_at(rows, np.concatenate([start, start + size]))
    rows = rows[np.isin(rows["start"] >> geometry.cluster_bits, clusters)]
    # Rows are what is data: zero sub-clusters, and what lies beyond the disk's end, stay zeros.
    buffer = bytearray(clusters.size * size)
    number = np.searchsorted(clusters, rows["start"] >> geometry.cluster_bits)
    places = number * size + (rows["start"] & (size - 1))
    view = memoryview(buffer)
    GuestReader(target).read_extents(rows, view, places)
    return [deflate(codec, view[i : i + size]) for i in range(0, len(buffer), size)]


def _copy_rows(target: Readable, rows: Extents, place: Offsets, output: AtomicOutput) -> None:
    """Write the content of extents of plain data to the given offsets of the output."""
    for row, offset in zip(rows, place.tolist(), strict=True):
        file = target.sources[row["source"]].file
        _copy_range(file, int(row["host"]), offset, int(row["length"]), output)
    begin, end = place.min(), (place + rows["length"]).max()
    output.start_writeback(int(begin), int(end - begin))


def _copy_spans(spans: list[Span], output: AtomicOutput) -> None:
    for span in spans:
        _copy_range(*span, output)
    first, (_, _, last, length) = spans[0][2], spans[-1]
    output.start_writeback(first, last + length - first)


def _copy_range(
    file: SourceFile, begin: int, place: int, length: int, output: AtomicOutput
) -> None:
    """Copy bytes of a file; in the kernel where it can, which shares blocks where it can."""
    length = min(length, file.size - begin)  # the file's last cluster may be short: zeros
    done = 0
    while done < length:
        rest = begin + done, place + done, length - done
        count = _copy_in_kernel(file, *rest, output)
        if count is None:
            count = _copy_buffer(file, *rest, output)
        if not count:
            raise CorruptImageError(
                "became shorter while it was read", path=file.path, offset=begin + done
            )
        done += count


def _copy_in_kernel(
    file: SourceFile, begin: int, place: int, length: int, output: AtomicOutput
) -> int | None:
    """Copy some of the bytes, and return how many; None where they have to be read."""
    fd = file.fileno()
    if fd is None:
        return None
    try:
        return os.copy_file_range(fd, output.fd, length, begin, place)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise
        return None  # not between these files, or an error of one of them: copying tells which


def _copy_buffer(
    file: SourceFile, begin: int, place: int, length: int, output: AtomicOutput
) -> int:
    buffer = memoryview(bytearray(min(length, MIB)))
    file.read_into(buffer, begin)
    output.write_at(buffer, place)
    return len(buffer)
