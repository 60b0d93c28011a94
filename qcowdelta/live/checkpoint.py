"""Checkpoints: bitmaps that record what a guest writes from some moment on."""

from __future__ import annotations

import itertools
import time

from ..errors import LiveError, QmpError, printable
from . import names
from .machine import Bitmap, Disk, Machine, Node
from .steps import Action, merge


def start_checkpoint(machine: Machine, device: str, name: str | None = None) -> Bitmap:
    """Begin to record what the guest writes to a disk, and return the bitmap that does.

    It is stored in the image when the VM ends, where the image's format can do that.

    Args:
        machine: the VM.
        device: what the disk is called.
        name: what the checkpoint is to be called; None makes up a name.

    Raises:
        LiveError: there is no such disk, or there is such a checkpoint already.
        OptionError: it cannot be called that.
    """
    _, node = machine.disk(device)
    bitmap = new_name(node, name)
    machine.qmp.execute("block-dirty-bitmap-add", _kept(node, bitmap))
    found = machine.disk(device)[1].bitmap(bitmap)
    if found is None:
        raise LiveError(f"{machine.name}: the checkpoint {bitmap} was removed by someone else")
    return found


def new_name(node: Node, name: str | None) -> str:
    """Return the bitmap that a new checkpoint of a node will have; the present time by default.

    Raises:
        LiveError: the node has such a bitmap already.
        OptionError: it cannot be called that.
    """
    if name is None:
        now = names.PREFIX + time.strftime("%Y%m%dT%H%M%S")
        more = (f"{now}-{number}" for number in itertools.count(2))
        return next(each for each in itertools.chain([now], more) if node.bitmap(each) is None)
    bitmap = names.checkpoint_name(name)
    if node.bitmap(bitmap) is not None:
        raise LiveError(
            f"{printable(node.name)}: there is a checkpoint {printable(bitmap)} already; give "
            "another name, or remove it by 'qcowdelta live cleanup --checkpoint NAME'"
        )
    return bitmap


def find_checkpoint(disk: Disk, node: Node, name: str) -> Bitmap:
    """Return the bitmap of a checkpoint, which may be someone else's bitmap too.

    Raises:
        LiveError: there is none, or it does not tell all that was written since.
    """
    found = node.bitmap(name) or node.bitmap(names.PREFIX + name)
    if found is None:
        there = ", ".join(printable(bitmap.name) for bitmap in node.bitmaps) or "none"
        raise LiveError(
            f"disk {printable(disk.id)} has no checkpoint {printable(name)}; there are: {there}"
        )
    shown = f"checkpoint {printable(found.name)} of disk {printable(disk.id)}"
    whole = "compare all of the disk instead: leave out --since"
    if found.inconsistent:
        raise LiveError(f"{shown} was in use when the VM was killed, and tells nothing; {whole}")
    if not found.recording:
        raise LiveError(
            f"{shown} was disabled by another client, so it does not record what the guest "
            f"writes; {whole}. Enabling it again would not bring back what it has missed"
        )
    if found.busy:
        raise LiveError(f"{shown} is in use by another operation; try again when that has ended")
    return found


def keep_next(machine: Machine, node: Node, bitmap: str, since: Bitmap | None, drop: bool) -> None:
    """Turn what was recorded since the moment into a checkpoint, all at once or not at all.

    Args:
        machine: the VM.
        node: the node of the disk.
        bitmap: what the checkpoint will be called, as :func:`new_name` has it.
        since: the last checkpoint.
        drop: remove that one.
    """
    add = _kept(node, bitmap)
    if since is not None:
        add["granularity"] = since.granularity
    actions = [
        {"type": "block-dirty-bitmap-add", "data": add},
        merge(node.name, bitmap, names.NEXT),
    ]
    if since is not None and drop and names.is_checkpoint(since.name):
        removed = {"node": node.name, "name": since.name}
        actions.append({"type": "block-dirty-bitmap-remove", "data": removed})
    machine.qmp.execute("transaction", {"actions": actions})


def remove_checkpoints(
    machine: Machine, only: str | None = None, *, dry_run: bool = False
) -> list[Bitmap]:
    """Remove checkpoints of ours, and return which; ``only`` names one.

    Raises:
        LiveError: there is none of that name, or one is in use.
    """
    wanted = None if only is None else names.checkpoint_name(only)
    found = [
        bitmap
        for node in machine.nodes().values()
        for bitmap in node.bitmaps
        if names.is_checkpoint(bitmap.name) and wanted in (None, bitmap.name)
    ]
    if wanted is not None and not found:
        raise LiveError(f"{machine.name}: there is no checkpoint {printable(wanted)}")
    for bitmap in found if not dry_run else ():
        place = {"node": bitmap.node, "name": bitmap.name}
        try:
            machine.qmp.execute("block-dirty-bitmap-remove", place)
        except QmpError as error:
            if "not found" not in error.desc:
                raise
    return found


def _kept(node: Node, bitmap: str) -> Action:
    return {"node": node.name, "name": bitmap, "persistent": node.stores_bitmaps}
