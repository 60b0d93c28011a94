"""A unix socket that only we can connect to, and that no kill can leave behind."""

from __future__ import annotations

import os
import socket
import tempfile

_BACKLOG = 64


class PrivateListener:
    """A listening unix socket without a name. Use as a context manager, or close it.

    It gets a name in a folder that only we can enter, and loses it at once; it can still be
    connected to through a descriptor of where its name was. What accepts is another process,
    which the listening descriptor is handed to.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._place = -1
        try:
            with tempfile.TemporaryDirectory(prefix="qcowdelta-") as folder:
                name = os.path.join(folder, "nbd")
                self._socket.bind(name)
                self._socket.listen(_BACKLOG)
                self._place = os.open(name, os.O_PATH | os.O_CLOEXEC)
        except BaseException:
            self.close()
            raise

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
