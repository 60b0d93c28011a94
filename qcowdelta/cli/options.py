"""Options that several commands share, and what they mean to the library."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

if TYPE_CHECKING:
    from ..dirty import DirtyRanges
    from ..image import Image
    from ..patch.container import PatchFile
    from ..policy import OpenPolicy

F = TypeVar("F", bound=Callable[..., Any])

FORMATS = click.Choice(["qcow2", "raw"])
FILE = click.Path(path_type=Path)


_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


class Size(click.ParamType[int]):
    """A number of bytes: 65536, 64k, 2M, 64KiB."""

    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """Return the number of bytes."""
        if isinstance(value, int):
            return value
        text = str(value).lower().removesuffix("b").removesuffix("i")
        digits = text.rstrip("kmg")
        if not digits.isdecimal() or len(digits) > 18 or text[len(digits) :] not in _UNITS:
            self.fail(f"{value!r} is not a size like 65536, 64k or 2M", param, ctx)
        return int(digits) * _UNITS[text[len(digits) :]]


def together(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Return a decorator that adds several options."""

    def add(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return add


opening = together(
    click.option(
        "--allow-path",
        multiple=True,
        metavar="DIR",
        type=click.Path(path_type=Path),
        help="Let images name backing and data files in DIR too.",
    ),
    click.option(
        "-U",
        "--force-share",
        is_flag=True,
        help="Read images that are in use; what is read may be inconsistent.",
    ),
)

formats = together(
    click.option("--old-format", type=FORMATS, help="OLD's format, instead of looking."),
    click.option("--new-format", type=FORMATS, help="NEW's format, instead of looking."),
    click.option("--old-snapshot", metavar="NAME", help="Take OLD as of an internal snapshot."),
    click.option("--new-snapshot", metavar="NAME", help="Take NEW as of an internal snapshot."),
)

bitmap = together(
    click.option(
        "--bitmap",
        metavar="NAME",
        help="Compare only what NEW's dirty bitmap NAME marks. OLD must be what NEW was when the "
        "bitmap began: that is taken at your word, but for a few samples.",
    ),
    click.option(
        "--trust-bitmap",
        is_flag=True,
        help="Take all that the bitmap marks as changed; compare nothing.",
    ),
)


def base_options(*, required: bool) -> Callable[[F], F]:
    """Return the options that tell the base of a patch."""
    return together(
        click.option(
            "--base", type=FILE, required=required, metavar="OLD", help="What it was made from."
        ),
        click.option("--base-format", type=FORMATS, help="OLD's format, instead of looking."),
        click.option("--base-snapshot", metavar="NAME", help="OLD as of an internal snapshot."),
    )


progress = click.option(
    "--progress/--no-progress", default=None, help="Show progress; default: on a terminal."
)

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def policy(allow_path: tuple[Path, ...], force_share: bool) -> OpenPolicy:
    """Return the policy that the options ask for."""
    from ..policy import OpenPolicy

    return OpenPolicy(allow_path, force_share)


def open_pair(old: Path, new: Path, options: dict[str, Any]) -> tuple[Image, Image]:
    """Open OLD and NEW as the shared options say."""
    from ..image import open_image

    how = policy(options["allow_path"], options["force_share"])
    first = open_image(
        old, format=options["old_format"], snapshot=options["old_snapshot"], policy=how
    )
    try:
        second = open_image(
            new, format=options["new_format"], snapshot=options["new_snapshot"], policy=how
        )
    except BaseException:
        first.close()
        raise
    return first, second


def open_bitmap(old: Image, new: Image, options: dict[str, Any]) -> DirtyRanges | None:
    """Return the dirty bitmap that the options name, held against OLD; None: they name none."""
    from ..dirty import open_bitmap
    from ..errors import OptionError
    from ..spotcheck import spot_check

    name = options["bitmap"]
    if name is None:
        if options["trust_bitmap"]:
            raise OptionError("--trust-bitmap needs --bitmap NAME")
        return None
    dirty = open_bitmap(new, name)
    spot_check(old, new, dirty)
    return dirty


def open_base(base: Path, options: dict[str, Any]) -> Image:
    """Open the base of a patch as the shared options say."""
    from ..image import open_image

    how = policy(options["allow_path"], options["force_share"])
    return open_image(
        base, format=options["base_format"], snapshot=options["base_snapshot"], policy=how
    )


def open_patch(path: Path) -> PatchFile:
    """Open a patch; ``-`` reads it from standard input."""
    from ..errors import OptionError
    from ..patch.container import PatchFile

    if str(path) == "-":
        if sys.stdin is None:
            raise OptionError("there is no standard input to read the patch from")
        return PatchFile.receive(sys.stdin.buffer, "standard input")
    return PatchFile.open(path)


def wants_progress(asked: bool | None, quiet: bool = False) -> bool:
    """Tell whether to show progress."""
    return not quiet and (sys.stderr.isatty() if asked is None else asked)
