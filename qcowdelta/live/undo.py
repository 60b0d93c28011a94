"""Undoing what a run did to a VM, as far as it got: the same after success, failure and a kill.

Each part looks at the VM for what is there, so all of them may be called at any time, and again.
The order is the reverse of the steps', see :mod:`.steps`.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import LiveError, QmpError, QmpLostError, QmpTimeoutError, printable
from . import names
from .machine import Machine

T = TypeVar("T")

_POLL = 0.02  # s
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Leftover:
    """One thing of a run's in a VM.

    Attributes:
        kind: ``export``, ``server``, ``node``, ``drive``, ``job``, ``bitmap``, ``descriptor`` or
            ``object``.
        name: its name; of a drive, the device's.
    """

    kind: str
    name: str


@dataclass(frozen=True)
class Undo:
    """One part of undoing.

    Attributes:
        name: the step that it undoes.
        find: tells what is there to be undone.
        undo: undoes one of those.
    """

    name: str
    find: Callable[[Machine], list[Leftover]]
    undo: Callable[[Machine, Leftover], None]


def undo_all(
    machine: Machine, on_step: Callable[[str], None] = lambda _name: None
) -> list[Leftover]:
    """Undo whatever there is of a run; return what there was.

    Args:
        machine: the VM.
        on_step: called with ``undo NAME`` before anything of a step is undone.

    Raises:
        LiveError: something could not be undone. All the rest has been.
    """
    done: list[Leftover] = []
    errors: list[QmpError | LiveError] = []
    for part in ORDER:
        try:
            for found in part.find(machine):
                on_step(f"undo {part.name}")
                part.undo(machine, found)
                done += [found] if _counts(machine, found) else []
        except (QmpLostError, QmpTimeoutError) as error:  # nor would the rest be answered
            errors.append(error)
            break
        except (QmpError, LiveError) as error:
            errors.append(error)
    if errors:
        said = "; ".join(str(error) for error in errors)
        raise LiveError(
            f"not everything in the VM could be undone: {said}; when that is out of the way, "
            "'qcowdelta live cleanup' does the rest"
        ) from errors[0]
    return done


def find_all(machine: Machine) -> list[Leftover]:
    """Return what there is of a run, in the order in which it would be undone."""
    everything = (found for part in ORDER for found in part.find(machine))
    return [found for found in everything if _counts(machine, found)]


def _counts(machine: Machine, found: Leftover) -> bool:
    """Tell whether this is one to tell of: a VM that stands still lists descriptors long gone."""
    return found.kind != "descriptor" or machine.status == "running"


def uninterrupted(work: Callable[[], T]) -> T:
    """Run work, which may be run again, to its end; signals that come meanwhile are handled then.

    Args:
        work: what to do. It is begun again where a handler raised before signals were held back.
    """
    raised: BaseException | None = None
    while True:
        came: list[int] = []
        try:
            with _held_back(came):
                result = work()
            break
        except KeyboardInterrupt as error:
            raised = error
    for each in came:
        signal.raise_signal(each)
    if raised is not None:
        raise raised
    return result


@contextlib.contextmanager
def _held_back(came: list[int]) -> Iterator[None]:
    """Only note the signals that would end the program; they concern the main thread alone."""
    before: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in _ENDING:
                if signal.getsignal(number) not in (None, signal.SIG_IGN):
                    before[number] = signal.signal(number, lambda n, _frame: came.append(n))
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _until(machine: Machine, gone: Callable[[], bool], what: str) -> None:
    """Wait for what QEMU finishes by itself, at most as long as a command may take."""
    until = time.monotonic() + machine.qmp.timeout
    while not gone():
        if time.monotonic() > until:
            raise LiveError(f"{machine.name}: {what} did not end within {machine.qmp.timeout:g} s")
        time.sleep(_POLL)


def _tolerate(machine: Machine, harmless: str, command: str, **arguments: Any) -> None:
    """Execute a command, and take one answer of its for success."""
    try:
        machine.qmp.execute(command, arguments, timeout=_patience(machine))
    except QmpError as error:
        if harmless not in error.desc:
            raise


def _patience(machine: Machine) -> float:
    """Return how long a command may take that waits for the guest's writes, s."""
    return machine.qmp.timeout + names.COPY_TIMEOUT


def _exports(machine: Machine) -> list[Leftover]:
    there = machine.exports()
    return [Leftover("export", name) for name in (names.PROBE, names.EXPORT) if name in there]


