"""The parts of the page: all but its pictures and lists is there without the script, too."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from string import Template

import numpy as np

from ..attribution.figures import Attribution, FileChange, FileStatus, SourceFacts
from ..delta import ChangeKind
from ..disk.kinds import SpaceKind
from ..errors import printable
from ..inspect import Inspection
from ..units import readable
from . import cells as maps
from .markup import row, section, share_of, size_cell, stack, table
from .tree import Branch
from .words import (
    KIND_NAMES,
    advice_text,
    files_text,
    inner_space,
    partition_detail,
    partition_name,
    resize_text,
    shortened,
    source_name,
    told_shares,
)

PARTITIONS = 256
_NOTES = 100
_LETTERS = {ChangeKind.ADDED: "A", ChangeKind.MODIFIED: "M", ChangeKind.ZEROED: "Z"}


def sections(
    found: Attribution, inspection: Inspection, listed: list[FileChange], tree: list[Branch]
) -> list[tuple[str, str, str]]:
    """Return each section: its id, its title in the navigation, its HTML.

    Args:
        found: whose the changes are.
        inspection: what changed.
        listed: the files that the script lists.
        tree: the directories and files that the script draws.
    """
    parts = [("summary", "", _summary(found, inspection))]
    if found.advice:
        parts.append(("why", "Why", _advice(found)))
    parts.append(("where", "Where and what", _where(found)))
    parts.append(("disk", "Disk map", _map(found)))
    if found.files:
        parts.append(("folders", "Directories", _treemap(found, tree)))
        parts.append(("changed-files", "Files", _files(found, listed)))
    parts.append(("about", "About", _about(found, inspection)))
    return parts


def title(found: Attribution) -> str:
    """Return what the page is called."""
    old, new = found.sources
    return f"{source_name(old, 'base')} → {source_name(new, 'target')}"


def _summary(found: Attribution, inspection: Inspection) -> str:
    lengths = inspection.summary.length
    old, new = (escape(source_name(s, n)) for s, n in zip(found.sources, _SIDES, strict=True))
    keys = "".join(
        f'<li><span class="chip s-{kind.name.lower()}" aria-hidden="true">{_LETTERS[kind]}</span>'
        f"<b>{readable(lengths[kind])}</b> <span>{_MEANS[kind]}</span></li>"
        for kind in ChangeKind
    )
    parts = [(f"s-{kind.name.lower()}", lengths[kind]) for kind in ChangeKind]
    share = share_of(found.changed_bytes, found.size)
    doubts = _doubts(found)
    resized = f"; {text}" if (text := resize_text(inspection.summary)) else ""
    return (
        '<section class="bare" id="summary" aria-labelledby="summary-title">'
        f'<h1 id="summary-title"><b>{old}</b> → <b>{new}</b></h1>'
        f'<p class="lead">{readable(found.changed_bytes)} changed '
        f"<small>of a disk of {readable(found.size)}, {share}{resized}</small></p>"
        f'{doubts}{stack(parts, found.size)}<ul class="keys">{keys}</ul></section>'
    )


def _doubts(found: Attribution) -> str:
    told = [f"<li>{escape(shortened(printable(doubt)))}</li>" for doubt in found.doubts[:_NOTES]]
    if len(found.doubts) > _NOTES:
        told.append(f"<li>and {len(found.doubts) - _NOTES} more</li>")
    return f'<ul class="notes" id="doubts">{"".join(told)}</ul>' if told else ""


_SIDES = ("base", "target")
_MEANS = {
    ChangeKind.ADDED: "added, where there were zeros",
    ChangeKind.MODIFIED: "modified",
    ChangeKind.ZEROED: "zeroed",
}


def _advice(found: Attribution) -> str:
    rows = "".join(
        f'<li><span class="worth">{readable(each.bytes) if each.bytes else ""}</span><div>'
        f"<p>{escape(advice_text(each))}</p>"
        + (f'<p class="remedy">{escape(each.remedy)}</p>' if each.remedy else "")
        + "</div></li>"
        for each in found.advice[:_NOTES]
    )
    return section(
        "why",
        "Why the delta is as large as it is",
        f'<ul class="advice">{rows}</ul>',
        about="Only what was measured. The sizes are changed bytes that each point explains; "
        "they may overlap.",
    )


def _where(found: Attribution) -> str:
    return (
        '<div class="split" id="where">'
        + section("partitions", "Where", _partitions(found))
        + section("kinds", "What the space is", _kinds(found))
        + "</div>"
    )


def _partitions(found: Attribution) -> str:
    shares = told_shares(found)
    by_worth = sorted(range(len(shares)), key=lambda at: -shares[at].changed_bytes)
    shown = sorted(by_worth[:PARTITIONS])
    rows = []
    for share in (shares[at] for at in shown):
        detail = (
            f'<span class="detail">{escape(" · ".join(partition_detail(share.partition)))}</span>'
            if share.partition
            else ""
        )
        parts = [
            (f"k-{kind.name.lower()}", count)
            for kind, count in sorted(share.by_kind.items(), key=lambda item: -item[1])
        ]
        start = share.partition.start if share.partition else found.size
        rows.append(
            row(
                f'<th scope="row" data-value="{start}">'
                f"{escape(shortened(partition_name(share.partition)))}{detail}</th>",
                size_cell(share.changed_bytes),
                f'<td class="wide">{stack(parts, found.changed_bytes, "bar", thick=6)}</td>',
            )
        )
    left = len(shares) - len(shown)
    more = f"; {left} more, with fewer changes, are left out" if left else ""
    return table(
        f"Changed bytes by partition{more}. The colours are those of the kinds of space.",
        (("Partition", ""), ("Changed", "n"), ("Share", "plain")),
        rows,
        row(
            '<th scope="row">All</th>', size_cell(found.changed_bytes), '<td class="wide"></td>'
        ),
    )  # fmt: skip


def _kinds(found: Attribution) -> str:
    zeroed = any(found.zeroed.values())
    rows = [
        row(
            f'<th scope="row"><span class="chip small k-{kind.name.lower()}" aria-hidden="true">'
            f"</span> {KIND_NAMES[kind]}</th>",
            size_cell(count),
            *([size_cell(found.zeroed.get(kind, 0))] if zeroed else []),
            f'<td class="n" data-value="{count}">{share_of(count, found.changed_bytes)}</td>',
        )
        for kind, count in inner_space(found)
    ]
    return table(
        "Changed bytes by what NEW uses the space for",
        (
            ("Kind", ""),
            ("Changed", "n"),
            *([("Zeroed", "n")] if zeroed else []),
            ("Share", "n"),
        ),
        rows,
        row(
            '<th scope="row">All</th>',
            size_cell(found.changed_bytes),
            *([size_cell(sum(found.zeroed.values()))] if zeroed else []),
            f'<td class="n">{share_of(found.changed_bytes, found.changed_bytes)}</td>',
        ),
    )


def _map(found: Attribution) -> str:
    cells = maps.coarser(found.cells, maps.MOST)
    changes = "".join(
        f'<li><span class="chip s-{kind.name.lower()}" aria-hidden="true">{_LETTERS[kind]}</span>'
        f"{kind.name.lower()}</li>"
        for kind in ChangeKind
    )
    present = {SpaceKind(int(kind)) for kind in np.unique(cells.space)} | set(found.by_kind)
    kinds = "".join(
        f'<li><span class="chip small k-{kind.name.lower()}" aria-hidden="true"></span>'
        f"{KIND_NAMES[kind]}</li>"
        for kind in sorted(present)
    )
    return section(
        "disk",
        "The disk",
        _MAP.substitute(changes=changes, kinds=kinds, ranges=_ranges(found)),
        about=f"Each cell is {readable(cells.size)} of the disk; the stronger its colour, the "
        "more of it changed. Lines and numbers mark the partitions.",
    )


_MAP = Template(
    '<div class="tools">'
    '<label>Order<select id="layout"><option value="hilbert">Hilbert curve</option>'
    '<option value="rows">Rows</option></select></label>'
    '<label>Colour<select id="colour"><option value="change">by change</option>'
    '<option value="space">by kind of space</option></select></label><span class="grow"></span>'
    '<div class="label"><span id="zoom-label">Zoom <output id="zoom-level">1&times;</output></span>'
    '<div class="zoom" role="group" aria-labelledby="zoom-label">'
    '<button type="button" id="zoom-out" aria-label="Zoom out">&minus;</button>'
    '<button type="button" id="zoom-in" aria-label="Zoom in">+</button>'
    '<button type="button" id="zoom-reset">Whole disk</button></div></div></div>'
    '<div class="map"><canvas id="map" tabindex="0" role="application" '
    'aria-roledescription="disk map" aria-label="Map of the disk: arrow keys move, plus and minus '
    'zoom, n and p go to the next and the previous change" aria-describedby="cell-now"></canvas>'
    '</div><div class="below"><ul class="keys" id="map-changes">$changes</ul>'
    '<ul class="keys" id="map-kinds" hidden>$kinds</ul></div>'
    '<div class="below"><p class="where" id="cell-now" role="status">'
    '<output id="cell" data-empty="Point at a cell, or choose one, and what is there is said '
    'here."></output></p></div>'
    '<p class="hint"><kbd>arrows</kbd> move · <kbd>n</kbd> <kbd>p</kbd> next, previous change · '
    "<kbd>+</kbd> <kbd>&minus;</kbd> <kbd>0</kbd> zoom · double-click or the wheel zooms, "
    "dragging moves</p>"
    "<noscript><p>The map needs scripts; the table below tells the same, coarser.</p></noscript>"
    "<details><summary>The map as a table</summary>$ranges</details>"
)
_RANGES = 64


def _ranges(found: Attribution) -> str:
    """Return the text alternative of the map: what changed in equal ranges of the disk."""
    cells = maps.coarser(found.cells, _RANGES)
    rows = []
    for index, (changed, kind, length) in enumerate(maps.cell_rows(found, cells)):
        start = index * cells.size
        inside = [
            str(each.number) if each.number else "whole disk"
            for each in found.partitions[:PARTITIONS]
            if not each.gone and each.start < start + length and each.stop > start
        ]
        space = KIND_NAMES[SpaceKind(int(cells.changed_space[index]))]
        rows.append(
            row(
                f'<th scope="row" data-value="{start}">{readable(start)}</th>',
                f"<td>{', '.join(inside[:8]) or 'none'}</td>",
                size_cell(changed),
                f'<td class="n" data-value="{changed}">{share_of(changed, length)}</td>',
                f"<td>{kind.name.lower() if changed else ''}</td>",
                f"<td>{space if changed else ''}</td>",
            )
        )
    return table(
        f"The disk in ranges of {readable(cells.size)}",
        (
            ("From", "n"),
            ("Partition", ""),
            ("Changed", "n"),
            ("Share", "n"),
            ("Mostly", ""),
            ("Space", ""),
        ),
        rows,
    )


def _treemap(found: Attribution, tree: list[Branch]) -> str:
    statuses = _present(found.files)
    keys = "".join(
        f'<li><span class="chip s-{name}" aria-hidden="true">{_STATUS_LETTERS[name]}</span>'
        f"{name}</li>"
        for name in statuses
    )
    listing = table(
        "…",
        (
            ("Name", ""),
            ("What", ""),
            ("Changed", "n"),
            ("Freed", "n"),
            ("Files", "n"),
        ),
        [],
        name="directory",
    )
    small = any(each.kind == "rest" for each in tree)
    left = " Small files of a directory are summed up." if small else ""
    return section(
        "folders",
        "Changed files by directory",
        '<nav aria-label="Directory"><ol class="crumbs" id="crumbs"></ol></nav>'
        '<div class="treemap" id="treemap" role="group" aria-label="Changed files by size; '
        'arrow keys move, Enter opens a directory, Escape goes up"></div>'
        f'<div class="below"><ul class="keys">{keys}</ul></div>'
        "<noscript><p>The treemap needs scripts.</p></noscript>"
        f"<details><summary>This directory as a table</summary>{listing}</details>",
        about=f"{files_text(found)}. "
        f"Areas are changed bytes; choose a directory to go into it.{left}",
    )


_STATUS_LETTERS = {
    "added": "A",
    "modified": "M",
    "deleted": "D",
    "moved": "R",
    "metadata": "T",
    "unchanged": "=",
}


def _present(files: Iterable[FileChange]) -> list[str]:
    present = {file.status for file in files}
    return [status.value for status in FileStatus if status in present]


def _files(found: Attribution, listed: list[FileChange]) -> str:
    many = len({file.partition for file in listed}) > 1
    columns = [
        ("Path", ""),
        ("Status", ""),
        ("Changed", "n"),
        ("Freed", "n"),
        ("Size", "n"),
        *([("Partition", "")] if many else []),
    ]
    statuses = list(FileStatus)
    options = "".join(
        f'<option value="{statuses.index(FileStatus(name))}">{name}</option>'
        for name in _present(listed)
    )
    left = found.files[len(listed) :]
    about = "What was changed, and what was freed by files that are gone or moved."
    if left:
        changed, freed = (
            sum(getattr(f, n) for f in left) for n in ("changed_bytes", "freed_bytes")
        )
        about = (
            f"The {len(listed):,} of {len(found.files):,} files that changed most. Left out are "
            f"{len(left):,} with {readable(changed)} changed and {readable(freed)} freed together; "
            "<code>inspect --json</code> lists them all."
        )
    return section(
        "changed-files",
        "Changed files",
        '<div class="tools"><label class="grow">Path contains<input type="search" id="filter" '
        'autocomplete="off" spellcheck="false"></label><label>Status<select id="status">'
        f'<option value="">all</option>{options}</select></label></div>',
        table("Changed files, most changed first", columns, [], name="files", hidden=True),
        '<div class="below"><output id="shown" for="filter status"></output>'
        '<button type="button" id="more" hidden></button></div>'
        "<noscript><p>The list needs scripts; <code>inspect --full</code> prints it.</p>"
        "</noscript>",
        about=about,
    )


def _about(found: Attribution, inspection: Inspection) -> str:
    notes = "".join(
        f"<li>{escape(shortened(printable(note)))}</li>" for note in found.notes[:_NOTES]
    )
    if len(found.notes) > _NOTES:
        notes += f"<li>and {len(found.notes) - _NOTES} more</li>"
    rows = [
        _source_row(name, source)
        for name, source in zip(("OLD", "NEW"), found.sources, strict=True)
        if source is not None
    ]
    images = (
        table(
            "The two images",
            (
                ("Image", ""),
                ("Format", ""),
                ("Disk", "n"),
                ("File", "n"),
                ("Clusters", "n"),
                ("Plain", "n"),
                ("Compressed", "n"),
            ),
            rows,
            sort=False,
        )
        if rows
        else ""
    )
    unit = readable(inspection.summary.granularity)
    return section(
        "about",
        "About these figures",
        images,
        f'<h3>Notes</h3><ul class="notes">{notes}</ul>' if notes else "",
        about=f"Changes are counted in units of {unit}: a unit of which one byte differs counts "
        "whole. All parts add up to the bytes changed, exactly; what belongs to nobody has a row "
        "of its own.",
    )


def _source_row(name: str, source: SourceFacts) -> str:
    return row(
        f'<th scope="row">{name}<span class="detail">'
        f"{escape(shortened(printable(source.path)))}</span></th>",
        f"<td>{escape(source.format)}</td>",
        size_cell(source.virtual_size),
        size_cell(source.file_size),
        size_cell(source.cluster_size or 0),
        size_cell(source.data_bytes),
        size_cell(source.compressed_bytes),
    )
