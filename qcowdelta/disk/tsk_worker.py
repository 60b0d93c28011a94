"""The program in which The Sleuth Kit reads a file system, apart from everything else.

The Sleuth Kit is C, and what it reads comes from strangers, so it runs in a process of its own
that has no file open but a socket, and limits on time and memory. It asks for the volume's bytes
over the socket, and tells there what it finds.

Started as ``python tsk_worker.py SOCKET TYPE LENGTH SECONDS BYTES FOLDER``, the last being where
pytsk3 is. A message is a letter, a length, and that many bytes: ``R`` asks for bytes at an offset,
and as many raw bytes are the answer; ``F`` has files, ``D`` ends, ``E`` says why it cannot, each in
JSON, with names as Latin-1.
"""

from __future__ import annotations

import hashlib
import json
import resource
import socket
import struct
import sys
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

CHUNK = 1 << 17
CHUNKS = 128
BATCH = 512
BATCH_RUNS = 1 << 17
NTFS_METADATA = 24
NTFS_DATA = 128
VOLUME, VOLUME_INFORMATION, VOLUME_NAME = 3, 0x70, 0x60
MAX_RESIDENT = 4096
MAX_RUNS = 1 << 20
DIRECTORY, VIRTUAL_DIRECTORY = 2, 11


class Connection:
    """The socket to the process that has the image."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def send(self, kind: bytes, payload: bytes) -> None:
        """Send a message."""
        self._sock.sendall(struct.pack("<cI", kind, len(payload)) + payload)

    def read(self, offset: int, length: int) -> bytes:
        """Ask for bytes of the volume."""
        self.send(b"R", struct.pack("<QI", offset, length))
        data = bytearray()
        while len(data) < length:
            piece = self._sock.recv(length - len(data))
            if not piece:
                raise OSError("the other side is gone")
            data += piece
        return bytes(data)


class Chunks:
    """The volume's bytes, by way of a cache."""

    def __init__(self, connection: Connection, length: int) -> None:
        self._connection = connection
        self._length = length
        self._kept: OrderedDict[int, bytes] = OrderedDict()

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes, fewer at the volume's end."""
        stop = min(offset + length, self._length)
        parts = []
        while offset < stop:
            number, within = divmod(offset, CHUNK)
            piece = self._chunk(number)[within : within + stop - offset]
            parts.append(piece)
            offset += len(piece)
        return b"".join(parts)

    def _chunk(self, number: int) -> bytes:
        data = self._kept.get(number)
        if data is None:
            start = number * CHUNK
            data = self._connection.read(start, min(CHUNK, self._length - start))
            self._kept[number] = data
            if len(self._kept) > CHUNKS:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(number)
        return data


def image_of(chunks: Chunks, length: int) -> Any:
    """Return what The Sleuth Kit reads from."""
    import pytsk3

    class Image(pytsk3.Img_Info):  # type: ignore[misc] # no types there
        def __init__(self) -> None:
            super().__init__(url="", type=pytsk3.TSK_IMG_TYPE_EXTERNAL)

        def read(self, offset: int, size: int) -> bytes:
            return chunks.read(offset, size)

        def get_size(self) -> int:
            return length

        def close(self) -> None:
            """Have nothing to close."""

    return Image()


