"""``qcowdelta diff``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from . import options as opt
from . import sinks

if TYPE_CHECKING:
    from ..dropfree import FreeSpace
    from ..image import Image


@click.command()
@click.argument("old", type=opt.FILE)
@click.argument("new", type=opt.FILE)
@click.option("-o", "--output", type=opt.OUTPUT, required=True, help="What to write.")
@sinks.to
@opt.formats
@opt.bitmap
@click.option(
    "--drop-free",
    is_flag=True,
    help="Leave out what differs only where NEW's file systems have free space. The result has "
    "all of NEW's files, but is not block-identical to NEW.",
)
@sinks.to_overlay
@sinks.to_patch
@opt.opening
@sinks.writing
def diff(old: Path, new: Path, output: Path, **options: Any) -> None:
    """Write what turns OLD into NEW: a qcow2 overlay over OLD, or a portable patch."""
    from ..diff import ImageDelta
    from ..errors import printable
    from ..patch.blocks import BLOCK

    what = sinks.chosen(output, options)
    with contextlib.ExitStack() as stack:
        first, second = opt.open_pair(old, new, options)
        stack.enter_context(first)
        stack.enter_context(second)
        sinks.refuse_input(output, first, second)
        dirty, checked = opt.open_bitmap(first, second, options)
        free = _free_space(first, second) if options["drop_free"] else None
        target = second if free is None else free.image

        def delta(unit: int) -> ImageDelta:
            return ImageDelta(
                first, target, granularity=unit, dirty=dirty, trust=options["trust_bitmap"]
            )

        if what == "patch":
            figures = sinks.patch(delta(BLOCK), output, options)
        else:
            base = sinks.backing(stack, first, output, options, options["old_snapshot"])
            how = sinks.overlay_options(first, base, output, options)
            figures = sinks.overlay(delta, base, output, how, options)
    name = options["bitmap"]
    figures["bitmap"] = None if name is None else printable(name)
    figures["bitmap_checked_bytes"] = checked
    if free is not None:
        figures["dropped_free"] = {
            "free_bytes": free.free_bytes,
            "dropped_bytes": free.dropped_bytes,
            "untouched_partitions": [part.number for part in free.untouched],
        }
    sinks.show(figures, options)


def _free_space(old: Image, new: Image) -> FreeSpace:
    from ..dropfree import drop_free  # reading file systems takes many modules

    return drop_free(old, new)