def _remove_export(machine: Machine, found: Leftover) -> None:
    # "hard" ends connections too: those of a client that hangs, or that was killed just now.
    _tolerate(machine, "is not found", "block-export-del", id=found.name, mode="hard")
    _until(machine, lambda: found.name not in machine.exports(), f"export {found.name}")


def _server(machine: Machine) -> list[Leftover]:
    return [Leftover("server", names.SERVER)] if names.SERVER in machine.objects() else []


def _stop_server(machine: Machine, found: Leftover) -> None:
    if "nbd" not in machine.exports().values():  # else someone else uses it by now
        _tolerate(machine, "not running", "nbd-server-stop")
    _tolerate(machine, "not found", "closefd", fdname=names.LISTENER)
    _tolerate(machine, "not found", "object-del", id=found.name)


def _node(name: str) -> Callable[[Machine], list[Leftover]]:
    def find(machine: Machine) -> list[Leftover]:
        return [Leftover("node", name)] if name in machine.nodes() else []

    return find


def _remove_node(machine: Machine, found: Leftover) -> None:
    _tolerate(machine, "Failed to find node", "blockdev-del", **{"node-name": found.name})


def _drives(machine: Machine) -> list[Leftover]:
    return [
        Leftover("drive", disk.qdev)
        for disk in machine.disks()
        # A job puts its own filter away.
        if disk.node is not None
        and disk.node.name == names.FILTER
        and names.JOB not in machine.jobs()
    ]


def _put_drive_back(machine: Machine, found: Leftover) -> None:
    """Give the device its node back; only one that has the filter: QEMU dies of a useless set."""
    record = machine.record()
    if record is not None and record.device == found.name:
        machine.qmp.execute(
            "qom-set",
            {"path": found.name, "property": "drive", "value": record.node},
            timeout=_patience(machine),
        )
        return
    raise LiveError(
        f"{machine.name}: what {printable(found.name)} had before is not recorded any more; put "
        f"it back by qom-set of its property drive, to the node below {names.FILTER}"
    )


def _jobs(machine: Machine) -> list[Leftover]:
    return [Leftover("job", names.JOB)] if names.JOB in machine.jobs() else []


def _cancel_job(machine: Machine, found: Leftover) -> None:
    def gone() -> bool:
        status = machine.jobs().get(found.name)
        if status == "concluded":
            _tolerate(machine, "not found", "job-dismiss", id=found.name)
        return status is None

    if machine.jobs().get(found.name) != "concluded":
        _tolerate(machine, "not found", "job-cancel", id=found.name)
    _until(machine, gone, f"job {found.name}")


def _bitmaps(machine: Machine) -> list[Leftover]:
    return [
        Leftover("bitmap", f"{node.name}/{bitmap.name}")
        for node in machine.nodes().values()
        for bitmap in node.bitmaps
        if bitmap.name.startswith(names.RUN_BITMAPS)
    ]


def _remove_bitmap(machine: Machine, found: Leftover) -> None:
    node, _, name = found.name.rpartition("/")
    _tolerate(machine, "not found", "block-dirty-bitmap-remove", node=node, name=name)


def _descriptors(machine: Machine) -> list[Leftover]:
    return [Leftover("descriptor", str(number)) for number in machine.descriptors()]


def _remove_descriptor(machine: Machine, found: Leftover) -> None:
    _tolerate(machine, "not found", "remove-fd", **{"fdset-id": int(found.name)})


def _run(machine: Machine) -> list[Leftover]:
    return [Leftover("object", names.RUN)] if names.RUN in machine.objects() else []


def _remove_object(machine: Machine, found: Leftover) -> None:
    _tolerate(machine, "not found", "object-del", id=found.name)


ORDER = (
    Undo("export", _exports, _remove_export),
    Undo("server", _server, _stop_server),
    Undo("snapshot", _node(names.SNAPSHOT), _remove_node),
    Undo("drive", _drives, _put_drive_back),
    Undo("backup", _jobs, _cancel_job),
    Undo("filter", _node(names.FILTER), _remove_node),
    Undo("bitmaps", _bitmaps, _remove_bitmap),
    Undo("scratch", _node(names.SCRATCH), _remove_node),
    Undo("scratch", _descriptors, _remove_descriptor),
    Undo("claim", _run, _remove_object),
)
