"""A qemu-storage-daemon of our own: one image, opened by QEMU, exported to us over NBD.

Its monitor is one end of a socket pair and its NBD server's socket has no name, so nothing can be
left in the file system, and nobody else can connect. It is killed with us (:mod:`.programs`).
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import NbdError, PolicyError, QemuError, QmpError, printable
from ..secret import Secret
from .nbd import ALLOCATION, NbdClient
from .programs import Child

if TYPE_CHECKING:
    from .qmp import QmpSession

TIMEOUT = 60.0
"""Seconds without an answer after which a daemon counts as hung. A LUKS key takes seconds."""

NODE, EXPORT, SECRET = "qcowdelta-image", "qcowdelta-export", "qcowdelta-secret"
_DESCRIPTOR = re.compile(r"'?/dev/fd/\d+'?")  # the only names that QEMU knows
_GRACE = 0.5  # s; for a daemon to end that is about to


class StorageDaemon:
    """A daemon that has opened an image read-only. Close it when done.

    Args:
        program: the path of qemu-storage-daemon.
        node: the image as ``blockdev-add`` takes it, each node in it explicit; file nodes name
            inherited descriptors.
        fds: the descriptors that it inherits.
        keys: what identifies the files that it may have open, see :attr:`.HostFile.key`.
        secret: what ``qcowdelta-secret`` means in the node.
        name: what the image is to people, for messages.
        timeout: seconds that each answer may take.

    Raises:
        QemuError: it cannot be started, hung, or cannot read the image.
        PolicyError: it opened a file that is none of those.
    """

    def __init__(
        self,
        program: str,
        node: Mapping[str, Any],
        fds: Sequence[int],
        keys: Collection[tuple[int, ...]],
        secret: Secret | None,
        *,
        name: str,
        timeout: float | None = None,
    ) -> None:
        self._name = name
        self._timeout = TIMEOUT if timeout is None else timeout
        self._place = -1
        self._session: QmpSession | None = None
        self._child: Child | None = None
        try:
            session, child = self._start(program, fds)
            self._open(session, node, secret)
            self._check_files(child, keys)
            session.execute(
                "block-export-add",
                {"type": "nbd", "id": EXPORT, "node-name": NODE, "name": EXPORT},
            )
        except QmpError as error:
            said = _DESCRIPTOR.sub("the file", error.desc or str(error))
            told = self._ended() if error.error_class is None else None
            said += "" if secret is None else secret.remark(said)
            self.close()
            raise QemuError(f"{name}: QEMU cannot read it: {told or said}") from None
        except BaseException:
            self.close()
            raise

    def _start(self, program: str, fds: Sequence[int]) -> tuple[QmpSession, Child]:
        ours, theirs = socket.socketpair()
        way, door = socket.socketpair()
        with way, theirs, door:
            argv = [
                program,
                *("--chardev", f"socket,id=monitor,fd={theirs.fileno()}"),
                *("--monitor", "chardev=monitor"),
                *("--nbd-server", "addr.type=fd,addr.str={door}"),
            ]
            try:
                self._child = Child(argv, [*fds, theirs.fileno()], door=door.fileno())
                theirs.close()
                door.close()
                # Loading asyncio takes as long as the daemon takes to start: both at once.
                from .qmp import QmpSession

                self._place = self._receive_place(way)
                self._session = QmpSession(ours, timeout=self._timeout)
                return self._session, self._child
            except BaseException:
                ours.close()
                raise

    def _receive_place(self, way: socket.socket) -> int:
        way.settimeout(self._timeout)
        try:
            _, fds, _, _ = socket.recv_fds(way, 1, 1)
        except TimeoutError:
            raise QemuError(f"{self._name}: qemu-storage-daemon could not be started") from None
        if not fds:
            raise QemuError(f"{self._name}: {self._ended() or 'its start failed'}")
        os.set_inheritable(fds[0], False)
        return fds[0]

    def _open(self, session: QmpSession, node: Mapping[str, Any], secret: Secret | None) -> None:
        if secret is not None:
            session.execute(
                "object-add",
                {"qom-type": "secret", "id": SECRET, "data": secret.base64, "format": "base64"},
            )
        session.execute("blockdev-add", {**node, "node-name": NODE})

    def _check_files(self, child: Child, keys: Collection[tuple[int, ...]]) -> None:
        """Hold what the daemon has open against what it may: no name inside an image was followed.

        It was told so; this is the proof, before anything that it reads is used.
        """
        folder = f"/proc/{child.pid}/fd"
        for number in os.listdir(folder):
            link = f"{folder}/{number}"
            try:
                info, shown = os.stat(link), os.readlink(link)
            except FileNotFoundError:
                continue  # closed meanwhile
            if stat.S_ISREG(info.st_mode):
                known = (info.st_dev, info.st_ino) in keys or shown.startswith("/memfd:")
            else:
                known = not stat.S_ISBLK(info.st_mode) or (info.st_rdev,) in keys
            if not known:
                raise PolicyError(
                    f"made QEMU open {printable(shown)}, which was not allowed: not read",
                    path=self._name,
                )

    def connect(self) -> NbdClient:
        """Return a new connection to the image.

        Raises:
            QemuError: the daemon has ended, or does not answer.
        """
        try:
            return NbdClient.connect_unix(
                f"/proc/self/fd/{self._place}",
                EXPORT,
                (ALLOCATION,),
                name=self._name,
                timeout=self._timeout,
            )
        except NbdError as error:
            raise self.explained(error) from None

    def explained(self, error: NbdError) -> QemuError:
        """Return what to raise for an error of a connection: the daemon's end, if that is why."""
        ended = self._ended()
        return error if ended is None else QemuError(f"{self._name}: {ended}")

    def _ended(self) -> str | None:
        if self._child is None or self._child.wait(_GRACE) is None:
            return None
        return self._child.how_it_ended()

    def close(self) -> None:
        """End the daemon. Closing twice is allowed."""
        session, child, self._session, self._child = self._session, self._child, None, None
        grace = 0.0
        if session is not None and child is not None and child.status is None:
            with contextlib.suppress(QmpError):
                session.execute("quit", timeout=_GRACE)
                grace = _GRACE
        try:
            if child is not None:
                child.close(grace)
        finally:
            if session is not None:
                session.close()
            if self._place >= 0:
                os.close(self._place)
                self._place = -1
