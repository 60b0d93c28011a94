"""Where there is no storage daemon: qemu-img converts the image to a raw copy without a name."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator

from ..errors import PathName, QemuError, printable
from ..secret import Secret
from .daemon import SECRET
from .graph import Graph
from .programs import Child

INFO_TIMEOUT = 60.0
"""Seconds that opening the image may take; converting may take as long as it does."""
_MAX_INFO = 1 << 20


def converted(graph: Graph, program: str) -> int:
    """Return the descriptor of a raw copy of an image, in the folder for temporary files.

    It has no name from the beginning, so nothing of it stays when we are killed.

    Raises:
        QemuError: qemu-img failed.
        OSError: there can be no such file.
    """
    with contextlib.ExitStack() as stack:
        source = "json:" + json.dumps(graph.node)
        objects, fds = _secret(graph.secret, stack)
        stack.enter_context(_remarks(graph.secret))
        size = _virtual_size(graph, program, [*objects, source], fds, stack)
        copy = _nameless()
        try:
            os.ftruncate(copy, size)
            argv = [program, "convert", "-n", "-O", "raw", "--target-is-zero", "-m", "16", "-W"]
            argv += [*objects, source, f"/dev/fd/{copy}"]
            _run(graph.path, argv, [*fds, *graph.fds, copy], None)
        except BaseException:
            os.close(copy)
            raise
        return copy


def _virtual_size(
    graph: Graph, program: str, words: list[str], fds: list[int], stack: contextlib.ExitStack
) -> int:
    answer = os.memfd_create("qcowdelta-info", os.MFD_CLOEXEC)
    stack.callback(os.close, answer)
    argv = [program, "measure", "--output=json", "-O", "raw", *words]
    _run(graph.path, argv, [*fds, *graph.fds], INFO_TIMEOUT, answer)
    try:
        size = json.loads(os.pread(answer, _MAX_INFO, 0))["required"]
    except (ValueError, KeyError, TypeError):
        size = None
    if not isinstance(size, int) or not 0 <= size < 1 << 63:
        raise QemuError(f"{printable(graph.path)}: qemu-img does not tell its size")
    return size


def _secret(secret: Secret | None, stack: contextlib.ExitStack) -> tuple[list[str], list[int]]:
    """Return the words that give qemu-img a secret, and the descriptor it reads that from."""
    if secret is None:
        return [], []
    fd = os.memfd_create("qcowdelta-secret", os.MFD_CLOEXEC)
    stack.callback(os.close, fd)
    os.write(fd, secret.base64.encode("ascii"))
    return ["--object", f"secret,id={SECRET},format=base64,file=/dev/fd/{fd}"], [fd]


@contextlib.contextmanager
def _remarks(secret: Secret | None) -> Iterator[None]:
    """Add to an error what is to be said of the secret."""
    try:
        yield
    except QemuError as error:
        remark = "" if secret is None else secret.remark(str(error))
        if not remark:
            raise
        raise QemuError(f"{error}{remark}") from None


def _run(
    path: PathName, argv: list[str], fds: list[int], timeout: float | None, out: int | None = None
) -> None:
    child = Child(argv, fds, out=out)
    try:
        if child.wait(timeout) is None:
            raise QemuError(f"{printable(path)}: qemu-img did not answer within {timeout:g} s")
        if child.status != 0:
            raise QemuError(
                f"{printable(path)}: qemu-img cannot read it, or write a copy to "
                f"{tempfile.gettempdir()}, which TMPDIR changes: {child.how_it_ended()}"
            )
    finally:
        child.close()


def _nameless() -> int:
    """Return the descriptor of a new file without a name."""
    folder = tempfile.gettempdir()
    with contextlib.suppress(OSError):
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fd, name = tempfile.mkstemp(prefix="qcowdelta-", dir=folder)
    os.unlink(name)
    return fd
