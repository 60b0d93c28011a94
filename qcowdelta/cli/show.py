"""Showing things to people: sizes, progress, the map of a disk."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from ..delta import Progress
    from ..inspect import Inspection

SHADES = " ░▒▓█"
KIND_STYLES = {"added": "green", "modified": "yellow", "zeroed": "magenta"}


def console() -> Console:
    """Return a console for standard output. Piped, it is wide enough not to break lines."""
    out = Console(highlight=False, soft_wrap=False)
    return out if out.is_terminal else Console(highlight=False, width=max(out.width, 100))


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")


def size(count: float) -> str:
    """Return a number of bytes as people read it: ``1.5 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.3g} {unit}"


@contextlib.contextmanager
def progress(wanted: bool, title: str) -> Iterator[Progress | None]:
    """Show a progress bar on standard error while the block runs, where that is wanted."""
    if not wanted:
        yield None
        return
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


def disk_map(found: Inspection, width: int) -> Iterator[str]:
    """Yield lines of a map of the disk: a cell is a range, its shade the share that changed.

    The colour is that of the kind of change with the most bytes in the range.
    """
    from ..delta import ChangeKind

    names = [kind.name.lower() for kind in ChangeKind]
    changed = found.cells.sum(axis=0)
    most = found.cells.argmax(axis=0).tolist()
    cells = []
    for index, total in enumerate(changed.tolist()):
        length = min(found.cell_size, found.summary.size - index * found.cell_size)
        share = total / length if length > 0 else 0.0
        shade = SHADES[0 if not total else 1 + min(3, int(share * 4))]
        style = KIND_STYLES[names[most[index]]]
        cells.append(f"[{style}]{shade}[/]" if total else "[dim]·[/]")
    for first in range(0, len(cells), width):
        yield "".join(cells[first : first + width])
