"""Showing things to people: sizes, progress, JSON."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..units import readable

if TYPE_CHECKING:
    from rich.console import Console

    from ..delta import Progress

size = readable


def console() -> Console:
    """Return a console for standard output. Piped, it is wide enough not to break lines."""
    from rich.console import Console

    out = Console(highlight=False, soft_wrap=False)
    return out if out.is_terminal else Console(highlight=False, width=max(out.width, 100))


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")


def print_line(value: Any) -> None:
    """Print a value as JSON on a line of its own."""
    sys.stdout.write(json.dumps(value, separators=(", ", ": ")) + "\n")


def print_document(head: dict[str, Any], lists: dict[str, Iterator[dict[str, Any]]]) -> None:
    """Print a JSON object: the head's items, and lists with an object a line, as they come."""
    text = json.dumps(head, indent=2)
    sys.stdout.write(text.removesuffix("\n}"))
    for name, rows in lists.items():
        sys.stdout.write(f",\n  {json.dumps(name)}: [")
        empty = True
        for row in rows:
            sys.stdout.write(f"{'' if empty else ','}\n    {json.dumps(row)}")
            empty = False
        sys.stdout.write("]" if empty else "\n  ]")
    sys.stdout.write("\n}\n")


@contextlib.contextmanager
def progress(wanted: bool, title: str) -> Iterator[Progress | None]:
    """Show a progress bar on standard error while the block runs, where that is wanted."""
    if not wanted:
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    err = Console(stderr=True)
    bar = Progress(
        "{task.description}",
        BarColumn(bar_width=None),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
        console=err,
        transient=err.is_terminal,
        expand=True,
    )
    with bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
