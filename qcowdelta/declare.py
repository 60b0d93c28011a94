"""Reading structures that are declared in construct, with errors that say where."""

from __future__ import annotations

import io
import struct
from functools import cache
from typing import Any

from construct import ConstructError

from .errors import FormatError, PathName


@cache
def compiled(declaration: Any) -> Any:
    """Return a declaration compiled to Python code, for what occurs by the ten thousands."""
    return declaration.compile()


def parse(
    declaration: Any, data: bytes, *, path: PathName, offset: int, name: str, **context: Any
) -> Any:
    """Parse ``data``, found at ``offset`` of ``path``, by a declaration.

    Raises:
        FormatError: it does not have that shape; the message names the field and its offset.
    """
    stream = io.BytesIO(data)
    try:
        return declaration.parse_stream(stream, **context)
    except (ConstructError, struct.error) as error:  # what is compiled raises the latter
        field = (
            (getattr(error, "path", None) or "")
            .removeprefix("(parsing)")
            .replace(" -> ", ".")
            .strip()
        )
        raise FormatError(
            "ends early or has an impossible value",
            path=path,
            offset=offset + stream.tell(),
            field=name + field,
        ) from error
