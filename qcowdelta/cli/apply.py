"""``qcowdelta apply``."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from . import options as opt
from . import sinks

if TYPE_CHECKING:
    from ..fullimage import Format, ImageOptions
    from ..image import Image

_RAW = {".raw", ".img"}


@click.command()
@click.argument("patch", type=opt.FILE)
@opt.base_options(required=True)
@click.option("-o", "--output", type=opt.OUTPUT, required=True, help="The image to write.")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["qcow2", "raw"]),
    help="Its format; default: raw where its name ends in .raw or .img, else qcow2.",
)
@click.option("--cluster-size", type=opt.Size(), help="Default: OLD's, or 64k where OLD is raw.")
@click.option(
    "--compress",
    type=click.Choice(["none", "zlib", "zstd"]),
    help="Store data so; default: what OLD has compressed stays so where it did not change.",
)
@click.option("--resume", is_flag=True, help="Go on with what a killed run left.")
@opt.opening
@sinks.writing
def apply(patch: Path, base: Path, output: Path, **options: Any) -> None:
    """Write the image that PATCH makes of OLD. PATCH may be - for standard input."""
    from ..errors import printable
    from ..patch.apply import apply_patch
    from .show import print_json, progress, size

    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(opt.open_patch(patch))
        old = stack.enter_context(opt.open_base(base, options))
        sinks.refuse_input(output, old, *([] if str(patch) == "-" else [str(patch)]))
        opt.tell_plain(output, options, old)
        how = _image_options(old, output, options)
        with progress(opt.wants_progress(options["progress"], options["quiet"]), "Writing") as show:
            report = apply_patch(
                opened,
                old,
                output,
                how,
                force=options["force"],
                resume=options["resume"],
                progress=show,
            )
    seconds = time.monotonic() - begun
    if options["as_json"]:
        print_json(
            {
                "output": str(output),
                "format": how.format,
                "virtual_size": report.virtual_size,
                "file_size": report.file_size,
                "segments": report.segments,
                "resumed": report.resumed,
                "opened": {"old": opt.described(old)},
                "seconds": round(seconds, 3),
            }
        )
    elif not options["quiet"]:
        went_on = ", going on with an earlier run" if report.resumed else ""
        click.echo(
            f"{printable(output)}: {how.format}, {size(report.virtual_size)}, as the patch says, "
            f"in {seconds:.2f} s{went_on}"
        )


def _image_options(old: Image, output: Path, options: dict[str, Any]) -> ImageOptions:
    from ..errors import OptionError
    from ..fullimage import ImageOptions

    fmt: Format = options["output_format"] or ("raw" if output.suffix in _RAW else "qcow2")
    size = options["cluster_size"]
    if fmt == "raw" and (size is not None or options["compress"]):
        raise OptionError("--cluster-size and --compress do not go with a raw image")
    if size is None:
        size = old.cluster_size or 64 << 10
    return ImageOptions(fmt, size, options["compress"] or "keep")
