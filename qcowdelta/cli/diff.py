"""``qcowdelta diff``."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from . import options as opt

if TYPE_CHECKING:
    from ..delta import DeltaStats
    from ..image import Image
    from ..overlay import OverlayOptions, OverlayReport


@click.command()
@click.argument("old", type=opt.FILE)
@click.argument("new", type=opt.FILE)
@click.option("-o", "--output", type=opt.FILE, required=True, help="The overlay to write.")
@opt.formats
@click.option("--to", type=click.Choice(["overlay"]), help="What to write; default: by suffix.")
@click.option("--cluster-size", type=opt.Size(), help="Default: OLD's, or 64k where OLD is raw.")
@click.option("--subclusters", is_flag=True, help="Extended L2: small changes cost less.")
@click.option(
    "--compress",
    type=click.Choice(["none", "zlib", "zstd"]),
    help="Store data so; default: compressed what NEW has compressed.",
)
@click.option("--backing-name", metavar="NAME", help="Record NAME as the backing file.")
@click.option("--relative", is_flag=True, help="Record OLD relative to the overlay's folder.")
@click.option("--digest", is_flag=True, help="Record a digest of all of OLD's content.")
@click.option("--force", is_flag=True, help="Replace OUT where it exists.")
@opt.opening
@opt.progress
@opt.as_json
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def diff(old: Path, new: Path, output: Path, **options: Any) -> None:
    """Write what turns OLD into NEW as a qcow2 overlay whose backing file is OLD."""
    from ..errors import OptionError, OutputError, printable
    from ..image import same_file

    if options["to"] is None and output.suffix == ".qcpatch":
        raise OptionError("this version writes overlays only, no patches; name a .qcow2 file")
    if options["relative"] and options["backing_name"]:
        raise OptionError("--relative and --backing-name exclude each other")
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        first, second = opt.open_pair(old, new, options)
        stack.enter_context(first)
        stack.enter_context(second)
        if same_file(first, output) or same_file(second, output):
            raise OutputError(f"{printable(output)}: is one of the inputs: not overwritten")
        base = _base(stack, first, output, options)
        how = _overlay_options(first, base, output, options)
        report, stats = _write(first, second, base, output, how, options)
    figures = _figures(first, second, output, how, report, stats, time.monotonic() - begun)
    _show(figures, options)


def _base(stack: contextlib.ExitStack, old: Image, output: Path, options: dict[str, Any]) -> Image:
    """Return the image that will be the backing file: OLD, or a file with its content."""
    from ..base import open_named_base
    from ..errors import OptionError

    given, snapshot = options["backing_name"], options["old_snapshot"]
    if given is None:
        if snapshot is not None:
            raise OptionError(
                "an overlay cannot have an internal snapshot as its backing file; give a file "
                "with the snapshot's content as --backing-name (qemu-img convert -l makes one)"
            )
        return old
    how = opt.policy(options["allow_path"], options["force_share"])
    base = open_named_base(old, given, output, policy=how, required=snapshot is not None)
    return old if base is None else stack.enter_context(base)


def _overlay_options(
    old: Image, base: Image, output: Path, options: dict[str, Any]
) -> OverlayOptions:
    from ..naming import backing_name
    from ..overlay import OverlayOptions
    from ..qcow2.writer import Backing

    size = options["cluster_size"]
    name = backing_name(
        old.path, output, given=options["backing_name"], relative=options["relative"]
    )
    return OverlayOptions(
        Backing(name, base.format),
        cluster_size=size if size is not None else old.cluster_size or 64 << 10,
        subclusters=options["subclusters"],
        compress=options["compress"] or "keep",
    )


def _write(
    old: Image,
    new: Image,
    base: Image,
    output: Path,
    how: OverlayOptions,
    options: dict[str, Any],
) -> tuple[OverlayReport, DeltaStats]:
    from ..diff import ImageDelta
    from ..identity import BaseIdentity
    from ..output import AtomicOutput
    from ..overlay import write_overlay
    from .show import progress

    wanted = opt.wants_progress(options["progress"], options["quiet"])
    delta = ImageDelta(old, new, granularity=how.geometry.unit)
    with AtomicOutput(output, force=options["force"]) as out:
        identity = BaseIdentity.of(base, digest=options["digest"])
        with progress(wanted, "Comparing") as show:
            report = write_overlay(delta, out, how, identity, show)
    return report, delta.stats


def _figures(
    old: Image,
    new: Image,
    output: Path,
    how: OverlayOptions,
    report: OverlayReport,
    stats: DeltaStats,
    seconds: float,
) -> dict[str, Any]:
    """Return what was done, as ``--json`` prints it (README, "Figures")."""
    from ..errors import printable

    summary = report.summary
    return {
        "old": printable(old.path),
        "new": printable(new.path),
        "output": printable(output),
        "backing_file": printable(how.backing.name),
        "backing_format": how.backing.format,
        "virtual_size": summary.size,
        "cluster_size": how.cluster_size,
        "granularity": summary.granularity,
        "changed_clusters": summary.changed_clusters,
        "data_bytes": summary.data_bytes,
        "zero_bytes": summary.zero_bytes,
        "unchanged_bytes": summary.unchanged_bytes,
        "file_size": report.file_size,
        "copied_compressed_clusters": report.copied_clusters,
        "compressed_clusters": report.compressed_clusters,
        "decided": {
            "shared_layer": stats.shared_layer,
            "zero": stats.zero,
            "equal_payload": stats.equal_payload,
            "shared_extent": stats.shared_extent,
            "read": stats.read,
        },
        "bytes_read_old": stats.bytes_read_old,
        "bytes_read_new": stats.bytes_read_new,
        "seconds": round(seconds, 3),
    }


def _show(figures: dict[str, Any], options: dict[str, Any]) -> None:
    from .show import print_json, size

    if options["as_json"]:
        print_json(figures)
        return
    if options["quiet"]:
        return
    names = {
        "shared_layer": "shared layers",
        "zero": "zeros",
        "equal_payload": "equal compressed payload",
        "shared_extent": "shared host extents",
        "read": "reading",
    }
    decided = ", ".join(
        f"{size(count)} by {names[name]}" for name, count in figures["decided"].items() if count
    )
    click.echo(
        f"{figures['output']}: {size(figures['file_size'])} over {figures['backing_file']}; "
        f"{size(figures['data_bytes'])} changed, {size(figures['zero_bytes'])} zeroed, in "
        f"{figures['seconds']:.2f} s; decided: {decided or 'nothing'}"
    )
