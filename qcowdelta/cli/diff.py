"""``qcowdelta diff``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from . import options as opt
from . import sinks

if TYPE_CHECKING:
    from ..image import Image


@click.command()
@click.argument("old", type=opt.FILE)
@click.argument("new", type=opt.FILE)
@click.option("-o", "--output", type=opt.FILE, required=True, help="What to write.")
@sinks.to
@opt.formats
@sinks.to_overlay
@sinks.to_patch
@opt.opening
@sinks.writing
def diff(old: Path, new: Path, output: Path, **options: Any) -> None:
    """Write what turns OLD into NEW: a qcow2 overlay over OLD, or a portable patch."""
    what = sinks.chosen(output, options)
    with contextlib.ExitStack() as stack:
        first, second = opt.open_pair(old, new, options)
        stack.enter_context(first)
        stack.enter_context(second)
        sinks.refuse_input(output, first, second)
        write = _patch if what == "patch" else _overlay
        figures = write(stack, first, second, output, options)
    sinks.show(figures, options)


def _patch(
    stack: contextlib.ExitStack, old: Image, new: Image, output: Path, options: dict[str, Any]
) -> dict[str, Any]:
    from ..diff import ImageDelta
    from ..patch.blocks import BLOCK

    return sinks.patch(ImageDelta(old, new, granularity=BLOCK), output, options)


def _overlay(
    stack: contextlib.ExitStack, old: Image, new: Image, output: Path, options: dict[str, Any]
) -> dict[str, Any]:
    from ..diff import ImageDelta

    base = sinks.backing(stack, old, output, options, options["old_snapshot"])
    how = sinks.overlay_options(old, base, output, options)
    return sinks.overlay(
        lambda unit: ImageDelta(old, new, granularity=unit), base, output, how, options
    )
