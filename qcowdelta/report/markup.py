"""Pieces of HTML. What is given as text has to be escaped already."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ..units import readable
from .words import percent


def section(name: str, title: str, *content: str, about: str = "") -> str:
    """Return a section with its heading and, under that, what it is about."""
    told = f'<p class="about">{about}</p>' if about else ""
    return (
        f'<section id="{name}" aria-labelledby="{name}-title">'
        f'<h2 id="{name}-title">{title}</h2>{told}{"".join(content)}</section>'
    )


def row(*cells: str) -> str:
    """Return a row of a table."""
    return f"<tr>{''.join(cells)}</tr>"


def size_cell(count: int) -> str:
    """Return a table cell with a number of bytes."""
    zero = "" if count else " zero"
    return (
        f'<td class="n{zero}" data-value="{count}">{readable(count) if count else "&ndash;"}</td>'
    )


def share_of(part: int, whole: int) -> str:
    """Return a share."""
    return escape(percent(part, whole))


def stack(parts: list[tuple[str, int]], whole: int, name: str = "stack", thick: int = 14) -> str:
    """Return a bar of parts; a picture of figures that stand beside it."""
    drawn, x = [], 0.0
    for kind, count in parts:
        width = 1000 * count / whole if whole else 0.0
        if count:
            drawn.append(f'<rect class="{kind}" x="{x:.2f}" width="{width:.2f}" height="{thick}"/>')
        x += width
    return (
        f'<svg class="{name}" viewBox="0 0 1000 {thick}" preserveAspectRatio="none" '
        f'aria-hidden="true">{"".join(drawn)}</svg>'
    )


def table(
    caption: str,
    columns: Sequence[tuple[str, str]],
    rows: list[str],
    total: str = "",
    *,
    name: str = "",
    sort: bool = True,
    hidden: bool = False,
) -> str:
    """Return a table that may be wider than the window.

    Args:
        caption: HTML.
        columns: each heading, and ``n`` for numbers, ``plain`` for what cannot be sorted by.
        rows: HTML.
        total: the HTML of a row of sums.
        name: the table's id; the script fills such a table itself.
        sort: whether the script lets rows be sorted.
        hidden: whether the caption is for those alone who do not see that it repeats a heading.
    """
    heads = "".join(
        f'<th scope="col"{" class=n" if kind == "n" else ""}'
        f"{' data-plain' if kind == 'plain' else ''}>{title}</th>"
        for title, kind in columns
    )
    told = f"<caption{' class=sr' if hidden else ''}>{caption}</caption>"
    marks = f' id="{name}"' if name else " data-sort" if sort else ""
    foot = f"<tfoot>{total}</tfoot>" if total else ""
    return (
        f'<div class="scroll"><table{marks}>{told}'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody>{foot}</table></div>"
    )
