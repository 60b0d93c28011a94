"""What a delta changes, as one HTML page that needs nothing else.

The page is made of ``page.html``, ``page.css`` and ``page.js`` beside this module. Names from the
image are made printable, then escaped; what the script shows comes to it as JSON in which no
``<`` is left, and goes into the page as text only. A content security policy allows this script
and this style, by their digests, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from importlib import resources
from string import Template
from typing import Any

import numpy as np
import numpy.typing as npt

from ..attribution.figures import Attribution, FileChange, FileStatus, FileType
from ..delta import ChangeKind
from ..disk.kinds import SpaceKind
from ..errors import printable
from ..inspect import Inspection
from ..output import AtomicOutput
from ..version import __version__
from . import cells as maps
from .sections import PARTITIONS, sections, title
from .tree import Branch, branches
from .words import KIND_NAMES, file_path, partition_name, partition_short, shortened

_FILES = 3000
_FILE_BYTES = 500_000
_BRANCHES = 4000
_BRANCH_BYTES = 450_000
_UNLISTED = 0xFFFF


def write_page(found: Attribution, inspection: Inspection, output: AtomicOutput) -> int:
    """Write the page, and return its length in bytes."""
    data = page(found, inspection).encode("utf-8")
    output.write_at(data, 0)
    return len(data)


def page(found: Attribution, inspection: Inspection) -> str:
    """Return the page. It stays under 2 MB, however many files changed."""
    style, script = _template("page.css"), _template("page.js")
    listed = _listed(found.files)
    tree = _bounded(branches(found, _BRANCHES))
    parts = sections(found, inspection, listed, tree)
    return Template(_template("page.html")).substitute(
        policy=_policy(style, script),
        generator=f"qcowdelta {__version__}",
        title=f"{escape(title(found))} &ndash; qcowdelta inspect",
        style=style,
        navigation="".join(
            f'<li><a href="#{name}">{heading}</a></li>' for name, heading, _ in parts if heading
        ),
        content="\n".join(html for _, _, html in parts),
        data=_embedded(_data(found, listed, tree)),
        script=script,
    )


def _template(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()

    return (
        f"default-src 'none'; script-src 'sha256-{digest(script)}'; "
        f"style-src 'sha256-{digest(style)}'; base-uri 'none'; form-action 'none'"
    )


def _embedded(value: Any) -> str:
    """Return JSON that nothing in it can end the element of, whatever names it holds."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# What the script shows


def _data(found: Attribution, listed: list[FileChange], tree: list[Branch]) -> dict[str, Any]:
    statuses, types = list(FileStatus), list(FileType)
    return {
        "size": found.size,
        "changes": [kind.name.lower() for kind in ChangeKind],
        "kinds": [[kind.name.lower(), KIND_NAMES[kind]] for kind in SpaceKind],
        "statuses": [status.value for status in statuses],
        "types": [kind.value for kind in types],
        "partitions": [
            {
                "number": each.number,
                "start": each.start,
                "length": each.length,
                "gone": each.gone,
                "short": partition_short(each),
                "title": partition_name(each),
            }
            for each in found.partitions[:PARTITIONS]
        ],
        "cells": _cells(found, len(listed)),
        "files": {
            "rows": [
                [
                    file_path(file, _LONGEST_PATH),
                    statuses.index(file.status),
                    file.partition,
                    file.size,
                    file.changed_bytes,
                    file.freed_bytes,
                    types.index(file.type),
                    *([] if file.old_path is None else [_old_path(file.old_path)]),
                ]
                for file in listed
            ]
        },
        "tree": [
            [each.parent, each.name, each.changed_bytes, each.freed_bytes, each.count, each.kind]
            for each in tree
        ],
    }


_LONGEST_PATH = 300


def _old_path(path: bytes) -> str:
    return shortened(printable(path), _LONGEST_PATH)


def _cells(found: Attribution, listed: int) -> dict[str, Any]:
    cells = maps.coarser(found.cells, maps.MOST)
    count = cells.changed.shape[1]
    lengths = np.full(count, cells.size, np.float64)
    lengths[-1:] = max(1, found.size - (count - 1) * cells.size)
    changed = cells.changed.sum(axis=0)
    amount = np.ceil(np.minimum(changed / lengths, 1) * 0xFFFF)
    files = np.where(cells.file < 0, 0, np.where(cells.file < listed, cells.file + 1, _UNLISTED))
    return {
        "size": cells.size,
        "count": count,
        "amount": _plane(amount, "<u2"),
        "change": _plane(cells.changed.argmax(axis=0), "u1"),
        "space": _plane(cells.space, "u1"),
        "changed_space": _plane(cells.changed_space, "u1"),
        "file": _plane(files, "<u2"),
    }


def _plane(values: npt.NDArray[Any], kind: str) -> str:
    return base64.b64encode(values.astype(kind).tobytes()).decode()


def _listed(files: Sequence[FileChange]) -> list[FileChange]:
    """Return the files that there is room for."""
    listed, room = [], _FILE_BYTES
    for file in files[:_FILES]:
        names = len(file_path(file, _LONGEST_PATH).encode())
        if file.old_path is not None:
            names += len(_old_path(file.old_path).encode())
        room -= names + 60
        if room < 0:
            break
        listed.append(file)
    return listed


def _bounded(tree: list[Branch]) -> list[Branch]:
    """Return the lines that there is room for: parents come first, so those of the deepest go."""
    room = _BRANCH_BYTES
    for index, branch in enumerate(tree):
        room -= len(branch.name.encode()) + 50
        if room < 0:
            return tree[:index]
    return tree
