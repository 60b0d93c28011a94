"""A unix socket that only we can connect to, and that no kill can leave behind."""

from __future__ import annotations

import os
import socket
import subprocess

from ..errors import QemuError, printable
from .programs import launcher, launcher_environment


class PrivateListener:
    """A listening unix socket without a name. Use as a context manager, or close it.

    It has a name for a moment only, in a folder that only we can enter; :mod:`.launch` gives and
    removes that. It can be connected to through a descriptor of where the name was. What accepts
    is another process, which the listening descriptor is handed to.

    Raises:
        QemuError: it cannot be made.
        OSError: nor the process that would make it.
    """

    def __init__(self) -> None:
        way, door = socket.socketpair()
        with way, door:
            made = subprocess.run(  # noqa: S603 # no shell, and our own arguments
                launcher(door.fileno()),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                pass_fds=[door.fileno()],
                start_new_session=True,
                env=launcher_environment(),
                check=False,
            )
            if made.returncode:
                said = printable(made.stderr.strip())
                raise QemuError(f"a socket for QEMU's NBD server cannot be made: {said}")
            _, (self._place, listening), _, _ = socket.recv_fds(way, 1, 2)
        os.set_inheritable(self._place, False)
        os.set_inheritable(listening, False)
        self._socket = socket.socket(fileno=listening)

    def __enter__(self) -> PrivateListener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """Return the listening descriptor, to be handed on; it is not inherited by itself."""
        return self._socket.fileno()

    @property
    def path(self) -> str:
        """What this process connects to: nobody else can, and no file has that name."""
        return f"/proc/self/fd/{self._place}"

    def stop_listening(self) -> None:
        """Close our own listening descriptor, once it was handed on."""
        self._socket.close()

    def close(self) -> None:
        """Close everything of it that is ours. Closing twice is allowed."""
        self._socket.close()
        if self._place >= 0:
            os.close(self._place)
            self._place = -1
