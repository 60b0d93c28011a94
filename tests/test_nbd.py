"""The NBD client: what a server says is held against what was asked for."""

from __future__ import annotations

import random
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from qcowdelta.errors import NbdError
from qcowdelta.qemu.nbd import ALLOCATION, ZERO, NbdClient
from tests.support import qemu

MIB = 1 << 20
SIZE = 4 * MIB
CONTENT = random.Random(4).randbytes(SIZE)
CONTEXT = 7

Answer = Callable[["Server", int, int, int, int], None]
"""Answers a request: its type, cookie, offset and length."""


class Server(threading.Thread):
    """A server that talks as told, at the other end of :attr:`client`."""

    def __init__(
        self,
        answer: Answer,
        *,
        structured: bool = True,
        greeting: bytes = b"NBDMAGICIHAVEOPT\0\3",
        size: int = SIZE,
        block: tuple[int, int, int] = (1, 4096, 32 * MIB),
        grant: str = ALLOCATION,
    ) -> None:
        super().__init__(daemon=True)
        self.client, self.sock = socket.socketpair()
        self.answer, self.structured, self.greeting = answer, structured, greeting
        self.size, self.block, self.grant = size, block, grant
        self.start()

    def run(self) -> None:
        try:
            self.sock.sendall(self.greeting)
            self._receive(4)
            while self._option():
                pass
            while True:
                _, _, kind, cookie, offset, length = struct.unpack(">IHHQQI", self._receive(28))
                if kind == 2:
                    return
                self.answer(self, kind, cookie, offset, length)
        except (ConnectionError, EOFError, OSError):
            pass
        finally:
            self.sock.close()

    def _receive(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            piece = self.sock.recv(length - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def _option(self) -> bool:
        _, option, length = struct.unpack(">QII", self._receive(16))
        self._receive(length)
        if option == 8:
            self._reply(option, 1 if self.structured else (1 << 31) + 1)
        elif option == 10:
            self._reply(option, 4, struct.pack(">I", CONTEXT) + self.grant.encode())
            self._reply(option, 1)
        else:
            self._reply(option, 3, struct.pack(">HQH", 0, self.size, 1))
            self._reply(option, 3, struct.pack(">HIII", 3, *self.block))
            self._reply(option, 1)
        return int(option) != 7

    def _reply(self, option: int, kind: int, data: bytes = b"") -> None:
        head = struct.pack(">QIII", 0x0003E889045565A9, option, kind, len(data))
        self.sock.sendall(head + data)

    def chunk(self, cookie: int, kind: int, data: bytes, *, done: bool = True) -> None:
        head = struct.pack(">IHHQI", 0x668E33EF, done, kind, cookie, len(data))
        self.sock.sendall(head + data)

    def data(self, cookie: int, at: int, data: bytes, *, done: bool = True) -> None:
        self.chunk(cookie, 1, struct.pack(">Q", at) + data, done=done)

    def status(self, cookie: int, *rows: tuple[int, int], context: int = CONTEXT) -> None:
        data = struct.pack(">I", context) + b"".join(struct.pack(">II", *row) for row in rows)
        self.chunk(cookie, 5, data)


def honest(server: Server, kind: int, cookie: int, offset: int, length: int) -> None:
    if kind == 0:
        server.data(cookie, offset, CONTENT[offset : offset + length])
    else:
        server.status(cookie, (length, 0))


def client(server: Server, timeout: float = 10.0) -> NbdClient:
    return NbdClient(server.client, "x", name="disk.vdi", timeout=timeout)


def read(nbd: NbdClient, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    nbd.read_into(memoryview(buffer), offset)
    return bytes(buffer)


def refuses(answer: Answer, says: str, timeout: float = 10.0, length: int = 4096) -> None:
    with client(Server(answer), timeout) as nbd:
        with pytest.raises(NbdError, match=says) as caught:
            read(nbd, 0, length)
        assert str(caught.value).startswith("disk.vdi: NBD: ")


# --- reading --------------------------------------------------------------------------------------


def test_long_read_is_split_and_put_together() -> None:
    with client(Server(honest)) as nbd:
        assert nbd.size == SIZE
        assert read(nbd, 12345, SIZE - 12345) == CONTENT[12345:]
        assert read(nbd, 5, 0) == b""


def test_server_without_structured_replies_is_read() -> None:
    def simple(server: Server, _kind: int, cookie: int, offset: int, length: int) -> None:
        head = struct.pack(">IIQ", 0x67446698, 0, cookie)
        server.sock.sendall(head + CONTENT[offset : offset + length])

    with client(Server(simple, structured=False)) as nbd:
        assert nbd.contexts == frozenset()
        assert read(nbd, 0, SIZE) == CONTENT
        with pytest.raises(ValueError, match="not granted"):
            nbd.block_status(ALLOCATION, 0, SIZE)


def test_pieces_and_holes_in_any_order_are_put_together() -> None:
    def torn(server: Server, _kind: int, cookie: int, offset: int, length: int) -> None:
        half = length // 2
        server.data(cookie, offset + half, CONTENT[offset + half : offset + length], done=False)
        server.chunk(cookie, 2, struct.pack(">QI", offset, half))

    with client(Server(torn)) as nbd:
        assert read(nbd, 0, 8192) == bytes(4096) + CONTENT[4096:8192]


def test_replies_come_in_another_order_than_requests() -> None:
    waiting: list[tuple[int, int, int]] = []

    def late(server: Server, _kind: int, cookie: int, offset: int, length: int) -> None:
        waiting.append((cookie, offset, length))
        if len(waiting) == 4:
            while waiting:
                last, at, size = waiting.pop()
                server.data(last, at, CONTENT[at : at + size])

    with client(Server(late)) as nbd:
        assert read(nbd, 0, SIZE) == CONTENT


def test_blocks_of_the_server_are_respected_and_callers_need_not_care() -> None:
    asked: list[tuple[int, int]] = []

    def strict(server: Server, kind: int, cookie: int, offset: int, length: int) -> None:
        asked.append((offset, length))
        honest(server, kind, cookie, offset, length)

    with client(Server(strict, block=(4096, 4096, 64 << 10))) as nbd:
        assert read(nbd, 4095, 70000) == CONTENT[4095 : 4095 + 70000]
        assert nbd.block_status(ALLOCATION, 5, 9).tolist() == [[5, 4, 0]]
    assert all(offset % 4096 == 0 and length % 4096 == 0 for offset, length in asked)
    assert all(length <= 64 << 10 for _, length in asked)


def test_error_reply_is_told_and_the_connection_goes_on() -> None:
    def failing(server: Server, kind: int, cookie: int, offset: int, length: int) -> None:
        if offset == 0:
            said = b"the disk is \x1b[31mon fire"
            server.chunk(cookie, 0x8001, struct.pack(">IH", 5, len(said)) + said)
        else:
            honest(server, kind, cookie, offset, length)

    with client(Server(failing)) as nbd:
        with pytest.raises(NbdError, match=r"EIO.*on fire.*offset 0x0") as caught:
            read(nbd, 0, SIZE)
        assert "\x1b" not in str(caught.value)
        assert read(nbd, MIB, 4096) == CONTENT[MIB : MIB + 4096]


def test_range_outside_of_the_export_is_a_mistake_of_the_caller() -> None:
    with client(Server(honest)) as nbd:
        for start, stop in ((-1, 5), (SIZE - 1, SIZE + 1)):
            with pytest.raises(ValueError, match="outside"):
                read(nbd, start, stop - start)


# --- servers that lie -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda s, k, c, o, n: s.data(c, o, bytes(n + 1)), id="too much"),
        pytest.param(lambda s, k, c, o, n: s.data(c, o, bytes(n - 1)), id="too little"),
        pytest.param(lambda s, k, c, o, n: s.data(c, o + n, bytes(n)), id="elsewhere"),
        pytest.param(lambda s, k, c, o, n: s.data(c, (1 << 64) - 1, bytes(n)), id="far away"),
        pytest.param(lambda s, k, c, o, n: s.data(c + 9, o, bytes(n)), id="not asked"),
        pytest.param(lambda s, k, c, o, n: s.chunk(c, 0, b""), id="nothing"),
        pytest.param(lambda s, k, c, o, n: s.chunk(c, 9, b"x"), id="unknown"),
        pytest.param(lambda s, k, c, o, n: s.chunk(c, 1, b""), id="no offset"),
        pytest.param(
            lambda s, k, c, o, n: s.chunk(c, 2, struct.pack(">QI", o, 0xFFFFFFFF)), id="vast hole"
        ),
        pytest.param(lambda s, k, c, o, n: s.chunk(c, 0x8001, b"x" * 5), id="short error"),
        pytest.param(
            lambda s, k, c, o, n: s.sock.sendall(
                struct.pack(">IHHQI", 0x668E33EF, 1, 0x8001, c, 0xFFFFFFF0)
            ),
            id="vast error",
        ),
        pytest.param(lambda s, k, c, o, n: s.sock.sendall(b"HTTP/1.1 200 OK\r\n"), id="http"),
        pytest.param(lambda s, k, c, o, n: s.sock.close(), id="gone"),
        pytest.param(
            lambda s, k, c, o, n: (
                s.data(c, o, bytes(n // 2), done=False),
                s.data(c, o, bytes(n // 2)),
            ),
            id="twice",
        ),
    ],
)
def test_reply_that_is_no_answer_is_refused(answer: Answer) -> None:
    refuses(answer, "cannot be talked to any more")


def test_server_that_hangs_is_given_up() -> None:
    began = time.monotonic()
    refuses(lambda *_: None, r"did not answer within 0\.5 s", timeout=0.5)
    assert time.monotonic() - began < 5


def test_server_that_hangs_in_its_greeting_is_given_up() -> None:
    ours, _theirs = socket.socketpair()
    with pytest.raises(NbdError, match="did not answer"):
        NbdClient(ours, "x", name="disk.vdi", timeout=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("greeting", [b"QEMU" * 5, b"NBDMAGICIHAVEOPT\0\0", b"NBD"])
def test_what_is_no_nbd_server_is_refused(greeting: bytes) -> None:
    server = Server(honest, greeting=greeting)
    with pytest.raises(NbdError, match=r"cannot be talked to|did not answer"):
        client(server, timeout=0.5)


@pytest.mark.parametrize("block", [(0, 1, 1), (3, 4, 8), (1 << 20, 1 << 20, 1 << 20), (4096, 1, 1)])
def test_block_sizes_that_make_no_sense_are_refused(block: tuple[int, int, int]) -> None:
    with pytest.raises(NbdError, match="block sizes"):
        client(Server(honest, block=block))


def test_size_beyond_all_measure_is_refused() -> None:
    with pytest.raises(NbdError, match="an export of"):
        client(Server(honest, size=1 << 63))


def test_context_that_was_not_asked_for_is_not_granted() -> None:
    with client(Server(honest, grant="other:context")) as nbd:
        assert nbd.contexts == frozenset()


def test_nothing_is_sent_on_a_broken_connection() -> None:
    with client(Server(lambda s, k, c, o, n: s.chunk(c, 9, b"x"))) as nbd:
        for says in ("cannot be talked to", "closed"):
            with pytest.raises(NbdError, match=says):
                read(nbd, 0, 512)
        nbd.close()


# --- block status ---------------------------------------------------------------------------------


def test_status_is_asked_until_the_range_is_tiled() -> None:
    def short(server: Server, _kind: int, cookie: int, offset: int, length: int) -> None:
        flags = 0 if offset < MIB else 3
        server.status(cookie, (min(length, 100_000), flags), (4, flags))

    with client(Server(short)) as nbd:
        rows = nbd.block_status(ALLOCATION, 1000, SIZE)
    assert rows[0, 0] == 1000
    assert (rows[1:, 0] == rows[:-1, 0] + rows[:-1, 1]).all()
    assert rows[-1, 0] + rows[-1, 1] == SIZE
    assert rows[:, 2].tolist() == [0, 3]


def test_status_beyond_the_range_is_cut() -> None:
    with client(Server(lambda s, k, c, o, n: s.status(c, (0xFFFFFFFF, 1)))) as nbd:
        assert nbd.block_status(ALLOCATION, 512, 1024).tolist() == [[512, 512, 1]]
        assert nbd.block_status(ALLOCATION, 7, 7).shape == (0, 3)


def test_status_of_another_context_is_passed_over() -> None:
    def both(server: Server, _kind: int, cookie: int, offset: int, length: int) -> None:
        other = struct.pack(">III", 99, length, 1)
        server.chunk(cookie, 5, other, done=False)
        server.status(cookie, (length, 2))

    with client(Server(both)) as nbd:
        assert nbd.block_status(ALLOCATION, 0, SIZE).tolist() == [[0, SIZE, 2]]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda s, k, c, o, n: s.status(c, (0, 0)), id="empty run"),
        pytest.param(lambda s, k, c, o, n: s.status(c), id="no run"),
        pytest.param(lambda s, k, c, o, n: s.status(c, (n, 0), context=3), id="other context"),
        pytest.param(lambda s, k, c, o, n: s.chunk(c, 5, b"x" * 15), id="torn"),
        pytest.param(lambda s, k, c, o, n: s.data(c, o, b"x"), id="data"),
        pytest.param(lambda s, k, c, o, n: s.chunk(c, 0, b""), id="nothing"),
        pytest.param(
            lambda s, k, c, o, n: s.sock.sendall(
                struct.pack(">IHHQI", 0x668E33EF, 1, 5, c, 0xFFFFFFFC)
            ),
            id="vast",
        ),
    ],
)
def test_status_that_is_no_answer_is_refused(answer: Answer) -> None:
    with client(Server(answer)) as nbd, pytest.raises(NbdError, match="cannot be talked to"):
        nbd.block_status(ALLOCATION, 0, SIZE)


# --- QEMU's own server ----------------------------------------------------------------------------


@contextmanager
def exported(folder: Path, *image: str) -> Iterator[Path]:
    qemu.require("qemu-nbd")
    path = folder / "socket"
    argv = [qemu.program("qemu-nbd"), "-r", "-t", "-e", "4", "-k", str(path), *image]
    server = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 10
        while not path.exists() and time.monotonic() < until:
            time.sleep(0.01)
        yield path
    finally:
        server.terminate()
        server.wait()


@pytest.mark.parametrize("align", [512, 4096])
def test_qemu_is_read_at_any_place(align: int, tmp_path: Path) -> None:
    raw = tmp_path / "x.raw"
    content = bytearray(CONTENT)
    content[MIB : 2 * MIB] = bytes(MIB)
    raw.write_bytes(content)
    path = tmp_path / "x.qcow2"
    qemu.convert(raw, path, source_fmt="raw", target_fmt="qcow2")
    graph = f"driver=blkdebug,align={align},image.driver=qcow2,image.file.filename={path}"
    chance = random.Random(align)
    with (
        exported(tmp_path, "--image-opts", graph) as server,
        NbdClient.connect_unix(server, "") as nbd,
    ):
        assert nbd.size == SIZE
        for _ in range(40):
            start = chance.randrange(SIZE)
            length = chance.randrange(min(SIZE - start, 3 * MIB))
            assert read(nbd, start, length) == content[start : start + length]
        rows = nbd.block_status(ALLOCATION, 0, SIZE)
        zeros = rows[rows[:, 2] & ZERO != 0]
        assert np.array_equal(zeros[:, :2], [[MIB, MIB]])
        with pytest.raises(NbdError, match="the export was refused"):
            NbdClient.connect_unix(server, "no such export")


def test_socket_on_which_nobody_listens_is_told(tmp_path: Path) -> None:
    with pytest.raises(NbdError, match="cannot be reached"):
        NbdClient.connect_unix(tmp_path / "none", "")
