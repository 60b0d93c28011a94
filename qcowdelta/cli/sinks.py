"""Writing a delta as an overlay or a patch: the options, and what was done in figures."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from . import options as opt

if TYPE_CHECKING:
    from ..delta import Delta, Summary
    from ..diff import ImageDelta
    from ..image import Image
    from ..overlay import OverlayOptions

_OVERLAY = {
    "cluster_size": "--cluster-size",
    "subclusters": "--subclusters",
    "compress": "--compress",
    "backing_name": "--backing-name",
    "relative": "--relative",
    "digest": "--digest",
}
_PATCH = {"effort": "--effort", "threads": "-T/--threads"}

to = click.option(
    "--to",
    type=click.Choice(["overlay", "patch"]),
    help="What to write; default: a patch where the output's name ends in .qcpatch.",
)

to_overlay = opt.together(
    click.option(
        "--cluster-size", type=opt.Size(), help="Default: OLD's, or 64k where OLD is raw."
    ),
    click.option("--subclusters", is_flag=True, help="Extended L2: small changes cost less."),
    click.option(
        "--compress",
        type=click.Choice(["none", "zlib", "zstd"]),
        help="Store data so; default: compressed what NEW has compressed.",
    ),
    click.option("--backing-name", metavar="NAME", help="Record NAME as the backing file."),
    click.option("--relative", is_flag=True, help="Record OLD relative to the overlay's folder."),
    click.option("--digest", is_flag=True, help="Record a digest of all of OLD's content."),
)

to_patch = opt.together(
    click.option(
        "--effort",
        type=click.Choice(["fast", "default", "best"]),
        help="How much to do for a smaller patch.",
    ),
    click.option(
        "-T",
        "--threads",
        type=click.IntRange(1, 64),
        help="Default: one a processor. The patch does not depend on it.",
    ),
)

writing = opt.together(
    click.option("--force", is_flag=True, help="Replace the output where it exists."),
    opt.progress,
    opt.as_json,
    click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors."),
)


def chosen(output: Path, options: dict[str, Any]) -> str:
    """Return what is to be written, ``overlay`` or ``patch``, and refuse the other's options."""
    from ..errors import OptionError

    what = options.get("to") or ("patch" if output.suffix == ".qcpatch" else "overlay")
    for name, shown in (_OVERLAY if what == "patch" else _PATCH).items():
        if options.get(name):
            raise OptionError(f"{shown} does not go with writing a{'n' * (what != 'patch')} {what}")
    if options.get("relative") and options.get("backing_name"):
        raise OptionError("--relative and --backing-name exclude each other")
    return str(what)


def refuse_existing(output: Path, options: dict[str, Any]) -> None:
    """Refuse an output that exists, before anything is done.

    Raises:
        OutputError: it does, and is not to be replaced.
    """
    from ..output import check_target

    check_target(output, force=options["force"])


def refuse_input(output: Path, *images: Image | str) -> None:
    """Refuse an output that is one of the inputs.

    Raises:
        OutputError: it is.
    """
    import os

    from ..errors import OutputError, printable
    from ..image import same_file

    for image in images:
        if isinstance(image, str):
            there = image != "-" and os.path.exists(output)
            same = there and os.path.samefile(image, output)
        else:
            same = same_file(image, output)
        if same:
            raise OutputError(f"{printable(output)}: is one of the inputs: not overwritten")


def backing(
    stack: contextlib.ExitStack,
    old: Image,
    output: Path,
    options: dict[str, Any],
    snapshot: str | None,
) -> Image:
    """Return the image that will be the backing file: OLD, or a file with its content."""
    from ..base import open_named_base
    from ..errors import OptionError

    given = options["backing_name"]
    if given is None:
        if snapshot is not None:
            raise OptionError(
                "an overlay cannot have an internal snapshot as its backing file; give a file "
                "with the snapshot's content as --backing-name (qemu-img convert -l makes one)"
            )
        return old
    how = opt.policy(options, "old" if "old_secret_file" in options else "base")
    base = open_named_base(old, given, output, policy=how, required=snapshot is not None)
    return old if base is None else stack.enter_context(base)


def overlay_options(
    old: Image, base: Image, output: Path, options: dict[str, Any]
) -> OverlayOptions:
    """Return how an overlay is written, as the options say."""
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


