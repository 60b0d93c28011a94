"""``qcowdelta inspect``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from . import options as opt
from . import sinks

if TYPE_CHECKING:
    from ..attribution.figures import Attribution
    from ..delta import ChangeSource
    from ..image import Image
    from ..inspect import Extent, Inspection, WatchedDelta
    from ..patch.container import PatchFile

_SHOWN = 10


@click.command()
@click.argument("old", type=opt.FILE, metavar="OLD|OVERLAY|PATCH")
@click.argument("new", type=opt.FILE, metavar="[NEW|PATCH]", required=False)
@opt.formats
@opt.bitmap
@click.option("--cluster-size", type=opt.Size(), help="What to count in; default: OLD's.")
@click.option("--tree", is_flag=True, help="Show the directories in which files changed.")
@click.option("--full", is_flag=True, help="Show all of it: every file, every partition.")
@click.option("--clusters", is_flag=True, help="List every changed extent.")
@click.option("--html", type=opt.FILE, metavar="FILE", help="Write a page to look around in.")
@click.option("--force", is_flag=True, help="Replace FILE where it exists.")
@click.option(
    "--files/--no-files", default=True, help="Look into partitions and file systems; default: yes."
)
@click.option("--exit-code", is_flag=True, help="Exit 0 where same, 1 where not.")
@opt.opening
@opt.progress
@opt.as_json
@click.option("--json-lines", is_flag=True, help="Print JSON, a record a line.")
def inspect(old: Path, new: Path | None, **options: Any) -> int:
    """Show what changed between OLD and NEW, or what an OVERLAY or a PATCH changes.

    Which partitions, which files, which space, and why it is as much as it is.
    """
    from ..errors import OptionError

    if options["as_json"] and options["json_lines"]:
        raise OptionError("--json and --json-lines exclude each other")
    with contextlib.ExitStack() as stack:
        source = _source(stack, old, new, options)
        write = _page(stack, source, options)
        found = _go_through(source, options)
        _show(found, options)
        write(found)
    summary = found.inspection.summary
    differs = summary.changed_clusters > 0 or summary.resized
    return int(options["exit_code"] and differs)


@dataclass(frozen=True)
class _Source:
    """What is inspected.

    Attributes:
        delta: what tells the changes.
        old, new: the images, or None where a patch is all there is.
        patch: what the patch says of itself, where there is one.
        files: the names of the inputs.
        base_size: the virtual size of what the changes are made to, bytes.
        checked: bytes compared beside the marks of the bitmap that all rests on; None: on none.
    """

    delta: ChangeSource
    old: Image | None
    new: Image | None
    patch: dict[str, Any] | None
    files: tuple[str, ...]
    base_size: int
    checked: int | None = None


@dataclass(frozen=True)
class _Found:
    """What an inspection found."""

    inspection: Inspection
    attribution: Attribution
    patch: dict[str, Any] | None
    opened: dict[str, Any]
    extents: list[Extent] = field(default_factory=list)


def _source(
    stack: contextlib.ExitStack, old: Path, new: Path | None, options: dict[str, Any]
) -> _Source:
    """Open what is inspected."""
    from ..diff import ImageDelta
    from ..errors import OptionError
    from ..units import usable_cpus

    files = tuple(str(path) for path in (old, new) if path is not None)
    patch = _patch(stack, old if new is None else new)
    if patch is None:
        first, second = _open(stack, old, new, options)
    elif options["bitmap"] or options["trust_bitmap"]:
        raise OptionError("--bitmap names a bitmap of NEW, and a patch has none")
    elif new is None:
        if options["cluster_size"] or options["old_format"] or options["old_snapshot"]:
            raise OptionError("a patch alone is told in its own blocks; name OLD before it")
        from ..patch.describe import PatchChanges

        size = patch.header.base_size
        return _Source(PatchChanges(patch), None, None, _described(patch), files, size)
    else:
        from ..patch.open import open_patched

        first = stack.enter_context(opt.open_side(old, options, "old"))
        second = stack.enter_context(open_patched(patch, first, side="old"))
    dirty, checked = opt.open_bitmap(first, second, options) if patch is None else (None, None)
    delta = ImageDelta(
        first,
        second,
        granularity=_granularity(first, second, options),
        # One is left to reading the file systems, which takes about as long as comparing.
        threads=max(1, usable_cpus() - options["files"]),
        dirty=dirty,
        trust=options["trust_bitmap"],
    )
    told = None if patch is None else _described(patch)
    return _Source(delta, first, second, told, files, first.size, checked)


def _described(patch: PatchFile) -> dict[str, Any]:
    from ..patch.describe import describe_patch  # images are inspected without its modules

    return describe_patch(patch.file)


def _patch(stack: contextlib.ExitStack, path: Path) -> PatchFile | None:
    """Open a file if it is a patch."""
    if not opt.is_patch(path, device=True):
        return None
    from ..patch.container import PatchFile

    return stack.enter_context(PatchFile.open(path))


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


def _page(
    stack: contextlib.ExitStack, source: _Source, options: dict[str, Any]
) -> Callable[[_Found], None]:
    """Return what writes the page, if one is wanted; whether it can be written is known first."""
    from ..errors import OptionError
    from ..output import AtomicOutput

    path = options["html"]
    if path is None:
        if options["force"]:
            raise OptionError("--force goes with --html")
        return lambda _: None
    sinks.refuse_input(path, *source.files, *filter(None, (source.old, source.new)))
    output = stack.enter_context(AtomicOutput(path, force=options["force"]))

    def write(found: _Found) -> None:
        from ..report.page import write_page

        write_page(found.attribution, found.inspection, output)

    return write


def _go_through(source: _Source, options: dict[str, Any]) -> _Found:
    """Go through all that changed, once."""
    from ..inspect import WatchedDelta
    from ..report.cells import MOST
    from .show import print_line, progress

    extents: list[Extent] = []
    each: Callable[[Extent], None] | None = None
    if options["clusters"] or options["as_json"]:
        each = extents.append
    if options["json_lines"]:
        from ..report.document import extent

        def each(one: Extent) -> None:
            print_line({"record": "extent", **extent(one)})

    quiet = options["as_json"] or options["json_lines"]
    with progress(opt.wants_progress(options["progress"], quiet), "Comparing") as show:
        watched = WatchedDelta(
            source.delta,
            base_size=source.base_size,
            cells=MOST,
            longest=_SHOWN,
            each=each,
            progress=show,
        )
        attribution = _attributed(source, watched, options)
    if source.checked is not None:
        said = "this " + sinks.rests_on_bitmap(watched.stats.not_dirty, source.checked)
        attribution = replace(attribution, doubts=(said, *attribution.doubts))
    opened = {"old": opt.described(source.old), "new": opt.described(source.new)}
    return _Found(watched.inspection(), attribution, source.patch, opened, extents)


def _attributed(source: _Source, watched: WatchedDelta, options: dict[str, Any]) -> Attribution:
    """Go through the changes, and return whose they are."""
    from ..attribution.attribute import attribute, source_facts
    from ..report.bare import unattributed
    from ..report.cells import MOST

    if options["files"]:
        return attribute(watched, source.old, source.new, cells=MOST)
    for _ in watched.windows():
        pass
    return unattributed(
        watched.inspection(),
        "what is on the disk was not looked into (--no-files)",
        (source_facts(source.old), source_facts(source.new)),
    )


def _show(found: _Found, options: dict[str, Any]) -> None:
    """Print what was found."""
    from . import overview
    from .show import console

    if options["as_json"] or options["json_lines"]:
        _print_json(found, options)
        return
    page = overview.Page.on(console())
    if options["tree"]:
        overview.print_tree(page, found.attribution, found.inspection, full=options["full"])
    elif options["full"]:
        overview.print_full(page, found.attribution, found.inspection, found.patch)
    else:
        overview.print_summary(page, found.attribution, found.inspection, found.patch)
    if options["clusters"]:
        overview.print_extents(page, found.extents, "changed extents")


def _print_json(found: _Found, options: dict[str, Any]) -> None:
    from ..report import document
    from .show import print_document, print_line

    one, whole, more = found.inspection, found.attribution, {"opened": found.opened}
    if found.patch is not None:
        more["patch"] = found.patch
    if options["json_lines"]:
        for record in document.lines(whole, one, directories=options["tree"]):
            print_line({**record, **more} if record["record"] == "summary" else record)
        return
    lists = document.lists(whole, directories=options["tree"])
    extents = map(document.extent, found.extents)
    print_document({**document.head(whole, one), **more}, {**lists, "extents": extents})
