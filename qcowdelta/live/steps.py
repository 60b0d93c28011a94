"""What is done to a VM so that a disk of it can be read as of one moment, step by step.

What the guest overwrites is copied to a scratch image first, which is an overlay of the disk: read
through it, the disk is as it was. How:

By **copy-before-write**, a filter that QEMU has since 7.1. Where copying fails or takes too long,
the filter gives the view up and the guest goes on. It does not tell, and the scratch image knows
nothing of it; so there is a second node over the filter, of ``snapshot-access``, whose reads fail
from then on. The disk itself is not read by that one: before 8.0 it gives wrong content where a
request begins in what was overwritten and ends in what was not.

By **backup** elsewhere: a backup job that copies nothing but what the guest overwrites, begun in
one transaction with the bitmaps. There the guest's own write fails when copying fails, so the
space for all of it is reserved first.

The moment is that of the step ``drive``, or ``backup``. A bitmap for the next checkpoint records
from before it, and the bitmap of the last one is copied after it: what the guest writes meanwhile
is in both, so nothing is missed. The last one's own bitmap records on, whatever happens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ..errors import LiveError, QmpError, printable
from ..qemu.sockets import PrivateListener
from . import names
from .machine import Bitmap, Disk, Machine, Node
from .scratch import Scratch

Method: TypeAlias = Literal["copy-before-write", "backup"]
Action: TypeAlias = dict[str, Any]

# Seen with Debian's 7.2.22: "nbd_blockdev_client_closed: Assertion `qemu_in_main_thread()'" on any
# end of a connection, of which a kill of ours is one. The code was rewritten for 8.2.
_SAFE_IN_IOTHREADS = (8, 2, 0)
CONNECTIONS = 16
"""How many connections to the export there can be."""


class InTheWayError(LiveError):
    """A run is at work in the VM, or was killed and left something behind."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(
            f"{machine.name}: another qcowdelta is at work in this VM, or was killed and left "
            "something behind; wait for it, or undo what is left by 'qcowdelta live cleanup'"
        )


@dataclass(frozen=True)
class Run:
    """What the steps work on.

    Attributes:
        machine, disk, node: the VM, its disk, and the node that the disk has.
        scratch: the scratch image.
        listener: what the NBD server of the VM will listen on; None: one is running already.
        since: the bitmap of the last checkpoint, or None.
        next: whether the next checkpoint's bitmap is begun.
    """

    machine: Machine
    disk: Disk
    node: Node
    scratch: Scratch
    listener: PrivateListener | None
    since: Bitmap | None
    next: bool

    def execute(self, command: str, arguments: Mapping[str, object]) -> Any:
        """Execute a command in the VM."""
        return self.machine.qmp.execute(command, arguments)


@dataclass(frozen=True)
class Step:
    """One step, undone by what :mod:`.undo` has under the same name."""

    name: str
    do: Callable[[Run], None]


def available(machine: Machine) -> list[Method]:
    """Return the methods that a VM has, the better one first."""
    has = machine.qmp.has
    if not has("block-export-add:nbd:bitmaps") or not has("add-fd"):
        return []
    found: list[Method] = []
    if has("blockdev-add:copy-before-write:on-cbw-error") and has("blockdev-add:snapshot-access"):
        found.append("copy-before-write")
    if has("transaction:actions:blockdev-backup") or has("blockdev-backup"):
        found.append("backup")
    return found


def choose(machine: Machine, disk: Disk, asked: Method | None) -> Method:
    """Return the method that was asked for, or the best that the VM has.

    Raises:
        LiveError: it has none, or not that one, or none that is safe for that disk.
    """
    found, numbers = available(machine), machine.version
    version = ".".join(map(str, numbers))
    if numbers < _SAFE_IN_IOTHREADS and machine.has_iothread(disk):
        raise LiveError(
            f"{machine.name}: disk {printable(disk.id)} is served by an I/O thread, and QEMU "
            f"{version} may crash, and the guest with it, when an NBD client of such a disk "
            "disconnects; it takes QEMU 8.2 or later, or the disk without its iothread"
        )
    if not found:
        raise LiveError(
            f"{machine.name}: QEMU {version} cannot show a disk as of one moment; "
            "5.2 or later can, 7.1 or later better"
        )
    if asked is not None and asked not in found:
        raise LiveError(f"{machine.name}: QEMU {version} has no method {asked}")
    return asked or found[0]


