"""Becomes another program that dies with its parent. Run as a script, it imports nothing of ours.

    launch.py PARENT DOOR [PROGRAM ARGUMENT...]

PARENT is the process that must live. Where DOOR is a connected unix socket's descriptor and not
-1, a listening unix socket is made, and what is needed to connect to it is sent through the door:
a descriptor of its place in the file system, which then has no name there any more. Without a
PROGRAM the listening descriptor is sent behind it, and that is all. It is done here and not by
the parent because this process goes on when the parent is killed, so that the name is removed in
any case.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys

_PR_SET_PDEATHSIG = 1
_BACKLOG = 64


def listen() -> tuple[socket.socket, int]:
    """Make a listening socket; return it, and a descriptor of its place."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = os.path.join(os.environ["TMPDIR"], f"qcowdelta-{os.getpid()}-{os.urandom(8).hex()}")
    os.mkdir(folder, 0o700)  # also while the socket has a name, nobody else can connect
    at = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        # Through the descriptor: a socket's address has no room for a long name.
        listener.bind(f"/proc/self/fd/{at}/nbd")
        place = os.open("nbd", os.O_PATH, dir_fd=at)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink("nbd", dir_fd=at)
        os.rmdir(folder)
        os.close(at)
    listener.listen(_BACKLOG)
    return listener, place


def open_door(door: int, argv: list[str]) -> list[str]:
    """Make the socket, send what is wanted of it, and return the program's words."""
    listener, place = listen()
    with socket.socket(fileno=door) as way:
        socket.send_fds(way, [b"."], [place, *([] if argv else [listener.fileno()])])
    os.set_inheritable(listener.fileno(), True)
    number = str(listener.detach())
    os.close(place)
    return [word.replace("{door}", number) for word in argv]


def launch() -> None:
    """Do what the module says."""
    parent, door, argv = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    if door >= 0:
        argv = open_door(door, argv)
    if not argv:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == parent:  # else it ended before the kernel was told to watch it
        os.execv(argv[0], argv)  # noqa: S606 # no shell is wanted


if __name__ == "__main__":
    try:
        launch()
    except OSError as error:
        raise SystemExit(str(error)) from None
