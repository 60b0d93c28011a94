"""``qcowdelta verify``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from . import options as opt

if TYPE_CHECKING:
    from ..patch.verify import Finding, Verification

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

    Where PATCH's header, index, footer or length is damaged, OLD and NEW are not looked at.

    Exit status: 0 all is well, 1 something is wrong, 2 it could not be checked.
    """
    from .show import print_json

    found = _verified(patch, options)
    names = {"patch": patch, "base": options["base"], "target": options["target"]}
    findings = {name: getattr(found, name) for name in names}
    if options["as_json"]:
        print_json({name: _json(finding) for name, finding in findings.items()})
    else:
        for name, finding in findings.items():
            _print(name, names[name], finding)
    return 0 if found.good else 1


def _verified(patch: Path, options: dict[str, Any]) -> Verification:
    from ..errors import ImageError
    from ..patch.verify import damaged_patch, verify_patch

    base, target = options["base"], options["target"]
    with contextlib.ExitStack() as stack:
        try:
            opened = stack.enter_context(opt.open_patch(patch))
        except ImageError as error:
            return damaged_patch(error, base=base is not None, target=target is not None)
        old = new = None
        if base is not None:
            old = stack.enter_context(opt.open_base(base, options))
        if target is not None:
            new = stack.enter_context(opt.open_side(target, options, "target"))
        return verify_patch(opened, old, new)


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
