"""``qcowdelta verify``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from . import options as opt

if TYPE_CHECKING:
    from ..patch.verify import Finding

_SHOWN = 10


@click.command()
@click.argument("patch", type=opt.FILE)
@opt.base_options(required=False)
@click.option("--target", type=opt.FILE, metavar="NEW", help="What it should lead to.")
@click.option("--target-format", type=opt.FORMATS, help="NEW's format, instead of looking.")
@opt.secret_of("target")
@opt.opening
@opt.as_json
def verify(patch: Path, **options: Any) -> int:
    """Check PATCH; with OLD or NEW given, tell which of them is wrong, and where.

    Exit status: 0 all is well, 1 something is wrong, 2 it could not be checked.
    """
    from ..patch.verify import verify_patch
    from .show import print_json

    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(opt.open_patch(patch))
        old = new = None
        if options["base"] is not None:
            old = stack.enter_context(opt.open_base(options["base"], options))
        if options["target"] is not None:
            new = stack.enter_context(opt.open_side(options["target"], options, "target"))
        found = verify_patch(opened, old, new)
    names = {"patch": patch, "base": options["base"], "target": options["target"]}
    findings = {name: getattr(found, name) for name in names}
    if options["as_json"]:
        print_json({name: _json(finding) for name, finding in findings.items()})
    else:
        for name, finding in findings.items():
            _print(name, names[name], finding)
    return 0 if found.good else 1


def _json(finding: Finding | None) -> dict[str, Any] | None:
    if finding is None:
        return None
    ranges = [{"start": start, "length": length} for start, length in finding.ranges]
    return {"good": finding.good, "problem": finding.problem or None, "ranges": ranges}


def _print(name: str, path: Path | None, finding: Finding | None) -> None:
    from ..errors import printable

    if finding is None:
        click.echo(f"{name}: not given")
        return
    if finding.good:
        click.echo(f"{name}: {printable(path or '')} is right")
        return
    click.echo(f"{name}: {printable(path or '')} {finding.problem}")
    for start, length in finding.ranges[:_SHOWN]:
        click.echo(f"  guest offset {start:#x}, {length} bytes")
    if len(finding.ranges) > _SHOWN:
        click.echo(f"  and {len(finding.ranges) - _SHOWN} more ranges")