def _claim(run: Run, device: str) -> None:
    record = names.Record(device, run.node.name, names.this_process())
    claim = {"qom-type": "authz-simple", "id": names.RUN, "identity": str(record)}
    try:
        # The name of an object is taken or free: of two runs, one is the first.
        run.execute("object-add", claim)
    except QmpError as error:
        if "duplicate" in error.desc:
            raise InTheWayError(run.machine) from error
        raise


def _add_scratch(run: Run) -> None:
    """Add the scratch image as an overlay of the disk: what it has not is read from there.

    By descriptor it can be had by any QEMU, but one before 9.1 that stands still does not forget
    a descriptor that was passed; so it is tried first to let it open ours by itself.
    """
    path = run.scratch.path_for(run.machine.qmp.peer)
    if path is not None:
        try:
            _add_scratch_file(run, path)
            return
        except QmpError as error:
            if "Could not open" not in error.desc:
                raise
    run.machine.qmp.send_fd(run.scratch.fileno())
    number = run.execute("add-fd", {"opaque": names.SCRATCH})["fdset-id"]
    _add_scratch_file(run, f"/dev/fdset/{number}")


def _add_scratch_file(run: Run, path: str) -> None:
    limited = {
        "driver": "raw",
        "size": run.scratch.limit,
        "file": {"driver": "file", "filename": path},
    }
    run.execute(
        "blockdev-add",
        {
            "driver": "qcow2",
            "node-name": names.SCRATCH,
            "file": limited,
            "backing": run.node.name,
        },
    )


def _begin_next(run: Run) -> None:
    _transaction(run.machine, [_new_bitmap(run, names.NEXT)])


def _add_filter(run: Run) -> None:
    run.execute(
        "blockdev-add",
        {
            "driver": "copy-before-write",
            "node-name": names.FILTER,
            "file": run.node.name,
            "target": names.SCRATCH,
            "on-cbw-error": "break-snapshot",
            "cbw-timeout": names.COPY_TIMEOUT,
        },
    )


def _set_drive(run: Run) -> None:
    if not run.disk.qdev:
        raise LiveError(
            f"{run.machine.name}: disk {printable(run.disk.id)} belongs to no device; "
            "try --method backup"
        )
    try:
        run.execute("qom-set", {"path": run.disk.qdev, "property": "drive", "value": names.FILTER})
    except QmpError as error:
        if error.error_class is None:
            raise
        raise LiveError(
            f"{run.machine.name}: the device of disk {printable(run.disk.id)} cannot be given "
            f"another node while it is in use ({error.desc}); virtio-blk and scsi-hd can; try "
            "--method backup"
        ) from error


def _copy_since(run: Run) -> None:
    if run.since is not None:
        _transaction(run.machine, _copied(run, run.since))


def _add_snapshot(run: Run) -> None:
    run.execute(
        "blockdev-add",
        {"driver": "snapshot-access", "node-name": names.SNAPSHOT, "file": names.FILTER},
    )


def _start_backup(run: Run) -> None:
    backup: Action = {
        "job-id": names.JOB,
        "device": run.node.name,
        "target": names.SCRATCH,
        "sync": "none",
        "filter-node-name": names.FILTER,
    }
    actions = [_new_bitmap(run, names.NEXT)] if run.next else []
    actions += _copied(run, run.since) if run.since is not None else []
    _transaction(run.machine, [*actions, {"type": "blockdev-backup", "data": backup}])


