"""How the process gives memory back, and looks for what it could."""

from __future__ import annotations

import ctypes
import gc

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT = 8 << 20
_NEW_OBJECTS = 50_000


def keep_freed_memory() -> None:
    """Let glibc keep what is freed instead of returning it to the system at once.

    Compressing takes and frees tables of megabytes again and again, whose pages the kernel would
    clear every time; that took a third of the time of making a patch. What is larger, as the tables
    and dictionaries of the best effort are, goes back: kept in pieces, it would add a sixth to the
    peak.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _KEPT)
        mallopt(_TRIM_THRESHOLD, 8 * _KEPT)


def look_for_cycles_seldom() -> None:
    """Let Python look for objects that only refer to each other after many more have been made.

    It looks through all there are, again and again while modules are imported and while lists of
    files grow, and finds next to nothing: what is made here is freed when nobody refers to it. The
    rest does not last, as a command does one thing and ends.
    """
    gc.set_threshold(_NEW_OBJECTS)