class Walk:
    """Goes through a file system, from its root down."""

    def __init__(self, connection: Connection, system: Any, ntfs: bool) -> None:
        self._connection = connection
        self._system = system
        self._ntfs = ntfs
        self._told: set[int] = set()
        self._names: list[tuple[int, int, str]] = []
        self._files: list[dict[str, Any]] = []
        self._runs = 0

    def run(self) -> None:
        """Tell of every file that is in use."""
        root = int(self._system.info.root_inum)
        if self._ntfs:
            for number in range(NTFS_METADATA):
                self._tell_number(number)
        self._tell_number(root)
        waiting, seen = [root], {root}
        while waiting:
            for child in self._directory(waiting.pop()):
                if child not in seen:
                    seen.add(child)
                    waiting.append(child)
        self._flush()

    def _tell_number(self, number: int) -> None:
        try:
            file = self._system.open_meta(inode=number)
            if int(file.info.meta.flags) & 1:  # in use
                self._tell(file)
        except (OSError, KeyError, AttributeError):
            return

    def _directory(self, number: int) -> Iterator[int]:
        """Tell of what is in a directory, and yield the directories among it."""
        try:
            entries = iter(self._system.open_dir(inode=number))
        except OSError:
            return
        while True:
            try:
                entry = next(entries, None)
            except OSError:
                return
            if entry is None:
                return
            name, meta = entry.info.name, entry.info.meta
            if name is None or meta is None or name.name in (b".", b".."):
                continue
            if not int(name.flags) & 1 or int(meta.type) == VIRTUAL_DIRECTORY:
                continue
            inode = int(meta.addr)
            text = bytes(name.name).split(b":")[0] if self._ntfs else bytes(name.name)
            self._names.append((number, inode, text.decode("latin-1")))
            self._tell(entry)
            if int(meta.type) == DIRECTORY:
                yield inode

    def _tell(self, file: Any) -> None:
        meta = file.info.meta
        number = int(meta.addr)
        if number in self._told:
            return
        self._told.add(number)
        content, attributes = self._attributes(file)
        self._files.append(
            {
                "inode": number,
                "type": int(meta.type),
                "size": int(meta.size),
                "metadata": [int(meta.mode), int(meta.uid), int(meta.gid), int(meta.mtime)],
                "fraction": int(meta.mtime_nano),
                "identity": [int(meta.seq), int(meta.crtime), int(meta.crtime_nano)],
                "content": content,
                "attributes": attributes,
            }
        )
        self._runs += sum(len(runs) for *_, runs in attributes)
        if len(self._files) >= BATCH or self._runs >= BATCH_RUNS:
            self._flush()

    def _attributes(self, file: Any) -> tuple[str, list[Any]]:
        """Return a digest of content that is in no cluster, and the runs of what is."""
        content, found = hashlib.blake2b(digest_size=8), []
        for attribute in file:
            kind = int(attribute.info.type)
            runs = [
                (int(run.addr), int(run.len), int(run.offset), int(run.flags))
                for run, _ in zip(attribute, range(MAX_RUNS), strict=False)
            ]
            size = int(attribute.info.size)
            if runs:
                found.append([kind, int(attribute.info.flags), size, runs])
            elif self._ntfs and kind == NTFS_DATA and 0 < size <= MAX_RESIDENT:
                content.update(file.read_random(0, size, kind, int(attribute.info.id)))
        return content.hexdigest(), found

    def _flush(self) -> None:
        """Send what was gathered."""
        message = {"files": self._files, "names": self._names}
        self._connection.send(b"F", json.dumps(message).encode())
        self._files, self._names, self._runs = [], [], 0


def facts(system: Any, ntfs: bool) -> dict[str, Any]:
    """Return what the file system says of itself."""
    info = system.info
    known: dict[str, Any] = {
        "block_size": int(info.block_size),
        "blocks": int(info.block_count),
        "root": int(info.root_inum),
    }
    if ntfs:
        volume = system.open_meta(inode=VOLUME)
        for attribute in volume:
            kind, size = int(attribute.info.type), int(attribute.info.size)
            if kind == VOLUME_NAME and 0 < size <= MAX_RESIDENT:
                raw = volume.read_random(0, size, kind, int(attribute.info.id))
                known["label"] = raw.decode("utf-16-le", "replace")
            if kind == VOLUME_INFORMATION and size >= 12:
                raw = volume.read_random(0, 12, kind, int(attribute.info.id))
                known["flags"] = int.from_bytes(raw[10:12], "little")
    return known


def confine(seconds: int, memory: int) -> None:
    """Set the limits."""
    for limit, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))


def main() -> None:
    """Read a file system."""
    number, kind, length, seconds, memory, folder = sys.argv[1:]
    connection = Connection(socket.socket(fileno=int(number)))
    confine(int(seconds), int(memory))
    sys.path.append(folder)
    try:
        import pytsk3

        ntfs = kind == "NTFS"
        chunks = Chunks(connection, int(length))
        image = image_of(chunks, int(length))
        system = pytsk3.FS_Info(image, offset=0, type=getattr(pytsk3, f"TSK_FS_TYPE_{kind}"))
        known = facts(system, ntfs)
        Walk(connection, system, ntfs).run()
        connection.send(b"D", json.dumps(known).encode())
    except Exception as error:  # whatever it is goes into a note
        connection.send(b"E", json.dumps(str(error)[:500]).encode())


if __name__ == "__main__":
    main()