def overlay(
    delta: Callable[[int], ImageDelta],
    base: Image,
    output: Path,
    how: OverlayOptions,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Write an overlay, and return what was done, as ``--json`` prints it (README, "Figures").

    Args:
        delta: gives the delta in steps of so many bytes.
        base: what will be the backing file.
        output: where to.
        how: how.
        options: the command's.
    """
    from ..errors import printable
    from ..identity import BaseIdentity
    from ..output import AtomicOutput
    from ..overlay import write_overlay
    from .show import progress

    begun = time.monotonic()
    wanted = opt.wants_progress(options["progress"], options["quiet"])
    found = delta(how.geometry.unit)
    opt.tell_plain(output, options, found.base, found.target)
    with AtomicOutput(output, force=options["force"]) as out:
        identity = BaseIdentity.of(base, digest=options["digest"])
        with progress(wanted, "Comparing") as show:
            report = write_overlay(found, out, how, identity, show)
    return {
        **_names(found, output),
        "backing_file": printable(how.backing.name),
        "backing_format": how.backing.format,
        **_summary(report.summary),
        "cluster_size": how.cluster_size,
        "file_size": report.file_size,
        "copied_compressed_clusters": report.copied_clusters,
        "compressed_clusters": report.compressed_clusters,
        **_found(found),
        "seconds": round(time.monotonic() - begun, 3),
    }


def patch(delta: Delta, output: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Write a patch, and return what was done, as ``--json`` prints it (README, "Figures")."""
    from ..output import AtomicOutput
    from ..patch.write import PatchOptions, write_patch
    from .show import progress

    begun = time.monotonic()
    wanted = opt.wants_progress(options["progress"], options["quiet"])
    opt.tell_plain(output, options, delta.base, delta.target)
    how = PatchOptions(options["effort"] or "default", options["threads"])
    with (
        AtomicOutput(output, force=options["force"]) as out,
        progress(wanted, "Comparing") as show,
    ):
        report = write_patch(delta, out, how, show)
    return {
        **_names(delta, output),
        "effort": how.effort,
        **_summary(report.summary),
        "file_size": report.file_size,
        "segments": report.segments,
        "operations": dict(report.operations),
        "payload_bytes": report.stored,
        **_found(delta),
        "seconds": round(time.monotonic() - begun, 3),
    }


def _names(delta: Delta, output: Path) -> dict[str, Any]:
    from ..errors import printable

    target = getattr(delta.target, "path", "")
    return {
        "old": printable(delta.base.path),
        "new": printable(target),
        "output": printable(output),
        "opened": {"old": opt.described(delta.base), "new": opt.described(delta.target)},
    }


def _summary(summary: Summary) -> dict[str, Any]:
    return {
        "virtual_size": summary.size,
        "granularity": summary.granularity,
        "changed_clusters": summary.changed_clusters,
        "data_bytes": summary.data_bytes,
        "zero_bytes": summary.zero_bytes,
        "unchanged_bytes": summary.unchanged_bytes,
    }


def _found(delta: Delta) -> dict[str, Any]:
    stats = delta.stats
    return {
        "decided": {
            "shared_layer": stats.shared_layer,
            "zero": stats.zero,
            "equal_payload": stats.equal_payload,
            "shared_extent": stats.shared_extent,
            "told": stats.told,
            "not_dirty": stats.not_dirty,
            "read": stats.read,
        },
        "bytes_read_old": stats.bytes_read_old,
        "bytes_read_new": stats.bytes_read_new,
    }


def show(figures: dict[str, Any], options: dict[str, Any]) -> None:
    """Print what was done."""
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
        "told": "trust in the bitmap"
        if figures.get("bitmap_checked_bytes") is not None
        else "the patch",
        "not_dirty": "the bitmap",
        "read": "reading",
    }
    decided = ", ".join(
        f"{size(count)} by {names[name]}" for name, count in figures["decided"].items() if count
    )
    over = f"over {figures['backing_file']}" if "backing_file" in figures else _sources(figures)
    click.echo(
        f"{figures['output']}: {size(figures['file_size'])} {over}; "
        f"{size(figures['data_bytes'])} changed, {size(figures['zero_bytes'])} zeroed, in "
        f"{figures['seconds']:.2f} s; decided: {decided or 'nothing'}"
    )
    if figures.get("bitmap_checked_bytes") is not None:
        unmarked, checked = figures["decided"]["not_dirty"], figures["bitmap_checked_bytes"]
        click.echo(f"{figures['output']}: {rests_on_bitmap(unmarked, checked)}")
    if "dropped_free" in figures:
        _show_dropped(figures["output"], figures["dropped_free"])


def rests_on_bitmap(unmarked: int, checked: int) -> str:
    """Return what is to be said of a result that a bitmap's marks decided.

    Args:
        unmarked: how many bytes it does not mark.
        checked: how many of these were compared all the same.
    """
    from .show import size

    return (
        f"rests on the bitmap having missed nothing: of {size(unmarked)} that it does not mark, "
        f"{size(checked)} were compared as samples"
    )


def _show_dropped(output: str, dropped: dict[str, Any]) -> None:
    from .show import size

    click.echo(
        f"{output}: is not block-identical to NEW: {size(dropped['dropped_bytes'])} that differ in "
        "free space were left out; every file is NEW's"
    )
    if dropped["untouched_partitions"]:
        numbers = ", ".join(map(str, dropped["untouched_partitions"]))
        click.echo(f"{output}: as in NEW, since nothing known was found in it: partition {numbers}")


def _sources(figures: dict[str, Any]) -> str:
    from .show import size

    found = figures["operations"]
    copied = found.get("copy_base", 0) + found.get("copy_target", 0)
    return f"for {figures['old']} ({size(copied)} copied, {size(found.get('data', 0))} coded)"
