"""How the process gives memory back."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT = 8 << 20


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
