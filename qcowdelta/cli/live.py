"""``qcowdelta live``."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import rich_click as click

from . import options as opt
from . import sinks

if TYPE_CHECKING:
    from rich.console import Console

    from ..image import Image
    from ..live.machine import Machine
    from ..live.view import DiskView, ViewOptions

Monitor: TypeAlias = tuple[Path | None, float]
"""The monitor's socket, and how long a command may take, s."""

_ENDING = (signal.SIGTERM, signal.SIGHUP)

device = click.option(
    "--device",
    required=True,
    metavar="ID",
    help="The disk, by the id, name, QOM path or node of its device.",
)


_QMP = "The unix socket of the VM's QMP monitor."
_TIMEOUT = "How long each QMP command may take, in seconds; default: 10."
_SECONDS = click.FloatRange(0.1, 3600)


@click.group()
@click.option("--qmp", type=opt.FILE, metavar="SOCKET", help=_QMP)
@click.option("--timeout", type=_SECONDS, default=10, help=_TIMEOUT)
@click.pass_context
def live(context: click.RichContext, qmp: Path | None, timeout: float) -> None:
    """Look at a running VM, and take a delta of a disk while the guest goes on."""
    context.obj = (qmp, timeout)


def _monitor(command: opt.F) -> opt.F:
    """Let a command have the options of the monitor too: they may come before it or after it."""

    def take(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value is not None:
            qmp, timeout = context.obj
            context.obj = (value, timeout) if parameter.name == "qmp" else (qmp, value)

    shared: dict[str, Any] = {"expose_value": False, "callback": take}
    command = click.option("--timeout", type=_SECONDS, help=_TIMEOUT, **shared)(command)
    return click.option("--qmp", type=opt.FILE, metavar="SOCKET", help=_QMP, **shared)(command)


@contextlib.contextmanager
def _machine(monitor: Monitor) -> Iterator[Machine]:
    """Talk to the VM; whatever would end the program ends the talk in order."""
    from ..live.machine import Machine
    from ..qemu.qmp import QmpSession

    path, timeout = monitor
    if path is None:
        raise click.UsageError("give the VM's monitor: qcowdelta live --qmp SOCKET …")
    with _interruptible(), QmpSession(path, timeout=timeout) as session:
        yield Machine(session)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let the signals that end programs interrupt this one as Ctrl-C does."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    # What was to be ignored, as under nohup, stays so.
    heard = [number for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@live.command()
@_monitor
@opt.as_json
@click.pass_obj
def status(monitor: Monitor, /, as_json: bool) -> None:
    """Show the VM's disks, nodes and bitmaps, and what a killed run left behind."""
    from ..live.status import describe_machine
    from .show import console, print_json

    with _machine(monitor) as machine:
        found = describe_machine(machine)
    if as_json:
        print_json(found)
    else:
        _print(found, console())


def _print(found: dict[str, Any], out: Console) -> None:
    from .info import print_listing

    methods = ", ".join(found["methods"]) or "none"
    out.print(f"QEMU {found['qemu']}, {found['status']}; live diff by: {methods}", markup=False)
    for name in ("disks", "nodes", "bitmaps", "exports", "jobs", "left_behind"):
        if found[name]:
            print_listing(out, name.replace("_", " "), found[name])
    if found["left_behind"]:
        out.print()
        out.print(
            "a qcowdelta is at work in this VM"
            if found["at_work"]
            else "a qcowdelta was killed: undo what it left by 'qcowdelta live cleanup'"
        )


@live.command()
@_monitor
@device
@click.option("--name", metavar="NAME", help="What to call it; default: the time.")
@opt.as_json
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@click.pass_obj
def checkpoint(
    monitor: Monitor, /, device: str, name: str | None, as_json: bool, quiet: bool
) -> None:
    """Begin to record what the guest writes, for 'live diff --since'.

    The delta will be over the disk's content as of now, which has to be had otherwise: 'live diff
    --checkpoint NAME' takes it, and begins to record at that very moment.
    """
    from dataclasses import asdict

    from ..errors import printable
    from ..live.checkpoint import start_checkpoint
    from .show import print_json

    with _machine(monitor) as machine:
        bitmap = start_checkpoint(machine, device, name)
    if as_json:
        print_json({"checkpoint": bitmap.name, "device": device, **asdict(bitmap)})
    elif not quiet:
        kept = "kept when the VM ends" if bitmap.persistent else "lost when the VM ends"
        click.echo(f"checkpoint {printable(bitmap.name)} of {printable(device)}, {kept}")


@live.command()
@_monitor
@click.option("--dry-run", is_flag=True, help="Only tell what would be done.")
@click.option("--checkpoints", is_flag=True, help="Remove all checkpoints too.")
@click.option("--checkpoint", metavar="NAME", help="Remove this checkpoint too.")
@click.option("--force", is_flag=True, help="Even while the run seems to be at work.")
@opt.as_json
@click.pass_obj
def cleanup(
    monitor: Monitor,
    /,
    dry_run: bool,
    checkpoints: bool,
    checkpoint: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Undo what a killed run left in the VM. Nothing else is touched."""
    from ..errors import printable
    from ..live.cleanup import clean_up
    from .show import print_json

    with _machine(monitor) as machine:
        found, removed = clean_up(machine, checkpoint or checkpoints, dry_run=dry_run, force=force)
    shown = [{"kind": each.kind, "name": printable(each.name)} for each in found]
    names = [printable(bitmap.name) for bitmap in removed]
    if as_json:
        print_json({"dry_run": dry_run, "undone": shown, "checkpoints": names})
        return
    what = "would undo" if dry_run else "undid"
    for each in shown:
        click.echo(f"{what} {each['kind']} {each['name']}")
    for name in names:
        click.echo(f"{'would remove' if dry_run else 'removed'} checkpoint {name}")
    if not shown and not names:
        click.echo("nothing was left behind")


@live.command("diff")
@_monitor
@device
@opt.base_options(required=True)
@click.option("-o", "--output", type=opt.OUTPUT, required=True, help="What to write.")
@click.option("--since", metavar="NAME", help="OLD is the disk as of this checkpoint.")
@click.option("--checkpoint", metavar="NAME", help="Begin a checkpoint at the moment of the delta.")
@click.option("--keep-since", is_flag=True, help="Keep the checkpoint of --since, too.")
@click.option(
    "--trust-bitmap", is_flag=True, help="Do not compare what is dirty: all of it is changed."
)
@click.option(
    "--scratch",
    type=opt.FILE,
    metavar="DIR",
    help="Keep there what the guest overwrites meanwhile; default: the output's folder.",
)
@click.option(
    "--scratch-size", type=opt.Size(), help="At most; default: half of what is free there."
)
@click.option(
    "--method",
    type=click.Choice(["copy-before-write", "backup"]),
    help="How to read the disk as of one moment; default: copy-before-write where QEMU has it. "
    "By backup, an I/O error of the scratch space fails the guest's own write.",
)
@click.option(
    "--nbd-socket",
    type=opt.FILE,
    metavar="SOCKET",
    help="Where the VM's NBD server listens, if one is running.",
)
@sinks.to
@sinks.to_overlay
@sinks.to_patch
@opt.opening
@sinks.writing
@click.pass_obj
def live_diff(monitor: Monitor, /, base: Path, output: Path, **options: Any) -> None:
    """Write what turns OLD into a disk of the VM as of one moment, while the guest goes on.

    OLD is a file with an earlier content of the disk: its backing file, or a copy.
    """
    what = sinks.chosen(output, options)
    sinks.refuse_existing(output, options)
    with contextlib.ExitStack() as stack:
        old = stack.enter_context(opt.open_base(base, options))
        sinks.refuse_input(output, old)
        machine = stack.enter_context(_machine(monitor))
        view = _view(machine, output, options)
        sinks.refuse_input(output, *filter(os.path.exists, view.files))
        write = _patch if what == "patch" else _overlay
        stack.callback(view.close)  # an interrupt may come between entering and the block
        with view:
            checked = _spot_check(old, view)
            figures = write(stack, old, view, output, options)
            view.keep_checkpoint()
    figures |= {
        "device": options["device"],
        "method": view.method,
        "since": options["since"],
        "bitmap_checked_bytes": checked,
        "checkpoint": view.checkpoint,
    }
    sinks.show(figures, options)
    if options["quiet"] or options["as_json"]:
        return
    if view.method == "backup":
        click.echo(
            "by backup: an I/O error of the scratch space would have been one of the guest's too"
        )
    if view.checkpoint is not None:
        click.echo(f"next checkpoint: {view.checkpoint}")


def _view(machine: Machine, output: Path, options: dict[str, Any]) -> DiskView:
    from ..errors import OptionError
    from ..live.view import DiskView

    if options["since"] is None:
        for name in ("keep_since", "trust_bitmap"):
            if options[name]:
                raise OptionError(f"--{name.replace('_', '-')} needs --since")
    tell = (lambda name: click.echo(name, err=True)) if options["verbose"] else (lambda name: None)
    return DiskView(machine, options["device"], _view_options(output, options), tell)


def _view_options(output: Path, options: dict[str, Any]) -> ViewOptions:
    from ..live.view import ViewOptions

    return ViewOptions(
        since=options["since"],
        checkpoint=options["checkpoint"],
        keep_since=options["keep_since"],
        scratch=options["scratch"] or output.parent,
        scratch_size=options["scratch_size"],
        method=options["method"],
        nbd_socket=options["nbd_socket"],
    )


def _spot_check(old: Image, view: DiskView) -> int | None:
    """Hold OLD against what the checkpoint says has not changed since; return on how many bytes."""
    from ..spotcheck import spot_check

    return None if view.dirty is None else spot_check(old, view.image, view.dirty)


def _patch(
    stack: contextlib.ExitStack, old: Image, view: DiskView, output: Path, options: dict[str, Any]
) -> dict[str, Any]:
    from ..diff import ImageDelta
    from ..patch.blocks import BLOCK

    trust = options["trust_bitmap"]
    delta = ImageDelta(old, view.image, granularity=BLOCK, dirty=view.dirty, trust=trust)
    return sinks.patch(delta, output, options)


def _overlay(
    stack: contextlib.ExitStack, old: Image, view: DiskView, output: Path, options: dict[str, Any]
) -> dict[str, Any]:
    from ..diff import ImageDelta

    base = sinks.backing(stack, old, output, options, options["base_snapshot"])
    how = sinks.overlay_options(old, base, output, options)
    trust = options["trust_bitmap"]
    return sinks.overlay(
        lambda unit: ImageDelta(old, view.image, granularity=unit, dirty=view.dirty, trust=trust),
        base,
        output,
        how,
        options,
    )
