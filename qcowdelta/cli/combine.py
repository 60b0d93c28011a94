"""``qcowdelta compose``, ``invert`` and ``index``: patches from patches."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from . import options as opt
from . import sinks

if TYPE_CHECKING:
    from ..patch.container import PatchFile

_OUTPUT = click.option("-o", "--output", type=opt.OUTPUT, required=True, help="The patch to write.")


@click.command()
@click.argument("first", type=opt.FILE)
@click.argument("second", type=opt.FILE)
@opt.base_options(required=False)
@_OUTPUT
@sinks.to_patch
@opt.opening
@sinks.writing
def compose(first: Path, second: Path, output: Path, **options: Any) -> None:
    """Write one patch that does what FIRST and then SECOND do.

    Without --base, this works only where neither touches what the other changes or uses.
    """
    from ..patch.combine import composed

    with contextlib.ExitStack() as stack:
        patches = [stack.enter_context(opt.open_patch(path)) for path in (first, second)]
        if options["base"] is None:
            _merge(patches, output, (str(first), str(second)), options)
            return
        old = stack.enter_context(opt.open_base(options["base"], options))
        sinks.refuse_input(output, old, str(first), str(second))
        delta = composed(patches[0], patches[1], old, output.absolute().parent)
        stack.enter_context(delta.target)
        figures = sinks.patch(delta, output, options)
    sinks.show(figures, options)


def _merge(
    patches: list[PatchFile], output: Path, names: tuple[str, str], options: dict[str, Any]
) -> None:
    from ..errors import OptionError, printable
    from ..output import AtomicOutput
    from ..patch.combine import merge
    from .show import print_json, size

    for name in ("base_format", "base_snapshot", "effort", "threads"):
        if options[name]:
            raise OptionError(f"--{name.replace('_', '-')} needs --base")
    sinks.refuse_input(output, *names)
    with AtomicOutput(output, force=options["force"]) as out:
        length = merge(patches[0], patches[1], out)
    if options["as_json"]:
        print_json({"output": printable(output), "file_size": length})
    elif not options["quiet"]:
        click.echo(f"{printable(output)}: {size(length)}, the segments of both")


@click.command()
@click.argument("patch", type=opt.FILE)
@opt.base_options(required=True)
@_OUTPUT
@sinks.to_patch
@opt.opening
@sinks.writing
def invert(patch: Path, output: Path, **options: Any) -> None:
    """Write the patch that leads back: from PATCH's target to OLD."""
    from ..patch.combine import inverted

    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(opt.open_patch(patch))
        old = stack.enter_context(opt.open_base(options["base"], options))
        sinks.refuse_input(output, old, str(patch))
        delta = inverted(opened, old, output.absolute().parent)
        stack.enter_context(delta.base)
        figures = sinks.patch(delta, output, options)
    sinks.show(figures, options)


@click.command()
@click.argument("patch", type=opt.FILE)
@click.option("-o", "--output", type=opt.OUTPUT, required=True, help="The file to write.")
@click.option("--force", is_flag=True, help="Replace the output where it exists.")
def index(patch: Path, output: Path, force: bool) -> None:
    """Write PATCH's index to a file of its own, for readers that fetch ranges of PATCH."""
    from ..output import AtomicOutput

    with opt.open_patch(patch) as opened:
        sinks.refuse_input(output, str(patch))
        with AtomicOutput(output, force=force) as out:
            out.write_at(opened.sidecar(), 0)
