"""``qcowdelta check``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from . import options as opt

if TYPE_CHECKING:
    from ..verify import OverlayCheck


@click.command()
@click.argument("overlay", type=opt.FILE)
@opt.secret_of("base")
@opt.opening
@opt.as_json
def check(overlay: Path, as_json: bool, **options: Any) -> int:
    """Check OVERLAY's structure and refcounts, and whether its base is still the same.

    Exit status: 0 all is well, 1 something was found, 2 it could not be checked.
    """
    from ..verify import check_overlay
    from .show import print_json

    found = check_overlay(overlay, policy=opt.policy(options, "base"))
    if as_json:
        print_json(_json(found))
    else:
        _print(found)
    return 0 if found.good else 1


def _json(found: OverlayCheck) -> dict[str, Any]:
    from ..errors import printable

    identity = found.identity
    return {
        "corruptions": found.structure.corruptions,
        "leaks": found.structure.leaks,
        "messages": found.structure.messages,
        "base": None if found.base is None else printable(found.base),
        "base_recorded": identity is not None,
        "base_digest_recorded": identity is not None and identity.digest is not None,
        "base_match": None if found.match is None else found.match.name.lower(),
        "good": found.good,
    }


def _print(found: OverlayCheck) -> None:
    from ..errors import printable
    from ..identity import Match

    structure = found.structure
    for message in structure.messages:
        click.echo(message)
    click.echo(
        "structure: no errors"
        if structure.clean
        else f"structure: {structure.corruptions} corruptions, {structure.leaks} leaked clusters"
    )
    if found.base is None:
        click.echo("base: none")
        return
    texts = {
        None: "not recorded in the overlay, so it cannot be told whether it is the same",
        Match.SAME_CONTENT: "has the content that the overlay was made from",
        Match.SAME_FINGERPRINT: "has the fingerprint that was recorded, and was not modified since",
        Match.TOUCHED: "has the fingerprint that was recorded, but its modification time is "
        "another: it was copied, or written to in place, which only --digest would have told",
        Match.DIFFERENT: "is NOT the one that the overlay was made from",
    }
    click.echo(f"base: {printable(found.base)} {texts[found.match]}")
