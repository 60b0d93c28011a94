"""A disk of a running VM as of one moment, to be read while the guest goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from ..errors import (
    LiveError,
    NbdError,
    PathName,
    QcowDeltaError,
    QmpBusyError,
    QmpError,
    QmpLostError,
    printable,
)
from ..image import Image
from ..layer import How
from ..qemu.export import ExportLayer
from ..qemu.nbd import ALLOCATION, NbdClient
from ..qemu.sockets import PrivateListener
from . import names
from .checkpoint import find_checkpoint, keep_next, new_name
from .dirty import NbdDirty, context
from .fleecing import DEPTH, FleecingFile
from .machine import Machine
from .scratch import Scratch
from .steps import CONNECTIONS, InTheWayError, Method, Run, choose, steps
from .undo import undo_all, uninterrupted

OnStep = Callable[[str], None]

_READERS = CONNECTIONS - 4  # one for the bitmap, one for the probe, and some to spare


@dataclass(frozen=True)
class ViewOptions:
    """How a view is made.

    Attributes:
        since: the checkpoint since which dirty ranges are wanted, or None.
        checkpoint: what the next checkpoint, which begins at the view's moment, is called; None
            makes up a name where ``since`` is given, and begins none otherwise.
        keep_since: leave the last checkpoint as it is when the next one is kept.
        scratch: the folder in which what the guest overwrites is kept meanwhile.
        scratch_size: how much of that there may be, bytes; None: see :class:`.Scratch`.
        method: how; None takes the best that the VM has.
        nbd_socket: the unix socket of an NBD server that runs in the VM already.
    """

    since: str | None = None
    checkpoint: str | None = None
    keep_since: bool = False
    scratch: PathName = "."
    scratch_size: int | None = None
    method: Method | None = None
    nbd_socket: PathName | None = None


class DiskView:
    """A disk of a running VM as of the moment in which the block is entered.

    As a context manager: the VM is as before when the block is left, however it is. Whoever is
    killed in it leaves what :func:`.undo_all` undoes.

    Args:
        machine: the VM.
        device: what the disk is called.
        options: how.
        on_step: called with the name of each step before it is taken, with ``undo NAME`` before
            one is undone, ``read`` when the view can be read, and ``keep`` before the next
            checkpoint is kept.

    Attributes:
        image: the disk, as an image like any other.
        dirty: what may have changed since the checkpoint; None where none was given.
        checkpoint: the bitmap that :meth:`keep_checkpoint` will make; None: none.

    Raises:
        LiveError: the VM cannot do it, or another run is at work in it or was killed; or, when
            the block is left, the view broke while it was read.
        OptionError: the options do not go together.
        QmpError: QEMU refused a step.
    """

    image: Image
    dirty: NbdDirty | None

    def __init__(
        self,
        machine: Machine,
        device: str,
        options: ViewOptions | None = None,
        on_step: OnStep = lambda _name: None,
    ) -> None:
        self._machine, self._on_step = machine, on_step
        self._options = options = options or ViewOptions()
        self._disk, self._node = machine.disk(device)
        if self._node.name == names.FILTER:
            raise InTheWayError(machine)
        self.method = choose(machine, self._disk, options.method)
        self._since = None
        if options.since is not None:
            self._since = find_checkpoint(self._disk, self._node, options.since)
        self.checkpoint = None
        if options.since is not None or options.checkpoint is not None:
            self.checkpoint = new_name(self._node, options.checkpoint)
        self.name = f"{machine.name}, disk {printable(self._disk.id)}"
        self._stack = contextlib.ExitStack()

    @property
    def files(self) -> list[str]:
        """The files that the VM has open, as it calls them."""
        return sorted({node.file for node in self._machine.nodes().values()})

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._open(stack)
            self._on_step("read")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Asked before anything is undone: after that the scratch space is empty.
        told = self._explained(error) if isinstance(error, NbdError) else error
        try:
            self.close()
        except LiveError as left:
            if isinstance(told, QcowDeltaError):
                raise LiveError(f"{told}; and {left}") from error
            raise
        if told is not error and told is not None:
            raise told from error

    def close(self) -> None:
        """Undo all. Closing twice is allowed, and so is closing what was not entered.

        Raises:
            LiveError: not everything could be undone.
        """
        self._stack.close()

    def keep_checkpoint(self) -> None:
        """Let the next checkpoint begin at the view's moment, once what was read is safe.

        Raises:
            LiveError: QEMU refused, or did not answer; where it did not do it, the last
                checkpoint is as it was.
        """
        if self.checkpoint is None:
            return
        self._on_step("keep")
        drop = not self._options.keep_since
        try:
            keep_next(self._machine, self._node, self.checkpoint, self._since, drop)
        except QmpError as error:
            raise LiveError(
                f"what was read is complete, but the checkpoint {self.checkpoint} may not have "
                f"been kept: {error}"
            ) from error

    def _open(self, stack: contextlib.ExitStack) -> None:
        options = self._options
        reserve = self.method == "backup"
        self._scratch = stack.enter_context(
            Scratch(options.scratch, self._node.size, options.scratch_size, reserve=reserve)
        )
        listener = None
        if options.nbd_socket is None:
            listener = stack.enter_context(PrivateListener())
        run = Run(
            self._machine,
            self._disk,
            self._node,
            self._scratch,
            listener,
            self._since,
            self.checkpoint is not None,
        )
        with contextlib.ExitStack() as undoing:
            # Registered before the first step: a step may be done although it seems to fail.
            undoing.callback(self._undo)
            try:
                for step in steps(run, self.method):
                    self._on_step(step.name)
                    step.do(run)
            except InTheWayError:
                undoing.pop_all()  # what is there is another's
                raise
            stack.enter_context(undoing.pop_all())
        self._since_recorded()
        self._connect(stack, listener)

    def _since_recorded(self) -> None:
        """Refuse a checkpoint that another client has disabled or removed before the moment."""
        if self._since is not None:
            node = self._machine.nodes()[self._node.name]
            find_checkpoint(self._disk, node, self._since.name)

    def _connect(self, stack: contextlib.ExitStack, listener: PrivateListener | None) -> None:
        place = self._options.nbd_socket if listener is None else listener.path

        def connect(export: str, *contexts: str) -> NbdClient:
            return NbdClient.connect_unix(place or "", export, contexts, name=self.name)

        probe = None
        if self.method == "copy-before-write":
            probe = connect(names.PROBE)
            stack.callback(probe.close)
        file = FleecingFile(
            lambda: connect(names.EXPORT, ALLOCATION, DEPTH), _READERS, self.name, probe
        )
        stack.callback(file.close)
        how = How(self.name, self._node.driver, "the VM")
        self.image = Image([ExportLayer(file, how)])
        self.dirty = None
        if self._since is not None:
            client = connect(names.EXPORT, context(names.DIRTY))
            stack.callback(client.close)
            if context(names.DIRTY) not in client.contexts:
                raise LiveError(f"{self.name}: QEMU does not export the checkpoint's bitmap")
            self.dirty = NbdDirty(client, names.DIRTY, self._since.granularity)

    def _undo(self) -> None:
        uninterrupted(self._undo_or_reconnect)

    def _undo_or_reconnect(self) -> None:
        try:
            undo_all(self._machine, self._on_step)
        except LiveError as error:
            if not isinstance(error.__cause__, QmpLostError):
                raise
            self._undo_anew(error)
        self._scratch.release()

    def _undo_anew(self, lost: LiveError) -> None:
        """Undo by a new connection; where there is no VM any more, nothing is left to undo."""
        try:
            session = self._machine.qmp.reconnect()
        except QmpBusyError:
            raise lost from lost.__cause__
        except QmpError:
            return
        with session:
            undo_all(Machine(session), self._on_step)

    def _explained(self, error: NbdError) -> QcowDeltaError:
        """Return why the view could not be read: an export itself says next to nothing."""
        try:
            status = self._machine.status
        except QmpLostError:
            return LiveError(f"{self.name}: the VM has ended while its disk was read")
        except QmpError:
            return error
        scratch = self._scratch
        if scratch.full:
            return LiveError(
                f"{self.name}: the scratch space in {scratch.folder} is full (it takes "
                f"{scratch.used} bytes), so the disk as of that moment is lost; the guest goes on. "
                "Give it more by --scratch-size, or another folder by --scratch"
            )
        return LiveError(
            f"{error}. The VM is {status}; its disk as of that moment is lost where copying what "
            f"the guest overwrites failed, or took more than {names.COPY_TIMEOUT} s"
        )
