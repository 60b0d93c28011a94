"""Backing names that are no file's: ``json:{…}`` and those with a protocol, once allowed.

They are parsed here, by what is listed below and nothing else: QEMU never gets such a name, only
nodes made from it, so none can reach a file or a secret that it was not allowed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from blake3 import blake3

from ..errors import PathName, PolicyError, printable
from ..formats import FORMATS

Node = dict[str, Any]

_WEB = ("http", "https", "ftp", "ftps")
_OPTIONS: dict[str, frozenset[str]] = {
    "nbd": frozenset({"server", "export", "host", "port", "path"}),
    "ssh": frozenset({"server", "path", "user"}),
    **{name: frozenset({"url", "readahead", "timeout", "sslverify"}) for name in _WEB},
}
PROTOCOLS = tuple(_OPTIONS)
_SERVER = frozenset({"type", "host", "port", "path"})
# Formats in which no file names another one.
_ALONE = ("luks", "parallels", "raw", "vdi", "vhdx")
_NBD_PORT, _SSH_PORT = "10809", "22"


@dataclass(frozen=True)
class Remote:
    """A part of an image that is no host file.

    Attributes:
        node: what to open, as ``blockdev-add`` takes it, without a format over it.
        key: what identifies it, as :attr:`.HostFile.key` does a file.
    """

    node: Node
    key: tuple[int, ...]


@dataclass(frozen=True)
class NamedFile:
    """A file that a ``json:`` name means: an absolute path, and the format of the file."""

    path: str
    format: str


def parse_name(text: str, fmt: str, allowed: tuple[str, ...], by: PathName) -> Remote | NamedFile:
    """Return what a backing name means that has a protocol.

    Args:
        text: the name.
        fmt: the format that is recorded with it.
        allowed: the protocols that are.
        by: the image that names it, for messages.

    Raises:
        PolicyError: the name, or something in it, is not allowed or not understood.
    """
    return _Parser(text, fmt, allowed, by).parse()


class _Parser:
    def __init__(self, text: str, fmt: str, allowed: tuple[str, ...], by: PathName) -> None:
        self._text, self._format, self._allowed, self._by = text, fmt, allowed, by

    def parse(self) -> Remote | NamedFile:
        if self._text.startswith("json:"):
            return self._described(self._load(self._text[5:]))
        scheme = self._text.partition(":")[0].partition("+")[0]
        if scheme == "nbd":
            return self._remote(self._nbd())
        if scheme == "ssh":
            return self._remote(self._ssh())
        if scheme in _WEB:
            return self._remote({"driver": scheme, "url": self._text})
        raise self._refuse(
            f"its protocol is not known here (those known: {', '.join(PROTOCOLS)}); it may be "
            "written as json:"
        )

    def _refuse(self, why: str) -> PolicyError:
        return PolicyError(f"names backing file {printable(self._text)!r}: {why}", path=self._by)

    # json:

    def _load(self, text: str) -> Node:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            raise self._refuse("it is not valid JSON") from None
        if not isinstance(found, dict):
            raise self._refuse("it is no JSON object")
        return self._nested(found)

    def _nested(self, flat: Node) -> Node:
        """Turn keys with dots into objects, which mean the same to QEMU."""
        out: Node = {}
        for key, value in flat.items():
            *way, last = key.split(".")
            at = out
            for word in way:
                at = at.setdefault(word, {})
                if not isinstance(at, dict):
                    raise self._refuse(f"{key!r} is given twice")
            if last in at:
                raise self._refuse(f"{key!r} is given twice")
            at[last] = self._nested(value) if isinstance(value, dict) else value
        return out

    def _described(self, node: Node) -> Remote | NamedFile:
        driver = node.get("driver")
        if driver not in FORMATS:
            return self._protocol(node)
        if driver != self._format:
            raise self._refuse(f"it says {driver}, but the recorded format is {self._format}")
        unknown = set(node) - {"driver", "file", "read-only"}
        if unknown or not isinstance(node.get("file"), dict):
            raise self._refuse(f"a {driver} node has a file, and nothing else that is allowed here")
        return self._protocol(node["file"])

    def _protocol(self, node: Node) -> Remote | NamedFile:
        driver = node.get("driver")
        if driver in ("file", "host_device"):
            path = node.get("filename")
            if set(node) - {"driver", "filename", "read-only", "locking"}:
                raise self._refuse("a file node has a filename, and nothing else")
            if not isinstance(path, str) or not path.startswith("/") or "\0" in path:
                raise self._refuse("a file in it must have an absolute name")
            return NamedFile(path, self._format)
        if driver not in _OPTIONS:
            raise self._refuse(f"the driver {printable(str(driver))!r} is not allowed")
        return self._remote({k: v for k, v in node.items() if k != "read-only"})

    def _remote(self, node: Node) -> Remote:
        driver = str(node["driver"])
        if driver not in self._allowed:
            raise self._refuse(f"not followed; allow it with --allow-protocol {driver}")
        if self._format not in _ALONE:
            raise self._refuse(
                f"a {printable(self._format)} image is not read by a protocol, since what it names "
                "cannot be checked before; copy it here"
            )
        for key, value in node.items():
            if key == "driver":
                continue
            if key not in _OPTIONS[driver]:
                raise self._refuse(f"{driver} is not given {printable(key)!r} here")
            plain = value.values() if key == "server" and isinstance(value, dict) else (value,)
            if any(isinstance(each, dict | list) for each in plain) or (
                isinstance(value, dict) and set(value) - _SERVER
            ):
                raise self._refuse(f"{printable(key)!r} of {driver} is not understood")
        digest = blake3(json.dumps(node, sort_keys=True).encode()).digest()
        return Remote(node, (-1, int.from_bytes(digest[:8], "big")))

    # Names with a protocol

    def _nbd(self) -> Node:
        if "://" not in self._text:
            return self._old_nbd()
        found = self._split()
        node: Node = {"driver": "nbd"}
        export = unquote(found.path.lstrip("/"))
        if found.scheme == "nbd+unix":
            sockets = parse_qs(found.query).get("socket", [])
            if len(sockets) != 1:
                raise self._refuse("it has no socket")
            node["server"] = {"type": "unix", "path": sockets[0]}
        else:
            node["server"] = self._inet(found.hostname, found.port, _NBD_PORT)
        return {**node, "export": export} if export else node

    def _old_nbd(self) -> Node:
        """Parse ``nbd:unix:PATH[:exportname=NAME]`` or ``nbd:HOST:PORT[:exportname=NAME]``."""
        where, _, export = self._text[4:].partition(":exportname=")
        host, colon, port = where.rpartition(":")
        if where.startswith("unix:"):
            server = {"type": "unix", "path": where[5:]}
        elif colon and host and port.isdecimal():
            server = {"type": "inet", "host": host, "port": port}
        else:
            raise self._refuse("it is no NBD address")
        node: Node = {"driver": "nbd", "server": server}
        return {**node, "export": export} if export else node

    def _ssh(self) -> Node:
        found = self._split()
        server = self._inet(found.hostname, found.port, _SSH_PORT)
        del server["type"]
        node: Node = {"driver": "ssh", "server": server, "path": unquote(found.path)}
        return {**node, "user": found.username} if found.username else node

    def _split(self) -> Any:
        try:
            found = urlsplit(self._text)
            _ = found.port
        except ValueError:
            raise self._refuse("it is no address") from None
        return found

    def _inet(self, host: str | None, port: int | None, default: str) -> Node:
        if not host:
            raise self._refuse("it names no host")
        return {"type": "inet", "host": host, "port": default if port is None else str(port)}
