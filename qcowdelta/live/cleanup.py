"""Undoing what a run left in a VM that was killed, and removing checkpoints."""

from __future__ import annotations

from ..errors import LiveError
from .checkpoint import remove_checkpoints
from .machine import Bitmap, Machine
from .undo import Leftover, find_all, undo_all, uninterrupted


def clean_up(
    machine: Machine,
    checkpoints: str | bool = False,
    *,
    dry_run: bool = False,
    force: bool = False,
) -> tuple[list[Leftover], list[Bitmap]]:
    """Undo what a killed run left; return that, and the checkpoints that were removed.

    Doing it again, or where nothing was left, does no harm.

    Args:
        machine: the VM.
        checkpoints: remove all checkpoints of ours too, or that of this name.
        dry_run: do nothing, but tell what would be done.
        force: undo it even if the process seems to be there that is at work.

    Raises:
        LiveError: that process is there, or not everything could be undone.
    """
    record = machine.record()
    if record is not None and record.alive and not (force or dry_run):
        raise LiveError(
            f"{machine.name}: process {record.pid} is still at work in this VM, and undoes all by "
            "itself when it is ended; --force undoes it here and now"
        )
    found = find_all(machine) if dry_run else uninterrupted(lambda: undo_all(machine))
    removed: list[Bitmap] = []
    if checkpoints:
        only = checkpoints if isinstance(checkpoints, str) else None
        removed = remove_checkpoints(machine, only, dry_run=dry_run)
    return found, removed
