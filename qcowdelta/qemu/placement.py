"""Where content lies in a file as it is, so that it need not go through QEMU.

``qemu-img map`` tells it, over the descriptors that the storage daemon has too; of a VHDX, where it
does not, the tables do, once QEMU has found the image good. Reading the file there gives what the
daemon would send, without the two copies on the way.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any, TypeAlias

import numpy as np

from ..errors import QcowDeltaError, QemuError
from ..extents import Offsets
from ..hostfile import HostFile
from ..units import MIB
from .graph import Graph
from .programs import Child, find
from .vhdx import ZEROS, Vhdx

TOLD_BY_QEMU = frozenset({"parallels", "qed", "vdi", "vmdk", "vpc"})
"""Formats that store content as it is, in a way that ``qemu-img map`` can tell."""

TIMEOUT = 20.0
"""Seconds that an answer may take; without one, all of its window goes through the daemon."""

WINDOW = 4096 * MIB
"""How much of the disk is asked about at a time, bytes."""
_WINDOWS = 8
# A run takes about 120 bytes: enough for a window of runs of 64 KiB.
_LONGEST_ANSWER = 16 * MIB

Tell: TypeAlias = Callable[[int], Offsets]
"""Returns the runs of the window that begins there: start, stop, and offset or :data:`ZEROS`."""


def placement_of(graph: Graph) -> Placement | None:
    """Return where the content of an image lies; None: that cannot be told.

    The graph's descriptors have to stay open until the placement is closed.
    """
    file = _only_file(graph)
    if file is None:
        return None
    if graph.format == "vhdx":  # QEMU does not tell
        tables = cache(lambda: Vhdx(file))  # read by the first who asks
        return Placement(file, lambda start: tables().runs(start, start + WINDOW), zeros=True)
    program = find("qemu-img")
    if graph.format not in TOLD_BY_QEMU or program is None:
        return None
    return Placement(file, lambda start: told_runs(json.loads(_map(graph, program, start)), start))


def _only_file(graph: Graph) -> HostFile | None:
    """Return the file in which all content lies; None: it may lie in several, or coded.

    An offset is told without the file that it is of.
    """
    if graph.secret is not None or graph.remotes:
        return None
    # What is in memory is a VMDK's descriptor: it takes the place of the first file.
    content = graph.files[1:] if graph.memory else graph.files
    return content[0] if len(content) == 1 else None


class Placement:
    """Tells where a disk's content lies in a file, a window at a time; for any thread.

    The first window is asked about at once, without waiting for the answer. What cannot be told
    lies nowhere: it is never an error.

    Args:
        file: where the content lies.
        tell: says where; what it says is held against the file's length.
        zeros: whether it says what reads as zeros, which QEMU does not then.
    """

    def __init__(self, file: HostFile, tell: Tell, *, zeros: bool = False) -> None:
        self.file, self.zeros, self._tell = file, zeros, tell
        self._failed = False
        self._lock = threading.Lock()
        self._windows: OrderedDict[int, Future[Offsets]] = OrderedDict()
        self._pool = ThreadPoolExecutor(1, "qcowdelta-placement")
        self._window(0)

    def split(self, start: int, stop: int) -> Iterator[tuple[int, int, int | None]]:
        """Yield parts that tile ``[start, stop)``: begin, end, and where in the file it begins.

        The last is :data:`ZEROS` for what reads as zeros, and None where that is not told.
        """
        position = start
        while position < stop:
            number = position // WINDOW
            end = min(stop, (number + 1) * WINDOW)
            yield from _split(self._window(number).result(), position, end)
            position = end

    def _window(self, number: int) -> Future[Offsets]:
        """Return a window's runs, to come; those asked for last are kept."""
        with self._lock:
            found = self._windows.get(number)
            if found is None:
                found = self._windows[number] = self._pool.submit(self._ask, number * WINDOW)
                while len(self._windows) > _WINDOWS:
                    self._windows.popitem(last=False)
            self._windows.move_to_end(number)
            return found

    def _ask(self, start: int) -> Offsets:
        """Return a window's runs. After a failure it is not tried again: that may take long."""
        if not self._failed:
            try:
                return _inside(self._tell(start), self.file.size)
            except (OSError, QcowDeltaError, ValueError):
                self._failed = True
        return np.empty((0, 3), np.int64)

    def close(self) -> None:
        """Wait for the answer that is under way, if any. Closing twice is allowed."""
        self._pool.shutdown(cancel_futures=True)


def _map(graph: Graph, program: str, start: int) -> bytes:
    """Return what ``qemu-img map`` prints of the window that begins there."""
    answer = os.memfd_create("qcowdelta-map", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        # QEMU cannot make us keep more than that, whatever the image makes it say.
        os.ftruncate(answer, _LONGEST_ANSWER)
        fcntl.fcntl(answer, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
        argv = [program, "map", "--output=json", f"--start-offset={start}"]
        argv += [f"--max-length={WINDOW}", "json:" + json.dumps(graph.node)]
        child = Child(argv, graph.fds, out=answer)
        try:
            status = child.wait(TIMEOUT)
        finally:
            child.close()
        if status != 0:
            raise QemuError(f"{graph.path}: {child.name} does not tell where it lies")
        return os.pread(answer, os.lseek(answer, 0, os.SEEK_CUR), 0)
    finally:
        os.close(answer)


def told_runs(told: Any, start: int) -> Offsets:
    """Return what an answer of ``qemu-img map`` says that lies in the file as it is.

    Args:
        told: the answer, of which nothing is believed.
        start: where the window begins.

    Returns:
        An array of shape (n, 3): start, stop and offset in the file of each run, in order and
        apart.

    Raises:
        ValueError: it is no such answer, or not in order.
    """
    try:
        rows = [
            (entry["start"], entry["start"] + entry["length"], entry["offset"])
            for entry in told
            if entry["data"]
            and not entry["zero"]
            and not entry["depth"]
            and "offset" in entry
            and entry["offset"] >= 0
            and not entry.get("compressed")
        ]
        runs = np.array(rows, np.int64).reshape(-1, 3)
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise ValueError("it is no map") from error
    edges = np.append(start, runs[:, :2])
    if (edges[1:] < edges[:-1]).any():
        raise ValueError("it is out of order")
    return runs


def _inside(runs: Offsets, size: int) -> Offsets:
    """Return the runs as far as they lie inside of a file of that length."""
    stops = np.minimum(runs[:, 1], runs[:, 0] + (size - runs[:, 2]))
    found = np.stack([runs[:, 0], stops, runs[:, 2]], axis=1)
    found[:, 1] = np.where(found[:, 2] == ZEROS, runs[:, 1], stops)
    kept: Offsets = found[(found[:, 2] >= ZEROS) & (found[:, 1] > found[:, 0])]
    return kept


def _split(runs: Offsets, start: int, stop: int) -> Iterator[tuple[int, int, int | None]]:
    first = int(np.searchsorted(runs[:, 1], start, side="right"))
    last = int(np.searchsorted(runs[:, 0], stop, side="left"))
    position = start
    for run_start, run_stop, host in runs[first:last].tolist():
        begin, end = max(run_start, start), min(run_stop, stop)
        if position < begin:
            yield position, begin, None
        yield begin, end, ZEROS if host == ZEROS else host + begin - run_start
        position = end
    if position < stop:
        yield position, stop, None