def _start_server(run: Run) -> None:
    if run.listener is None:
        return
    qmp = run.machine.qmp
    if "nbd" in run.machine.exports().values():
        raise _server_runs(run.machine)
    run.execute("object-add", {"qom-type": "authz-simple", "id": names.SERVER, "identity": ""})
    qmp.send_fd(run.listener.fileno())
    run.execute("getfd", {"fdname": names.LISTENER})
    arguments: Action = {"addr": {"type": "fd", "data": {"str": names.LISTENER}}}
    if qmp.has("nbd-server-start:max-connections"):
        arguments["max-connections"] = CONNECTIONS
    try:
        run.execute("nbd-server-start", arguments)
    except QmpError as error:
        if "already running" not in error.desc:
            raise
        # It is not ours to stop: the object goes before anything is undone.
        run.execute("closefd", {"fdname": names.LISTENER})
        run.execute("object-del", {"id": names.SERVER})
        raise _server_runs(run.machine) from error
    run.listener.stop_listening()


def _server_runs(machine: Machine) -> LiveError:
    return LiveError(
        f"{machine.name}: an NBD server is running in this VM, which can have but one; stop it, "
        "or name the unix socket that it listens on by --nbd-socket"
    )


def _export(run: Run) -> None:
    arguments: Action = {"allocation-depth": True}
    if run.since is not None:
        named = {"node": run.node.name, "name": names.DIRTY}
        by_node = run.machine.qmp.has("block-export-add:nbd:bitmaps:node")
        arguments["bitmaps"] = [named if by_node else names.DIRTY]
    _add_export(run, names.EXPORT, names.SCRATCH, arguments)


def _add_export(run: Run, name: str, node: str, arguments: Action) -> None:
    place = {"type": "nbd", "id": name, "name": name, "node-name": node, "writable": False}
    run.execute("block-export-add", {**place, **arguments})


def _new_bitmap(run: Run, name: str, *, disabled: bool = False) -> Action:
    """Return the action that adds a bitmap of the run's, as fine as the last checkpoint's."""
    data: Action = {"node": run.node.name, "name": name}
    if disabled:
        data["disabled"] = True
    if run.since is not None:
        data["granularity"] = run.since.granularity
    return {"type": "block-dirty-bitmap-add", "data": data}


def _copied(run: Run, bitmap: Bitmap) -> list[Action]:
    """Return the actions that copy the last checkpoint's bitmap to one that stays as it is."""
    return [
        _new_bitmap(run, names.DIRTY, disabled=True),
        merge(bitmap.node, names.DIRTY, bitmap.name),
    ]


def merge(node: str, target: str, *sources: str) -> Action:
    """Return the action that adds what is dirty in some bitmaps to another one."""
    return {
        "type": "block-dirty-bitmap-merge",
        "data": {"node": node, "target": target, "bitmaps": list(sources)},
    }


def _transaction(machine: Machine, actions: list[Action]) -> None:
    machine.qmp.execute("transaction", {"actions": actions})


def steps(run: Run, method: Method) -> list[Step]:
    """Return the steps of a method, in order. All are undone by :func:`.undo.undo_all`."""
    shared = [Step("server", _start_server)] if run.listener is not None else []
    if method == "backup":
        return [
            Step("claim", lambda run: _claim(run, "")),
            Step("scratch", _add_scratch),
            Step("backup", _start_backup),
            *shared,
            Step("export", _export),
        ]
    return [
        Step("claim", lambda run: _claim(run, run.disk.qdev)),
        Step("scratch", _add_scratch),
        *([Step("next", _begin_next)] if run.next else []),
        Step("filter", _add_filter),
        Step("drive", _set_drive),
        *([Step("since", _copy_since)] if run.since else []),
        Step("snapshot", _add_snapshot),
        *shared,
        Step("export", _export),
        Step("probe", lambda run: _add_export(run, names.PROBE, names.SNAPSHOT, {})),
    ]
