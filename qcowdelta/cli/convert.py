"""``qcowdelta convert``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import rich_click as click

from . import options as opt
from . import sinks


@click.command()
@click.argument("delta", type=opt.FILE, metavar="PATCH|OVERLAY")
@opt.base_options(required=False)
@click.option("-o", "--output", type=opt.OUTPUT, required=True, help="What to write.")
@sinks.to
@sinks.to_overlay
@sinks.to_patch
@opt.opening
@sinks.writing
def convert(delta: Path, output: Path, **options: Any) -> None:
    """Turn a patch into an overlay over OLD, or an overlay's top layer into a patch.

    PATCH may be - for standard input.
    """
    from ..errors import OptionError, printable

    what = sinks.chosen(output, options)
    # What comes through a pipe can only be a patch.
    from_patch = str(delta) == "-" or delta.is_fifo() or opt.is_patch(delta)
    if from_patch == (what == "patch"):
        raise OptionError(
            f"{printable(delta)} is a{'' if from_patch else 'n'} {'' if from_patch else 'over'}"
            f"{'patch' if from_patch else 'lay'} already; name the output by what it is to be, or "
            "give --to"
        )
    with contextlib.ExitStack() as stack:
        figures = (_to_overlay if from_patch else _to_patch)(stack, delta, output, options)
    sinks.show(figures, options)


def _to_overlay(
    stack: contextlib.ExitStack, path: Path, output: Path, options: dict[str, Any]
) -> dict[str, Any]:
    from ..diff import ImageDelta
    from ..errors import OptionError
    from ..patch.open import open_patched

    if options["base"] is None:
        raise OptionError("a patch becomes an overlay over its base; give it as --base")
    patch = stack.enter_context(opt.open_patch(path))
    old = stack.enter_context(opt.open_base(options["base"], options))
    sinks.refuse_input(output, old, str(path))
    new = stack.enter_context(open_patched(patch, old, folder=output.absolute().parent))
    base = sinks.backing(stack, old, output, options, options["base_snapshot"])
    how = sinks.overlay_options(old, base, output, options)
    return sinks.overlay(
        lambda unit: ImageDelta(old, new, granularity=unit), base, output, how, options
    )


def _to_patch(
    stack: contextlib.ExitStack, path: Path, output: Path, options: dict[str, Any]
) -> dict[str, Any]:
    from ..diff import ImageDelta
    from ..errors import OptionError, printable
    from ..image import Image, open_image
    from ..patch.blocks import BLOCK

    new = stack.enter_context(open_image(path, policy=opt.policy(options, "base")))
    opt.tell_how(new, options)
    if options["base"] is not None:
        old = stack.enter_context(opt.open_base(options["base"], options))
    elif len(new.layers) < 2:
        raise OptionError(
            f"{printable(path)} has no backing file, so it is no overlay, or QEMU reads it as one "
            "with that; name the backing file as --base"
        )
    else:
        old = Image(new.layers[1:])
    sinks.refuse_input(output, old, new)
    return sinks.patch(ImageDelta(old, new, granularity=BLOCK), output, options)
