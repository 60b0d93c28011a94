"""The commands, gathered."""

from __future__ import annotations

import rich_click as click

from .apply import apply
from .check import check
from .combine import compose, index, invert
from .convert import convert
from .diff import diff
from .info import info
from .inspect import inspect
from .live import live
from .verify import verify


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="qcowdelta")
def cli() -> None:
    """Find the difference between two disk images; write it as a qcow2 overlay or a patch.

    Images are qcow2 (any version, snapshot or backing chain) or raw, and through QEMU's
    programs vmdk, vdi, vhdx, vpc, luks, qed, qcow or parallels.
    """


for command in (
    diff,
    apply,
    convert,
    inspect,
    info,
    check,
    verify,
    compose,
    invert,
    index,
    live,
):
    cli.add_command(command)
