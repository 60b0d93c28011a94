"""``qcowdelta inspect``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from . import options as opt

if TYPE_CHECKING:
    from ..delta import ChangeSource
    from ..image import Image
    from ..inspect import Extent, Inspection
    from ..patch.container import PatchFile

_MAP_ROWS = 8
_SHOWN = 10
_KINDS = {"ADDED": "data", "MODIFIED": "data", "ZEROED": "zero"}


@click.command()
@click.argument("old", type=opt.FILE, metavar="OLD|OVERLAY|PATCH")
@click.argument("new", type=opt.FILE, metavar="[NEW|PATCH]", required=False)
@opt.formats
@opt.bitmap
@click.option("--cluster-size", type=opt.Size(), help="What to count in; default: OLD's.")
@click.option("--clusters", is_flag=True, help="List every changed extent.")
@click.option("--exit-code", is_flag=True, help="Exit 0 where same, 1 where not.")
@opt.opening
@opt.progress
@opt.as_json
def inspect(old: Path, new: Path | None, **options: Any) -> int:
    """Show what changed between OLD and NEW, or what an OVERLAY or a PATCH changes."""
    from ..inspect import inspect_delta
    from .show import console, progress

    out = console()
    extents: list[Extent] = []
    keep = extents.append if options["clusters"] or options["as_json"] else None
    with contextlib.ExitStack() as stack:
        delta, described = _source(stack, old, new, options)
        wanted = opt.wants_progress(options["progress"], options["as_json"])
        with progress(wanted, "Comparing") as show:
            found = inspect_delta(
                delta,
                cells=_MAP_ROWS * (out.width - 2),
                longest=_SHOWN,
                each=keep,
                progress=show,
            )
    if options["as_json"]:
        sides = {"old": getattr(delta, "base", None), "new": getattr(delta, "target", None)}
        opened = {name: opt.described(image) for name, image in sides.items()}
        _print_json(found, extents, described, opened)
    else:
        _print(found, extents if options["clusters"] else None, described, out)
    return int(options["exit_code"] and found.summary.changed_clusters > 0)


def _source(
    stack: contextlib.ExitStack, old: Path, new: Path | None, options: dict[str, Any]
) -> tuple[ChangeSource, dict[str, Any] | None]:
    """Return what tells the changes and, where that is a patch, what this says of itself."""
    from ..diff import ImageDelta
    from ..errors import OptionError
    from ..patch.describe import PatchChanges, describe_patch
    from ..patch.open import open_patched

    patch = _patch(stack, old if new is None else new)
    if patch is None:
        first, second = _open(stack, old, new, options)
    elif options["bitmap"] or options["trust_bitmap"]:
        raise OptionError("--bitmap names a bitmap of NEW, and a patch has none")
    elif new is None:
        if options["cluster_size"] or options["old_format"] or options["old_snapshot"]:
            raise OptionError("a patch alone is told in its own blocks; name OLD before it")
        return PatchChanges(patch), describe_patch(patch.file)
    else:
        first = stack.enter_context(opt.open_side(old, options, "old"))
        second = stack.enter_context(open_patched(patch, first))
    dirty = opt.open_bitmap(first, second, options) if patch is None else None
    delta = ImageDelta(
        first,
        second,
        granularity=_granularity(first, second, options),
        dirty=dirty,
        trust=options["trust_bitmap"],
    )
    return delta, None if patch is None else describe_patch(patch.file)


def _patch(stack: contextlib.ExitStack, path: Path) -> PatchFile | None:
    """Open a file if it is a patch."""
    from ..hostfile import HostFile
    from ..patch.container import PatchFile
    from ..patch.header import is_patch

    file = HostFile.open(path, lock=False, device=True)
    try:
        found = is_patch(file)
    finally:
        file.close()
    return stack.enter_context(PatchFile.open(path)) if found else None


def _open(
    stack: contextlib.ExitStack, old: Path, new: Path | None, options: dict[str, Any]
) -> tuple[Image, Image]:
    from ..errors import OptionError, printable
    from ..image import Image

    if new is not None:
        pair = opt.open_pair(old, new, options)
        for image in pair:
            stack.enter_context(image)
        return pair
    if options["new_format"] or options["new_snapshot"]:
        raise OptionError("--new-format and --new-snapshot need a second image, NEW")
    image = stack.enter_context(opt.open_side(old, options, "old"))
    if len(image.layers) < 2:
        raise OptionError(
            f"{printable(old)} has no backing file, or QEMU reads it as one with "
            "that; name a second image"
        )
    return Image(image.layers[1:]), image


def _granularity(old: Image, new: Image, options: dict[str, Any]) -> int:
    given = options["cluster_size"]
    return int(old.cluster_size or new.cluster_size or 64 << 10) if given is None else int(given)


def _print_json(
    found: Inspection,
    extents: list[Extent],
    patch: dict[str, Any] | None,
    opened: dict[str, Any],
) -> None:
    from .show import print_json

    summary, stats = found.summary, found.stats
    print_json(
        {
            "virtual_size": summary.size,
            "cluster_size": summary.granularity,
            "changed_clusters": summary.changed_clusters,
            "data_bytes": summary.data_bytes,
            "zero_bytes": summary.zero_bytes,
            "unchanged_bytes": summary.unchanged_bytes,
            **{
                kind.name.lower(): {"clusters": summary.count[kind], "bytes": summary.length[kind]}
                for kind in summary.count
            },
            **({} if patch is None else {"patch": patch}),
            "bytes_read_old": stats.bytes_read_old,
            "bytes_read_new": stats.bytes_read_new,
            "opened": opened,
            "extents": [
                {
                    "start": e.start,
                    "length": e.length,
                    "kind": _KINDS[e.kind.name],
                    "change": e.kind.name.lower(),
                }
                for e in extents
            ],
        }
    )


def _print(
    found: Inspection, extents: list[Extent] | None, patch: dict[str, Any] | None, out: Any
) -> None:
    from rich.panel import Panel

    from .show import disk_map, size

    summary = found.summary
    if patch is not None:
        out.print(_patch_table(patch))
        out.print()
    out.print(_table(found))
    title = f"the disk, {size(summary.size)}: a cell is {size(found.cell_size)}"
    legend = "[green]█ added[/] [yellow]█ modified[/] [magenta]█ zeroed[/] [dim]· unchanged[/]"
    lines = "\n".join(disk_map(found, out.width - 2))
    out.print(Panel(lines, title=title, subtitle=legend, padding=0, title_align="left"))
    if summary.changed_clusters:
        shown = found.longest if extents is None else extents
        out.print(_extents(shown, "Longest extents" if extents is None else "Changed extents"))


def _patch_table(patch: dict[str, Any]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    from .info import patch_rows

    grid = Table(box=None, show_header=False, pad_edge=False)
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for name, value in patch_rows(patch):
        grid.add_row(name, escape(value))
    return grid


def _table(found: Inspection) -> Any:
    from rich.table import Table

    from .show import KIND_STYLES, size

    summary = found.summary
    table = Table(title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for name in ("clusters", "bytes", "share of the disk"):
        table.add_column(name, justify="right")
    for kind, count in summary.count.items():
        name = kind.name.lower()
        length = summary.length[kind]
        table.add_row(
            f"[{KIND_STYLES[name]}]{name}[/]", f"{count:,}", size(length), _share(length, summary)
        )
    total = -(-summary.size // summary.granularity)
    rest = summary.unchanged_bytes
    count = total - summary.changed_clusters
    table.add_row("unchanged", f"{count:,}", size(rest), _share(rest, summary))
    table.caption = f"in clusters of {size(summary.granularity)}"
    table.caption_justify = "left"
    return table


def _share(length: int, summary: Any) -> str:
    return f"{100 * length / summary.size:.2f} %" if summary.size else "-"


def _extents(extents: Any, title: str) -> Any:
    from rich.table import Table

    from .show import KIND_STYLES, size

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("guest offset", justify="right")
    table.add_column("length", justify="right")
    table.add_column("size", justify="right")
    table.add_column("change")
    for extent in extents:
        name = extent.kind.name.lower()
        table.add_row(
            f"{extent.start:#x}",
            f"{extent.length}",
            size(extent.length),
            f"[{KIND_STYLES[name]}]{name}[/]",
        )
    return table
