"""A QMP session with a QEMU, or its storage daemon, for code that is not asynchronous.

The session's event loop runs in a thread of its own, so it may be used from any thread, and
commands may be in flight from several. What a command was given (a LUKS secret, for one) is in no
error's text and in no log: qemu.qmp's logger of this session is switched off, since it writes
whole messages.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

from qemu.qmp import ConnectError, ExecuteError, QMPClient, QMPError
from qemu.qmp.events import EventListener

from ..errors import PathName, QmpBusyError, QmpError, QmpLostError, QmpTimeoutError, printable

T = TypeVar("T")

Event: TypeAlias = Mapping[str, Any]

TIMEOUT = 10.0
"""How long a command may take, seconds, where nothing else is said."""
_UCRED = struct.Struct("3i")  # process, user, group
_RETRY = 0.05  # s; between tries to connect to a socket whose queue is full
_GRACE = 5.0  # s; what the loop's thread gets for noticing that a time-out has passed


class QmpSession:
    """A connection to a QMP monitor, greeted and ready. Use as a context manager, or close it.

    Args:
        target: the path of the monitor's unix socket, or a connected socket, which the session
            owns from then on.
        timeout: how long connecting, and each command, may take, seconds.

    Raises:
        QmpBusyError: the greeting did not come in time: another client holds the monitor.
        QmpLostError: what answered speaks no QMP, or went away.
        QmpError: there is no such socket, or nothing listens on it.
    """

    def __init__(self, target: PathName | socket.socket, *, timeout: float = TIMEOUT) -> None:
        self.timeout = timeout
        self._path: str | None
        until = time.monotonic() + timeout
        if isinstance(target, socket.socket):
            self._path, self._socket, self.name = None, target, "the monitor"
        else:
            self._path, self._socket = os.fspath(target), _connect(target, until)
            self.name = printable(target)
        self._schema: dict[str, Any] | None = None
        self._loop = asyncio.new_event_loop()
        # What asyncio would log of tasks that nobody waits for any more is in our errors.
        self._loop.set_exception_handler(lambda _loop, _context: None)
        self._thread = threading.Thread(target=self._run_loop, name="qcowdelta-qmp", daemon=True)
        self._thread.start()
        try:
            self._client = self._wait(self._greeted(until), timeout, "greeting")
        except QmpTimeoutError as error:
            self._stop_loop()
            raise (error if self._path is None else self._busy()) from None
        except BaseException:
            self._stop_loop()
            raise

    def __enter__(self) -> QmpSession:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def peer(self) -> int | None:
        """The process that listens on the monitor's socket, QEMU as a rule; None: not known."""
        try:
            found = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        except OSError:
            return None
        return _UCRED.unpack(found)[0] or None  # 0: it is in another namespace

    def reconnect(self) -> QmpSession:
        """Return a new session with what listens at the same place now.

        Raises:
            QmpError: as for a new session; also where this one was given a socket.
        """
        if self._path is None:
            raise QmpLostError(f"{self.name}: it cannot be connected to again")
        return QmpSession(self._path, timeout=self.timeout)

    def close(self) -> None:
        """End the session. Closing twice is allowed, and so is closing one whose peer is dead."""
        if self._loop.is_closed():
            return
        with contextlib.suppress(Exception):
            self._wait(self._client.disconnect(), self.timeout, "disconnect")
        self._stop_loop()

    def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout: float | None = None,
    ) -> Any:
        """Execute a command and return what it returns.

        Args:
            command: its name.
            arguments: its arguments, of what JSON has; they are repeated in no error.
            timeout: seconds, instead of the session's.

        Raises:
            QmpError: QEMU refused it; ``error_class`` and ``desc`` are what it said.
            QmpTimeoutError: no answer in time. Whether it was, or will be, done is not known.
            QmpLostError: the peer has gone.
        """
        return self._wait(self._client_call(command, arguments), timeout, command)

    def send_fd(self, fd: int) -> None:
        """Send a descriptor along with the next command, which has to be ``getfd`` or ``add-fd``.

        The caller's own descriptor stays open, and the caller's to close.

        Raises:
            QmpLostError: the peer has gone.
        """

        async def send() -> None:
            self._client.send_fd_scm(fd)

        self._wait(send(), None, "getfd")

    @contextlib.contextmanager
    def listen(self, *names: str) -> Iterator[Events]:
        """Collect events of these names while the block runs: enter it before the command."""
        listener = self._wait(_listener(self._client, names), None, "listen")
        try:
            yield Events(self, listener)
        finally:
            with contextlib.suppress(QmpError):
                self._wait(_forget(self._client, listener), None, "listen")

    def has(self, feature: str) -> bool:
        """Tell whether QEMU has a command, or an argument, value or variant of one.

        Args:
            feature: names along the way from the command, joined by colons: ``getfd``,
                ``block-dirty-bitmap-add:persistent``, ``blockdev-add:copy-before-write``,
                ``blockdev-add:copy-before-write:on-cbw-error``.
        """
        if self._schema is None:
            entities = self.execute("query-qmp-schema")
            self._schema = {entity["name"]: entity for entity in entities}
        command, *path = feature.split(":")
        entity = self._schema.get(command)
        if entity is None or entity["meta-type"] != "command":
            return False
        kinds = [entity["arg-type"]]
        for word in path:
            kinds = [found for kind in kinds for found in _step(self._schema, kind, word)]
        return bool(kinds)

    def _busy(self) -> QmpBusyError:
        return QmpBusyError(
            f"{self.name}: no QMP greeting within {self.timeout:g} s: another client holds this "
            "monitor, which serves one at a time; end that one, or give the VM a second monitor "
            "(another -qmp option)"
        )

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _stop_loop(self) -> None:
        ended = asyncio.run_coroutine_threadsafe(_end_tasks(), self._loop)
        with contextlib.suppress(TimeoutError, concurrent.futures.CancelledError):
            ended.result(_GRACE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_GRACE)
        if not self._thread.is_alive():
            self._loop.close()
        self._socket.close()

    async def _greeted(self, until: float) -> QMPClient:
        # Made in the loop's thread. A name gives it a logger of its own, to be switched off.
        client = QMPClient(f"qcowdelta-{id(self):x}")
        client.logger.disabled = True
        client.events.event_filter = lambda _event: False  # else it keeps every event for ever
        self._socket.setblocking(False)
        await asyncio.wait_for(client.connect(self._socket), max(0.0, until - time.monotonic()))
        return client

    async def _client_call(self, command: str, arguments: Mapping[str, object] | None) -> object:
        return await self._client.execute(command, arguments)

    def _wait(self, work: Coroutine[Any, Any, T], timeout: float | None, command: str) -> T:
        """Run work in the loop's thread and wait for it, at most ``timeout`` seconds.

        qemu.qmp's errors carry the whole message that was sent: none is chained to ours.
        """
        if self._loop.is_closed():
            work.close()
            raise QmpLostError(f"{self.name}: the session is closed", command=command)
        limit = self.timeout if timeout is None else timeout
        future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, limit), self._loop)
        try:
            return future.result(limit + _GRACE)
        except (TimeoutError, concurrent.futures.CancelledError):
            late = QmpTimeoutError(
                f"{self.name}: no answer to {command} within {limit:g} s", command=command
            )
        except ExecuteError as error:
            desc = printable(str(error))
            refused = QmpError(
                f"{self.name}: {command}: {desc}",
                command=command,
                error_class=error.error_class,
                desc=desc,
            )
            raise refused from None
        except ConnectError as error:
            raise self._lost(command, error.exc) from None
        except (QMPError, OSError, EOFError) as error:
            raise self._lost(command, error) from None
        except BaseException:
            future.cancel()
            raise
        future.cancel()
        raise late from None

    def _lost(self, command: str, error: Exception) -> QmpLostError:
        # The class alone: the text of some has the message that was sent.
        return QmpLostError(
            f"{self.name}: the QMP connection was lost at {command} ({type(error).__name__}); "
            "has QEMU ended?",
            command=command,
        )


