"""Options that several commands share, and what they mean to the library."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from ..formats import FORMATS as _FORMATS

if TYPE_CHECKING:
    from ..dirty import DirtyRanges
    from ..image import Image
    from ..patch.container import PatchFile
    from ..policy import OpenPolicy

F = TypeVar("F", bound=Callable[..., Any])

FORMATS = click.Choice(_FORMATS)
FILE = click.Path(path_type=Path)


class Output(click.Path):
    """The name of a file that is written; it appears whole or not at all, so no stream will do."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the path."""
        if str(value) == "-":
            self.fail("the output has to be a file; ./- is one of that name", param, ctx)
        return super().convert(value, param, ctx)


OUTPUT = Output(path_type=Path)
_SIDES = {"old": "OLD", "new": "NEW", "base": "OLD", "target": "NEW"}


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
    click.option(
        "--allow-protocol",
        multiple=True,
        metavar="NAME",
        help="Let backing names begin with NAME too: nbd, https, ssh, json.",
    ),
    click.option("-v", "--verbose", is_flag=True, help="Say how each image is read."),
)


def secret_of(side: str) -> Callable[[F], F]:
    """Return the option that names the file with an image's secret."""
    return click.option(
        f"--{side}-secret-file",
        type=FILE,
        metavar="FILE",
        help=f"{_SIDES[side]} is encrypted; FILE holds its secret.",
    )


formats = together(
    click.option("--old-format", type=FORMATS, help="OLD's format, instead of looking."),
    click.option("--new-format", type=FORMATS, help="NEW's format, instead of looking."),
    click.option("--old-snapshot", metavar="NAME", help="Take OLD as of an internal snapshot."),
    click.option("--new-snapshot", metavar="NAME", help="Take NEW as of an internal snapshot."),
    secret_of("old"),
    secret_of("new"),
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
        secret_of("base"),
    )


progress = click.option(
    "--progress/--no-progress", default=None, help="Show progress; default: on a terminal."
)

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def policy(options: dict[str, Any], side: str | None = None) -> OpenPolicy:
    """Return the policy that the shared options ask for, for one side's image."""
    from ..policy import OpenPolicy
    from ..secret import Secret

    secret = options.get(f"{side}_secret_file")
    return OpenPolicy(
        options["allow_path"],
        options["force_share"],
        options["allow_protocol"],
        None if secret is None else Secret.read(secret),
    )


def open_side(path: Path, options: dict[str, Any], side: str) -> Image:
    """Open one side's image as the shared options say, and tell how it is read if need be.

    Args:
        path: the image.
        options: the command's.
        side: ``old``, ``new``, ``base`` or ``target``, with which the names of its options begin.
    """
    from ..image import open_image

    image = open_image(
        path,
        format=options.get(f"{side}_format"),
        snapshot=options.get(f"{side}_snapshot"),
        policy=policy(options, side),
    )
    tell_how(image, options)
    return image


def tell_how(image: Image, options: dict[str, Any]) -> None:
    """Say how an image is read, where that was asked for, or where a copy had to be made."""
    from ..errors import printable

    for how in image.how:
        copied = how.by == "qemu-img convert" and not options.get("quiet")
        if options["verbose"] or copied:
            by = "read natively" if how.by == "native" else f"read by {how.by}"
            reason = f": {how.reason}" if how.reason else ""
            click.echo(f"qcowdelta: {printable(how.path)}: {how.format}, {by}{reason}", err=True)


def tell_plain(output: Path, options: dict[str, Any], *images: object) -> None:
    """Say that an output has in plain what an image has encrypted."""
    from ..errors import printable

    hows = [how for image in images for how in getattr(image, "how", ())]
    names = dict.fromkeys(printable(how.path) for how in hows if how.encrypted)
    if names and not options.get("quiet"):
        click.echo(
            f"qcowdelta: {printable(output)}: is not encrypted, as {' and '.join(names)} "
            f"{'is' if len(names) == 1 else 'are'}: it holds content in plain",
            err=True,
        )


def described(image: object) -> list[dict[str, Any]]:
    """Return how each file of an image is read, as ``--json`` prints it."""
    from ..errors import printable

    return [
        {
            "file": printable(how.path),
            "format": how.format,
            "by": how.by,
            "reason": how.reason,
            "encrypted": how.encrypted,
        }
        for how in getattr(image, "how", ())
    ]


def open_pair(old: Path, new: Path, options: dict[str, Any]) -> tuple[Image, Image]:
    """Open OLD and NEW as the shared options say."""
    first = open_side(old, options, "old")
    try:
        return first, open_side(new, options, "new")
    except BaseException:
        first.close()
        raise


def open_bitmap(
    old: Image, new: Image, options: dict[str, Any]
) -> tuple[DirtyRanges | None, int | None]:
    """Return the dirty bitmap that the options name, held against OLD; None: they name none.

    With it comes on how many bytes beside its marks that was done.
    """
    from ..dirty import open_bitmap
    from ..errors import OptionError
    from ..spotcheck import spot_check

    name = options["bitmap"]
    if name is None:
        if options["trust_bitmap"]:
            raise OptionError("--trust-bitmap needs --bitmap NAME")
        return None, None
    dirty = open_bitmap(new, name)
    return dirty, spot_check(old, new, dirty)


def open_base(base: Path, options: dict[str, Any]) -> Image:
    """Open the base of a patch as the shared options say."""
    return open_side(base, options, "base")


def is_patch(path: Path, *, device: bool = False) -> bool:
    """Tell whether a file is a patch, by how it begins."""
    from ..hostfile import HostFile
    from ..patch.header import is_patch as begins_so

    file = HostFile.open(path, lock=False, device=device)
    try:
        return begins_so(file)
    finally:
        file.close()


def open_patch(path: Path) -> PatchFile:
    """Open a patch; ``-`` reads it from standard input."""
    from ..errors import OptionError, printable
    from ..patch.container import PatchFile

    if str(path) == "-":
        if sys.stdin is None:
            raise OptionError("there is no standard input to read the patch from")
        return PatchFile.receive(sys.stdin.buffer, "standard input")
    if path.is_fifo():
        raise OptionError(
            f"{printable(path)} is a pipe; give - as PATCH, and the pipe as standard input"
        )
    return PatchFile.open(path)


def wants_progress(asked: bool | None, quiet: bool = False) -> bool:
    """Tell whether to show progress."""
    return not quiet and (sys.stderr.isatty() if asked is None else asked)
