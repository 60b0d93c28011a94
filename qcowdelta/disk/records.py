"""Structures that occur by the thousands: declared once in construct, read in bulk by numpy."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Records: TypeAlias = npt.NDArray[np.void]


@cache
def dtype_of(declaration: Any) -> np.dtype[np.void]:
    """Return the numpy type of a construct ``Struct`` of integers, bytes, arrays and padding.

    A field of bytes becomes an array of ``uint8``.

    Raises:
        TypeError: the declaration has a part of another kind.
    """
    names: list[str] = []
    formats: list[Any] = []
    offsets: list[int] = []
    at = 0
    for part in declaration.subcons:
        size = part.sizeof()
        if part.name is not None:
            names.append(part.name)
            formats.append(_field(part.subcon))
            offsets.append(at)
        at += size
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": at})


def _field(part: Any) -> Any:
    if hasattr(part, "fmtstr"):
        order, code = part.fmtstr
        sign = "u" if code.isupper() else "i"
        return np.dtype(f"{order}{sign}{part.sizeof()}")  # numpy reads "L" as 8 bytes
    if hasattr(part, "count"):
        return (_field(part.subcon), (int(part.count),))
    if hasattr(part, "value"):
        return _field(part.subcon)
    if hasattr(part, "length"):
        return (np.uint8, (int(part.length),))
    raise TypeError(f"{part!r} has no numpy type")


def records(declaration: Any, data: Any) -> Records:
    """Return the whole structures that a buffer holds, one behind the other, without copying."""
    dtype = dtype_of(declaration)
    count = memoryview(data).nbytes // dtype.itemsize
    return np.frombuffer(data, dtype, count)