class Events:
    """Events that have come since the listening began."""

    def __init__(self, session: QmpSession, listener: EventListener) -> None:
        self._session, self._listener = session, listener

    def wait(
        self, predicate: Callable[[Event], bool] = lambda _event: True, timeout: float | None = None
    ) -> Event:
        """Return the first event for which the predicate holds; those before it are dropped.

        Raises:
            QmpTimeoutError: none came in time; the default is the session's time-out.
        """

        async def next_event() -> Event:
            while True:
                event: Event = await self._listener.get()
                if predicate(event):
                    return event

        names = " or ".join(sorted(self._listener.names))
        return self._session._wait(next_event(), timeout, f"the event {names}")


async def _end_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _listener(client: QMPClient, names: tuple[str, ...]) -> EventListener:
    listener = EventListener(names)
    client.register_listener(listener)
    return listener


async def _forget(client: QMPClient, listener: EventListener) -> None:
    client.remove_listener(listener)


def _connect(path: PathName, until: float) -> socket.socket:
    """Connect to a unix socket, waiting while its queue of connections is full."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)  # else it waits by itself, and for ever
        with _short_name(path) as name:
            while True:
                try:
                    sock.connect(name)
                    return sock
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise
                    time.sleep(_RETRY)
    except BlockingIOError:
        sock.close()
        raise QmpBusyError(
            f"{printable(path)}: its queue of connections is full: other clients hold, and wait "
            "for, this monitor; end those, or give the VM a second one (another -qmp option)"
        ) from None
    except OSError as error:
        sock.close()
        raise QmpError(f"{printable(path)}: {_cannot(path, error)}") from error
    except BaseException:
        sock.close()
        raise


@contextlib.contextmanager
def _short_name(path: PathName) -> Iterator[str]:
    """Give a name for a socket that is short enough for its address, 107 bytes."""
    folder, name = os.path.split(os.fspath(path))
    fd = os.open(folder or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)


def _cannot(path: PathName, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such socket; start the VM with -qmp unix:PATH,server=on,wait=off"
    if isinstance(error, ConnectionRefusedError):
        return (
            "nothing listens on this socket; has the VM ended?"
            if stat.S_ISSOCK(os.stat(path).st_mode)
            else "is no socket"
        )
    return f"cannot be connected to: {error.strerror or error}"


def _step(schema: Mapping[str, Any], kind: str, word: str) -> list[str]:
    """Return the types that a word leads to from a type of the schema; none: it has no such."""
    entity = schema[kind]
    meta = entity["meta-type"]
    if meta == "array":
        return _step(schema, entity["element-type"], word)
    if meta == "alternate":
        return [found for m in entity["members"] for found in _step(schema, m["type"], word)]
    if meta == "enum":
        return [kind] if any(word == member["name"] for member in entity["members"]) else []
    if meta != "object":
        return []
    found = [member["type"] for member in entity["members"] if member["name"] == word]
    return found + [each["type"] for each in entity.get("variants", ()) if each["case"] == word]
