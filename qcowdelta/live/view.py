"""A disk of a running VM as of one moment, to be read while the guest goes on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from ..errors import LiveError, NbdError, OptionError, PathName, QmpError, printable
from ..image import Image
from ..qemu.export import ExportFile, ExportLayer
from ..qemu.nbd import ALLOCATION, NbdClient
from ..qemu.sockets import PrivateListener
from ..units import usable_cpus
from . import names
from .checkpoint import find_checkpoint, keep_next, new_name
from .dirty import NbdDirty, context
from .machine import Machine
from .scratch import Scratch
from .steps import CONNECTIONS, STEPS, InTheWayError, Method, Run, Step, choose
from .undo import undo_all, uninterrupted

OnStep = Callable[[str], None]


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

    As a context manager only: the VM is as before when the block is left, however it is. Whoever
    is killed in it leaves what :func:`.undo_all` undoes.

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
        self.method = choose(machine, options.method)
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
        try:
            with contextlib.ExitStack() as stack:
                self._open(stack)
                self._stack = stack.pop_all()
        except NbdError as error:
            raise self._explained(error) from error
        self._on_step("read")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Asked before the undoing: after it the scratch space is empty.
        told = self._explained(error) if isinstance(error, NbdError) else None
        self._stack.__exit__(kind, error, trace)
        if told is not None:
            raise told from error

    def keep_checkpoint(self) -> None:
        """Let the next checkpoint begin at the view's moment, once what was read is safe.

        Raises:
            QmpError: QEMU refused; nothing has changed then.
        """
        if self.checkpoint is not None:
            self._on_step("keep")
            keep_next(
                self._machine,
                self._node,
                self.checkpoint,
                self._since,
                not self._options.keep_since,
            )

    def _open(self, stack: contextlib.ExitStack) -> None:
        options = self._options
        self._scratch = stack.enter_context(
            Scratch(
                options.scratch,
                self._node.size,
                options.scratch_size,
                reserve=self.method == "backup",
            )
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
        claim, *steps = STEPS[self.method]
        stack.callback(self._undo)
        try:
            self._take(claim, run)
        except InTheWayError:
            stack.pop_all().close() if False else None
            raise
        for step in steps:
            self._take(step, run)
        self._read(stack, listener)

    def _take(self, step: Step, run: Run) -> None:
        self._on_step(step.name)
        step.do(run)

    def _undo(self) -> None:
        uninterrupted(lambda: undo_all(self._machine, self._on_step))
        self._scratch.release()
