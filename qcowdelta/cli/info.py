"""``qcowdelta info``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from . import options as opt

if TYPE_CHECKING:
    from rich.console import Console

_SHOWN = 100
_NAMES = ("name", "id", "node", "device")
_WIDEST = 1 << 16


@click.command()
@click.argument("file", type=opt.FILE)
@click.option(
    "-U", "--force-share", is_flag=True, help="Read an image that is in use all the same."
)
@opt.as_json
def info(file: Path, force_share: bool, as_json: bool) -> None:
    """Show everything that FILE says of itself. No other file is opened."""
    from ..info import describe
    from ..policy import OpenPolicy
    from .show import console, print_json

    opened = OpenPolicy(force_share=force_share).open_given(file)
    try:
        found = describe(opened)
    finally:
        opened.close()
    if as_json:
        print_json(found)
    else:
        _print(found, console())


def _print(found: dict[str, Any], out: Any) -> None:
    from rich.markup import escape
    from rich.table import Table

    grid = Table(box=None, show_header=False, pad_edge=False)
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for name, value in _rows(found):
        grid.add_row(name, escape(value))
    out.print(grid)
    for name in ("features", "sections", "extensions", "snapshots", "bitmaps", "extents"):
        if found.get(name):
            print_listing(out, name, found[name])


def _rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the single values, as name and text."""
    rows = [
        ("file", found["filename"]),
        ("format", found["format"]),
        ("virtual size", _size(found["virtual_size"])),
        ("file size", _size(found["file_size"])),
    ]
    if found["format"].startswith("qcpatch"):
        return rows + patch_rows(found)
    if found["format"] != "qcow2":
        names = ("create_type", "backing_file", "encryption")
        return rows + [(n.replace("_", " "), found[n]) for n in names if found.get(n)]
    header, tables = found["header"], found["tables"]
    rows += [
        ("version", str(header["version"])),
        ("cluster size", _size(found["cluster_size"])),
        ("refcount bits", str(found["refcount_bits"])),
        ("compression", found["compression_type"]),
        ("encryption", found["encryption"]),
        ("header length", f"{header['header_length']}"),
        ("L1 table", f"{header['l1_size']} entries at {header['l1_table_offset']:#x}"),
        ("refcount table", _refcounts(header)),
        ("snapshots", f"{header['nb_snapshots']} at {header['snapshots_offset']:#x}"),
        ("feature bits", _feature_bits(header)),
        ("L2 tables", f"{tables['l2_tables']:,}"),
        ("clusters", _clusters(tables)),
    ]
    for name in ("backing_file", "backing_format", "data_file"):
        if found[name] is not None:
            rows.append((name.replace("_", " "), found[name]))
    return rows + _delta(found["delta"])


def patch_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what a patch says of itself, as name and text."""
    rows = [
        ("base size", _size(found["base_size"])),
        ("base digest", found["base_digest"]),
        ("target digest", found["target_digest"]),
        ("creator", found["creator"] or "not said"),
        ("segments", f"{found['segments']:,} of up to {_size(found['segment_size'])}"),
        ("memory", f"{_size(found['memory'])} to decode a segment, at most"),
    ]
    if "operations" not in found:
        return rows
    names = {
        "copy_base": "copied from the base",
        "copy_target": "copied from the target",
        "data": "coded",
        "zero": "zeros",
    }
    rows.append(("the same", _size(found["same_bytes"])))
    for kind, name in names.items():
        figures = found["operations"].get(kind)
        if figures is not None:
            rows.append((name, f"{_size(figures['bytes'])} by {figures['count']:,} operations"))
    codecs = ", ".join(f"{count:,} {name}" for name, count in found["codecs"].items())
    base, target = (found["dictionary_bytes"].get(name, 0) for name in ("base", "target"))
    return [
        *rows,
        ("coded as", f"{_size(found['payload_bytes'])}; segments: {codecs or 'none'}"),
        ("coded against", f"{_size(base)} of the base, {_size(target)} of the target"),
        ("need others", f"{found['segments_referring']:,} segments"),
        ("all else", _size(found["overhead_bytes"])),
    ]


def _feature_bits(header: dict[str, int]) -> str:
    names = ("incompatible", "compatible", "autoclear")
    return ", ".join(f"{name} {header[f'{name}_features']:#x}" for name in names)


def _refcounts(header: dict[str, int]) -> str:
    return f"{header['refcount_table_clusters']} clusters at {header['refcount_table_offset']:#x}"


def _clusters(tables: dict[str, int]) -> str:
    names = ("data", "compressed", "zero", "unallocated")
    text = ", ".join(f"{tables[name]:,} {name}" for name in names)
    if "data_subclusters" in tables:
        counts = tables["data_subclusters"], tables["zero_subclusters"]
        text += f" (sub-clusters: {counts[0]:,} data, {counts[1]:,} zero)"
    return text


def _delta(delta: dict[str, Any] | None) -> list[tuple[str, str]]:
    if delta is None:
        return []
    changed = f"{_size(delta['data_bytes'])} data, {_size(delta['zero_bytes'])} zeroed"
    rows = [
        ("delta", changed),
        ("base size", _size(delta["base_size"])),
        ("base fingerprint", delta["base_fingerprint"]),
    ]
    if delta["base_digest"]:
        rows.append(("base digest", delta["base_digest"]))
    return rows


def _size(count: int | None) -> str:
    from .show import size

    if count is None:
        return "not told"
    return f"{size(count)} ({count:,} bytes)"


def print_listing(out: Console, name: str, rows: list[dict[str, Any]]) -> None:
    """Print what a list has, and an empty line before it: a table, or where that is too wide, text.

    Names are in one piece either way, so that they can be copied.
    """
    from rich.markup import escape
    from rich.measure import Measurement
    from rich.table import Table

    table = Table(title=name.capitalize(), title_justify="left", box=None, pad_edge=False)
    for column in rows[0]:
        table.add_column(column.replace("_", " "), overflow="fold", no_wrap=column in _NAMES)
    rest = f"and {len(rows) - _SHOWN} more, which --json lists" if len(rows) > _SHOWN else None
    table.caption = rest
    for row in rows[:_SHOWN]:
        table.add_row(*(escape(_cell(column, value)) for column, value in row.items()))
    needed = Measurement.get(out, out.options.update(width=_WIDEST), table).minimum
    out.print()
    if needed <= out.width:
        out.print(table)
        return
    out.print(f"[i]{name.capitalize()}[/i]")
    for row in rows[:_SHOWN]:
        _print_record(out, row)
    if rest is not None:
        out.print(rest)


def _print_record(out: Console, row: dict[str, Any]) -> None:
    from rich.text import Text

    cells = {column: _cell(column, value) for column, value in row.items()}
    title = next(column for column in (*_NAMES, *cells) if column in cells)
    told = ", ".join(
        f"{column.replace('_', ' ')} {text}"
        for column, text in cells.items()
        if text and column != title
    )
    out.print(Text(cells[title], "bold"), soft_wrap=True)
    out.print(Text(f"  {told}"), soft_wrap=True)


def _cell(column: str, value: Any) -> str:
    """Return a value as text; a name of which one would not see where it ends, in quotes."""
    text = _text(value)
    unclear = column in _NAMES and isinstance(value, str) and value != " ".join(value.split())
    return f"'{text}'" if unclear else text


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(value) if isinstance(value, list) else str(value)
