"""An NBD client: reads one export of a server over one connection.

Fixed newstyle negotiation with structured replies and block status, as the NBD project's
doc/proto.md has it; a server without structured replies is read all the same. Nothing that the
server says about lengths is believed before it has been held against what was asked for.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from ..errors import NbdError, PathName, printable
from ..extents import Offsets
from ..units import MIB, align_down, align_up

ALLOCATION = "base:allocation"
"""The context whose flags are :data:`HOLE` and :data:`ZERO`; 0 means data."""
HOLE, ZERO = 1, 2

DEFAULT_TIMEOUT = 60.0
"""Seconds without an answer after which a server counts as hung."""

# Numbers of doc/proto.md.
_INIT = 0x4E42444D41474943
_OPTION = 0x49484156454F5054
_OPTION_REPLY = 0x0003E889045565A9
_REQUEST, _SIMPLE_REPLY, _STRUCTURED_REPLY = 0x25609513, 0x67446698, 0x668E33EF
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_OPT_GO, _OPT_STRUCTURED, _OPT_SET_CONTEXT = 7, 8, 10
_REP_ACK, _REP_INFO, _REP_CONTEXT, _REP_ERROR = 1, 3, 4, 1 << 31
_INFO_EXPORT, _INFO_BLOCK_SIZE = 0, 3
_CAN_DF = 1 << 7
_CMD_READ, _CMD_DISCONNECT, _CMD_BLOCK_STATUS = 0, 2, 7
_FLAG_DF = 1 << 2
_CHUNK_DONE, _CHUNK_ERROR = 1, 1 << 15
_CHUNK_NONE, _CHUNK_DATA, _CHUNK_HOLE, _CHUNK_STATUS = 0, 1, 2, 5

# Small records, some of them read for every request: struct takes a microsecond for each.
_GREETING = struct.Struct(">QQH")
_OPTION_HEAD = struct.Struct(">QII")
_OPTION_REPLY_HEAD = struct.Struct(">QIII")
_REQUEST_HEAD = struct.Struct(">IHHQQI")
_SIMPLE_REST = struct.Struct(">IQ")
_STRUCTURED_REST = struct.Struct(">HHQI")
_U16, _U32, _U64 = struct.Struct(">H"), struct.Struct(">I"), struct.Struct(">Q")

_MAX_OPTION_REPLY = 64 << 10
_MAX_OPTION_REPLIES = 1024
_MAX_ERROR = 64 << 10
_MAX_STATUS_CHUNK = 16 * MIB
_MAX_NAME = 4096
_LONGEST_STATUS = 1 << 31  # bytes asked for at a time; the field has 32 bits
# Smaller than what a server's allocator gives back to the system each time, and than a cache.
_REQUEST_SIZE = MIB // 2
_IN_FLIGHT = 4
_TIMEVAL = struct.Struct("@ll")


class NbdClient:
    """One export of an NBD server. Not for use by two threads at a time.

    Args:
        sock: a connection on which nothing has been said yet; it is closed with the client.
        export: the name of the export.
        contexts: the metadata contexts to ask for; :attr:`contexts` has those granted.
        name: what the export is to people, for messages.
        timeout: how many seconds the server may stay silent.

    Attributes:
        size: the length of the export in bytes.
        contexts: the contexts that :meth:`block_status` can be asked about.
        block_size: what offsets and lengths on the wire are multiples of; callers need not care.

    Raises:
        NbdError: the server refused, hung, or does not speak the protocol.
    """

    def __init__(
        self,
        sock: socket.socket,
        export: str,
        contexts: Sequence[str] = (ALLOCATION,),
        *,
        name: str,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        self._name = name
        self._timeout = timeout
        self._socket: socket.socket | None = sock
        self._cookie = 0
        self._ids: dict[str, int] = {}
        self.size, self.block_size, self._max_request, self._flags = -1, 1, _REQUEST_SIZE, 0
        try:
            _limit_waiting(sock, timeout)
            self._structured = False
            self._negotiate(export, contexts)
        except BaseException:
            self._abandon()
            raise
        self.contexts = frozenset(self._ids)

    @classmethod
    def connect_unix(
        cls,
        path: PathName,
        export: str,
        contexts: Sequence[str] = (ALLOCATION,),
        *,
        name: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> NbdClient:
        """Connect to a server that listens on a unix socket.

        Raises:
            NbdError: it cannot be reached, or see the class.
        """
        shown = name if name is not None else f"{printable(path)}, export {printable(export)}"
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect(os.fspath(path))
        except OSError as error:
            sock.close()
            raise NbdError(
                f"{shown}: the NBD server cannot be reached: {error.strerror or error}"
            ) from error
        return cls(sock, export, contexts, name=shown, timeout=timeout)

    def __enter__(self) -> NbdClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Say goodbye and close the connection. Closing twice is allowed."""
        if self._socket is not None:
            with contextlib.suppress(OSError):  # it may have gone already
                self._socket.sendall(_REQUEST_HEAD.pack(_REQUEST, 0, _CMD_DISCONNECT, 0, 0, 0))
        self._abandon()

    def _abandon(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    # Reading

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset``; all of it must lie inside the export.

        Raises:
            NbdError: the server cannot read it, hung, or broke the protocol.
        """
        stop = offset + len(buffer)
        self._check_range(offset, stop)
        begin, end = self._around(offset, stop)
        if (begin, end) == (offset, stop):
            self._read_blocks(buffer, offset)
            return
        blocks = memoryview(bytearray(end - begin))
        self._read_blocks(blocks, begin)
        buffer[:] = blocks[offset - begin : stop - begin]

    def _read_blocks(self, buffer: memoryview, offset: int) -> None:
        """Read whole blocks, with some requests always under way."""
        waiting: dict[int, _Read] = {}
        failed: str | None = None
        sent = 0
        while waiting or (sent < len(buffer) and failed is None):
            while sent < len(buffer) and failed is None and len(waiting) < _IN_FLIGHT:
                length = min(self._max_request, len(buffer) - sent)
                cookie = self._send(_CMD_READ, offset + sent, length)
                waiting[cookie] = _Read(offset + sent, buffer[sent : sent + length])
                sent += length
            failed = self._take_reply(waiting) or failed
        if failed is not None:
            raise self._error(failed)

    def _take_reply(self, waiting: dict[int, _Read]) -> str | None:
        """Take one reply or chunk; return what the server says is wrong, if it does.

        After an error reply the connection is still good; what is under way is taken off it.
        """
        (magic,) = _U32.unpack(self._receive(4))
        if magic == _SIMPLE_REPLY:
            code, cookie = _SIMPLE_REST.unpack(self._receive(_SIMPLE_REST.size))
            read = self._find(waiting, cookie)
            del waiting[cookie]
            if code:
                return f"{_error_name(code)} at offset {read.offset:#x}"
            self._receive_into(read.buffer)
            return None
        if magic != _STRUCTURED_REPLY:
            raise self._broken(f"a reply begins with {magic:#x}")
        flags, kind, cookie, length = _STRUCTURED_REST.unpack(self._receive(_STRUCTURED_REST.size))
        read = self._find(waiting, cookie)
        if kind & _CHUNK_ERROR:
            read.failed = f"{self._take_error(length)} at offset {read.offset:#x}"
        else:
            self._take_content(read, kind, length)
        if not flags & _CHUNK_DONE:
            return None
        del waiting[cookie]
        if read.failed is None and not read.complete():
            raise self._broken(f"a read at {read.offset:#x} was not answered in full, or twice")
        return read.failed

    def _find(self, waiting: dict[int, _Read], cookie: int) -> _Read:
        read = waiting.get(cookie)
        if read is None:
            raise self._broken("a reply to what was not asked")
        return read

    def _take_content(self, read: _Read, kind: int, length: int) -> None:
        if kind == _CHUNK_DATA and length > 8:
            (at,) = _U64.unpack(self._receive(8))
            self._receive_into(self._part(read, at, length - 8))
        elif kind == _CHUNK_HOLE and length == 12:
            at, size = _U64.unpack(self._receive(8))[0], _U32.unpack(self._receive(4))[0]
            self._part(read, at, size)[:] = bytes(size if size <= len(read.buffer) else 0)
        elif kind != _CHUNK_NONE or length:
            raise self._broken(f"a chunk of type {kind} and {length} bytes answers a read")

    def _part(self, read: _Read, at: int, length: int) -> memoryview:
        """Return the part of a request's buffer that a chunk is for."""
        begin = at - read.offset
        if not length or begin < 0 or begin + length > len(read.buffer):
            raise self._broken(f"{length} bytes at {at:#x} are outside of the request")
        read.parts.append((begin, begin + length))
        return read.buffer[begin : begin + length]

    # Block status

    def block_status(self, context: str, start: int, stop: int) -> Offsets:
        """Return what a context says of ``[start, stop)``.

        Returns:
            An array of shape (n, 3): start, length and flags of each run. The runs tile the
            range exactly; neighbours differ in their flags.

        Raises:
            NbdError: the server cannot tell, hung, or broke the protocol.
            ValueError: the context was not granted.
        """
        if context not in self._ids:
            raise ValueError(f"the context {context} was not granted")
        self._check_range(start, stop)
        found: list[Offsets] = [np.empty((0, 2), np.int64)]
        position, end = self._around(start, stop)
        while position < end:
            length = min(end - position, align_down(_LONGEST_STATUS, self.block_size))
            rows = self._ask_status(self._ids[context], position, length)
            found.append(rows)
            position += int(rows[:, 0].sum())
        return _tile(np.concatenate(found), self._around(start, stop)[0], start, stop)

    def _ask_status(self, context: int, offset: int, length: int) -> Offsets:
        """Return length and flags of the runs from ``offset``, one at least."""
        cookie = self._send(_CMD_BLOCK_STATUS, offset, length)
        rows: Offsets | None = None
        failed: str | None = None
        done = False
        while not done:
            (magic,) = _U32.unpack(self._receive(4))
            if magic != _STRUCTURED_REPLY:
                raise self._broken(f"block status is answered by {magic:#x}")
            flags, kind, of, size = _STRUCTURED_REST.unpack(self._receive(_STRUCTURED_REST.size))
            if of != cookie:
                raise self._broken("a reply to what was not asked")
            done = bool(flags & _CHUNK_DONE)
            if kind & _CHUNK_ERROR:
                failed = f"{self._take_error(size)} at offset {offset:#x}"
            elif kind == _CHUNK_STATUS:
                number, found = self._take_status(size)
                rows = found if number == context else rows
            elif kind != _CHUNK_NONE or size:
                raise self._broken(f"a chunk of type {kind} answers block status")
        if failed is not None:
            raise self._error(failed)
        if rows is None:
            raise self._broken("block status was not answered")
        return rows

    def _take_status(self, size: int) -> tuple[int, Offsets]:
        if size < 12 or size % 8 != 4 or size > _MAX_STATUS_CHUNK:
            raise self._broken(f"a block status of {size} bytes")
        (number,) = _U32.unpack(self._receive(4))
        rows = np.frombuffer(self._receive(size - 4), ">u4").reshape(-1, 2).astype(np.int64)
        if not (rows[:, 0] > 0).all():
            raise self._broken("block status has an empty run")
        return number, rows

    # Negotiation

    def _negotiate(self, export: str, contexts: Sequence[str]) -> None:
        init, option, flags = _GREETING.unpack(self._receive(_GREETING.size))
        if (init, option) != (_INIT, _OPTION) or not flags & _FIXED_NEWSTYLE:
            raise self._broken("it does not speak the fixed newstyle protocol")
        if not flags & _NO_ZEROES:
            raise self._broken("it does not offer to leave out zeros behind its greeting")
        self._send_all(_U32.pack(_FIXED_NEWSTYLE | _NO_ZEROES))
        name = export.encode()
        if len(name) > _MAX_NAME or any(len(context) > _MAX_NAME for context in contexts):
            raise ValueError("a name of more than 4096 bytes")
        self._structured = self._option(_OPT_STRUCTURED, b"", _ignore, optional=True)
        if self._structured and contexts:
            self._ask_contexts(name, contexts)
        self._option(_OPT_GO, _named(name) + struct.pack(">HH", 1, _INFO_BLOCK_SIZE), self._info)
        if not 0 <= self.size < 1 << 63:
            raise self._broken(f"an export of {self.size} bytes")

    def _ask_contexts(self, name: bytes, contexts: Sequence[str]) -> None:
        wanted = set(contexts)

        def take(kind: int, data: bytes) -> None:
            if kind != _REP_CONTEXT or len(data) < 4:
                raise self._broken(f"option reply {kind} names a context")
            context = data[4:].decode("utf-8", "replace")
            if context in wanted:
                self._ids[context] = _U32.unpack(data[:4])[0]

        queries = b"".join(_named(context.encode()) for context in contexts)
        data = _named(name) + _U32.pack(len(contexts)) + queries
        self._option(_OPT_SET_CONTEXT, data, take, optional=True)

    def _info(self, kind: int, data: bytes) -> None:
        """Take what the server tells of the export."""
        if kind != _REP_INFO or len(data) < 2:
            raise self._broken(f"option reply {kind} tells of the export")
        (what,) = _U16.unpack(data[:2])
        if what == _INFO_EXPORT and len(data) == 12:
            self.size, self._flags = struct.unpack(">QH", data[2:])
        elif what == _INFO_BLOCK_SIZE and len(data) == 14:
            least, _, most = struct.unpack(">III", data[2:])
            if not least or least & (least - 1) or least > 64 << 10 or most < least:
                raise self._broken(f"block sizes from {least} to {most}")
            self.block_size = least
            self._max_request = max(align_down(min(_REQUEST_SIZE, most), least), least)

    def _option(
        self,
        option: int,
        data: bytes,
        take: Callable[[int, bytes], None],
        *,
        optional: bool = False,
    ) -> bool:
        """Ask for an option, and hand its replies on; return whether it was granted."""
        self._send_all(_OPTION_HEAD.pack(_OPTION, option, len(data)) + data)
        for _ in range(_MAX_OPTION_REPLIES):
            magic, of, kind, length = _OPTION_REPLY_HEAD.unpack(
                self._receive(_OPTION_REPLY_HEAD.size)
            )
            if magic != _OPTION_REPLY or of != option or length > _MAX_OPTION_REPLY:
                raise self._broken("an option is answered by something else")
            body = bytes(self._receive(length))
            if kind == _REP_ACK:
                return True
            if kind & _REP_ERROR:
                if optional:
                    return False
                text = printable(body) or f"error {kind & ~_REP_ERROR}"
                raise self._error(f"the export was refused: {text}")
            take(kind, body)
        raise self._broken("an option is answered without end")

    # The connection

    def _around(self, start: int, stop: int) -> tuple[int, int]:
        """Return the whole blocks around a range, as far as the export reaches."""
        return align_down(start, self.block_size), min(align_up(stop, self.block_size), self.size)

    def _check_range(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.size:
            raise ValueError(f"[{start:#x}, {stop:#x}) is outside of an export of {self.size:#x}")

    def _send(self, command: int, offset: int, length: int) -> int:
        """Send a request, and return its cookie."""
        self._cookie += 1
        # Without fragments the server need not look for holes, of which block status told.
        whole = command == _CMD_READ and self._structured and self._flags & _CAN_DF
        flags = _FLAG_DF if whole else 0
        self._send_all(_REQUEST_HEAD.pack(_REQUEST, flags, command, self._cookie, offset, length))
        return self._cookie

    def _send_all(self, data: bytes) -> None:
        try:
            self._open().sendall(data)
        except BlockingIOError as error:
            raise self._hung() from error
        except OSError as error:
            raise self._broken(error.strerror or str(error)) from error

    def _receive(self, length: int) -> memoryview:
        buffer = memoryview(bytearray(length))
        self._receive_into(buffer)
        return buffer

    def _receive_into(self, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            try:
                count = self._open().recv_into(buffer[done:], 0, socket.MSG_WAITALL)
            except BlockingIOError as error:
                raise self._hung() from error
            except OSError as error:
                raise self._broken(error.strerror or str(error)) from error
            if not count:
                raise self._broken("it closed the connection")
            done += count

    def _take_error(self, length: int) -> str:
        """Take an error chunk, and return its text."""
        if not 6 <= length <= _MAX_ERROR:
            raise self._broken(f"an error of {length} bytes")
        body = self._receive(length)
        code, size = _U32.unpack(body[:4])[0], _U16.unpack(body[4:6])[0]
        said = bytes(body[6 : 6 + size])
        return f"{_error_name(code)} ({printable(said)})" if said else _error_name(code)

    def _open(self) -> socket.socket:
        if self._socket is None:
            raise self._error("the connection is closed")
        return self._socket

    def _error(self, message: str) -> NbdError:
        return NbdError(f"{self._name}: NBD: {message}")

    def _broken(self, what: str) -> NbdError:
        """Give the connection up: it is not known any more what comes next on it."""
        self._abandon()
        return self._error(f"the server cannot be talked to any more: {what}")

    def _hung(self) -> NbdError:
        self._abandon()
        return self._error(f"the server did not answer within {self._timeout:g} s")


class _Read:
    """A read that is under way, and which parts of it have come."""

    def __init__(self, offset: int, buffer: memoryview) -> None:
        self.offset, self.buffer = offset, buffer
        self.parts: deque[tuple[int, int]] = deque()
        self.failed: str | None = None

    def complete(self) -> bool:
        """Tell whether each byte has come once."""
        position = 0
        for begin, end in sorted(self.parts):
            if begin != position:
                return False
            position = end
        return position == len(self.buffer)


def _tile(rows: Offsets, begin: int, start: int, stop: int) -> Offsets:
    """Turn lengths and flags from ``begin`` on into merged runs that tile ``[start, stop)``."""
    if start >= stop:
        return np.empty((0, 3), np.int64)
    first = np.flatnonzero(np.append(True, rows[1:, 1] != rows[:-1, 1]))
    edges = begin + np.concatenate([[0], np.cumsum(np.add.reduceat(rows[:, 0], first))])
    edges = np.clip(edges, start, stop)
    out = np.stack([edges[:-1], np.diff(edges), rows[first, 1]], axis=1).astype(np.int64)
    kept: Offsets = out[out[:, 1] > 0]
    return kept


def _named(name: bytes) -> bytes:
    return _U32.pack(len(name)) + name


def _ignore(kind: int, data: bytes) -> None:
    """Take an option reply that says nothing."""


def _error_name(code: int) -> str:
    return f"{errno.errorcode.get(code, f'error {code}')}: {os.strerror(code)}"


def _limit_waiting(sock: socket.socket, seconds: float) -> None:
    """Let the kernel end a wait.

    Python's own timeouts make the socket non-blocking, at the price of a poll for each call and
    of many short reads for one long.
    """
    sock.setblocking(True)
    value = _TIMEVAL.pack(int(seconds), int(seconds % 1 * 1_000_000))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
