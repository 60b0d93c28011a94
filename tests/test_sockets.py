"""The socket that a VM's NBD server listens on: reached by us alone, and left behind by no kill."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qcowdelta.errors import QemuError
from qcowdelta.qemu.sockets import PrivateListener
from tests.support.killing import LIMIT

MAKING = """
from qcowdelta.qemu.sockets import PrivateListener
while True:
    PrivateListener().close()
"""


def folder(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(path))
    return path


def test_it_can_be_connected_to_though_it_has_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = folder(tmp_path, monkeypatch)
    with PrivateListener() as listener, socket.socket(socket.AF_UNIX) as client:
        assert not os.listdir(empty)
        client.connect(listener.path)
        with socket.socket(fileno=os.dup(listener.fileno())) as server:
            accepted, _ = server.accept()
        with accepted:
            client.sendall(b"here")
            assert accepted.recv(4) == b"here"


def test_neither_descriptor_is_inherited() -> None:
    with PrivateListener() as listener:
        assert not os.get_inheritable(listener.fileno())
        assert not os.get_inheritable(int(listener.path.rpartition("/")[2]))


def test_no_folder_for_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "missing", monkeypatch)
    with pytest.raises(QemuError, match=r"socket for QEMU's NBD server.*missing"):
        PrivateListener()


@pytest.mark.slow
def test_killed_while_making_it_leaves_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    for _ in range(20):
        process = subprocess.Popen([sys.executable, "-c", MAKING], env=environment)
        time.sleep(random.uniform(0.2, 0.6))
        assert process.poll() is None
        process.kill()
        process.wait()
    until = time.monotonic() + LIMIT
    while os.listdir(tmp_path) and time.monotonic() < until:
        time.sleep(0.01)
    assert not os.listdir(tmp_path)
