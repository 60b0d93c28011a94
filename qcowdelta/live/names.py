"""What things of ours are called inside a VM, and the record that a run keeps there.

All that is needed to undo a run is in the VM: a killed run leaves no file that would have to be
found. Names begin with :data:`PREFIX`. Where the disk has to be put back is in a property of an
object that exists as long as the run: of ``authz-simple``, which does nothing by itself.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import LiveError, OptionError

PREFIX = "qcowdelta-"

RUN = PREFIX + "run"
"""An object that exists while a run is at work, so that there is one at a time."""
SERVER = PREFIX + "nbd-server"
"""An object that exists while an NBD server that we started may be running."""
LISTENER = PREFIX + "nbd"
"""The descriptor that the NBD server is started with."""
SCRATCH = PREFIX + "scratch"
FILTER = PREFIX + "filter"
SNAPSHOT = PREFIX + "snapshot"
EXPORT = PREFIX + "export"
PROBE = PREFIX + "probe"
JOB = PREFIX + "backup"

RUN_BITMAPS = RUN + ":"
"""What the bitmaps of a run begin with; no checkpoint's name has a colon."""
NEXT = RUN_BITMAPS + "next"
"""Records the guest's writes from before the moment on: what the next checkpoint begins with."""
DIRTY = RUN_BITMAPS + "dirty"
"""A copy of the checkpoint's bitmap, taken after the moment."""

COPY_TIMEOUT = 15
"""How long the guest's write waits for what was there to be copied, s: a guest's patience is 30 s.
What lets writes come to their end may take as long."""

_CHECKPOINT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")


def checkpoint_name(name: str) -> str:
    """Return the bitmap of a checkpoint as it is called in the VM: the prefix may be left out.

    Raises:
        OptionError: it has other characters than letters, digits, and ``._-``.
    """
    if not _CHECKPOINT.fullmatch(name.removeprefix(PREFIX)):
        raise OptionError(
            f"a checkpoint is called by up to 200 letters, digits and '._-', not {name!r}"
        )
    return PREFIX + name.removeprefix(PREFIX)


def is_checkpoint(bitmap: str) -> bool:
    """Tell whether a bitmap is a checkpoint of ours, not a run's or someone else's."""
    return bitmap.startswith(PREFIX) and not bitmap.startswith(RUN_BITMAPS)


@dataclass(frozen=True)
class Record:
    """What has to be known to undo a run.

    Attributes:
        device: the QOM path of the disk's device; empty where the device is left alone.
        node: the node that the device had.
        owner: the process that runs it, as :func:`this_process` has it.
    """

    device: str
    node: str
    owner: str

    def __str__(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Record:
        """Read a record back.

        Raises:
            LiveError: it is none.
        """
        try:
            value: dict[str, Any] = json.loads(text)
            return cls(str(value["device"]), str(value["node"]), str(value["owner"]))
        except (ValueError, KeyError, TypeError) as error:
            raise LiveError(f"what the object {RUN} in the VM says is not understood") from error

    @property
    def pid(self) -> str:
        """The number of the process that runs it."""
        return self.owner.rpartition(" ")[2]

    @property
    def alive(self) -> bool:
        """Whether the process that runs it is still there, as far as can be seen from here."""
        return bool(self.owner) and self.owner == _identity(self.pid)


def this_process() -> str:
    """Return what tells this process from every other that was or will be: ``WHAT PID``."""
    return _identity(str(os.getpid()))


def _identity(pid: str) -> str:
    """Return the identity of a process; empty: there is none, or it is but a zombie."""
    try:
        # Numbers of processes are used again, and mean nothing after a boot, or elsewhere.
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        with open(f"/proc/{int(pid)}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()  # from the third on, see proc(5)
        space = os.stat("/proc/self/ns/pid").st_ino
    except (OSError, ValueError):
        return ""
    state, started = fields[0], fields[19]
    return "" if state in "ZX" else f"{boot}/{space}/{started} {pid}"
