"""What QEMU is told to open: every node explicit, every file opened and allowed by us before.

QEMU resolves no name. It gets descriptors that it inherits, as ``/dev/fd/N``; what lies below is
an explicit node or explicitly nothing; and names inside a file, backing and data files and a
VMDK's extents, are read by us and put through the policy.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import Any

from ..errors import (
    EncryptedImageError,
    FormatError,
    PolicyError,
    UnsupportedFeatureError,
)
from ..hostfile import HostFile
from ..policy import MAX_DEPTH, OpenPolicy, backing_format, data_file_path
from ..qcow2.header import CRYPT_NAMES, Header, read_header
from ..qcow2.layout import Incompatible
from ..secret import Secret
from .daemon import SECRET
from .remote import NamedFile, Remote, parse_name
from .vmdk import VmdkDescriptor, check_extent, read_vmdk

Node = dict[str, Any]

_WHY = {
    "LUKS": "sectors are enciphered by a key of the image's own and by where they lie in the file, "
    "so equal content has different ciphertext, and comparing that would find all of it changed",
    "AES": "of its ciphertext neither zeros nor equal content elsewhere can be told",
}
_VPC_DIFFERENCING = 4


@dataclass
class Graph:
    """An image for QEMU to open.

    Attributes:
        path, format: of its top file; the format's name is qemu-img's.
        node: what to open, as ``blockdev-add`` takes it.
        files: every host file that belongs to it, top first; the graph owns them.
        memory: descriptors of files made up for QEMU, which the graph owns.
        remotes: what identifies the parts that are no host files.
        secret: what opens it, where it is encrypted.
    """

    path: str
    format: str
    node: Node = field(default_factory=dict)
    files: list[HostFile] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    remotes: list[Remote] = field(default_factory=list)
    secret: Secret | None = None

    @property
    def fds(self) -> list[int]:
        """The descriptors that QEMU has to inherit."""
        return [*(file.fileno() for file in self.files), *self.memory]

    def forget_memory(self) -> None:
        """Close what was made up for QEMU, once it has opened it."""
        while self.memory:
            os.close(self.memory.pop())

    def close(self) -> None:
        """Close all of it."""
        self.forget_memory()
        for file in self.files:
            file.close()


def graph_of(file: HostFile, fmt: str, policy: OpenPolicy) -> Graph:
    """Return what QEMU is to open for a file, with all that lies below it.

    Args:
        file: the top file, which the graph owns from then on.
        fmt: its format.
        policy: what may be opened.

    Raises:
        PolicyError: a file that is named was not opened.
        EncryptedImageError: it is encrypted, and there is no secret.
        FormatError: what it names cannot be read.
        UnsupportedFeatureError: QEMU would read it wrongly, or not as a whole.
    """
    graph = Graph(file.path, fmt)
    try:
        graph.node = _Builder(graph, policy).node(file, fmt)
        return graph
    except BaseException:
        graph.close()
        raise


def graph_of_remote(name: bytes, fmt: str, by: HostFile, policy: OpenPolicy) -> Graph:
    """Return what QEMU is to open for a backing name with a protocol that the policy allows.

    Raises:
        PolicyError: something in it is not allowed; and what :func:`graph_of` raises.
    """
    graph = Graph(os.fsdecode(name), fmt)
    try:
        graph.node = _Builder(graph, policy).remote(name, fmt, by)
        return graph
    except BaseException:
        graph.close()
        raise


class _Builder:
    """Builds one graph."""

    def __init__(self, graph: Graph, policy: OpenPolicy) -> None:
        self._graph, self._policy = graph, policy

    def node(self, file: HostFile, fmt: str, depth: int = 0) -> Node:
        """Return the node of a file in a format, and of what it names."""
        self._own(file)
        if depth >= MAX_DEPTH:
            raise PolicyError(f"its chain is deeper than {MAX_DEPTH} files", path=file.path)
        make = getattr(self, f"_{fmt}", None)
        extra: Node = {} if make is None else make(file, depth)
        return {
            "driver": fmt,
            "read-only": True,
            "force-share": self._policy.force_share,
            **({"file": self._file(file)} if "file" not in extra else {}),
            **extra,
        }

    def remote(self, name: bytes, fmt: str, by: HostFile, depth: int = 0) -> Node:
        """Return the node of a name with a protocol."""
        found = parse_name(os.fsdecode(name), fmt, self._policy.allow_protocols, by.path)
        if isinstance(found, NamedFile):
            file = self._policy.open_named(found.path, by=by, what="backing file")
            return self.node(file, found.format, depth + 1)
        self._graph.remotes.append(found)
        key = {"key-secret": self._key(by, "LUKS")} if fmt == "luks" else {}
        return {"driver": fmt, "read-only": True, "file": found.node, **key}

    def _own(self, file: HostFile) -> HostFile:
        if any(file.key == other.key for other in self._graph.files):
            self._graph.files.append(file)
            raise PolicyError("is named twice in one chain: a cycle", path=file.path)
        self._graph.files.append(file)
        return file

    def _file(self, file: HostFile) -> Node:
        return self._opened(file.fileno())

    def _opened(self, fd: int) -> Node:
        device = stat.S_ISBLK(os.fstat(fd).st_mode)
        return {
            "driver": "host_device" if device else "file",
            "filename": f"/dev/fd/{fd}",
            "read-only": True,
            "force-share": self._policy.force_share,
        }

    def _named(self, name: bytes, by: HostFile, what: str) -> HostFile:
        """Open a file that another names, literally and relative to that one's folder."""
        return self._own(self._policy.open_named(data_file_path(name, by), by=by, what=what))

    def _key(self, file: HostFile, how: str) -> str:
        """Return the name of the secret, which has to be there."""
        if self._policy.secret is None:
            raise EncryptedImageError(
                f"is encrypted ({how}): {_WHY[how]}; to compare what it holds, give the file with "
                "its secret by --old-secret-file, --new-secret-file, --base-secret-file or "
                "--target-secret-file",
                path=file.path,
            )
        self._graph.secret = self._policy.secret
        return SECRET

    # What each format has besides its own file. Method names are the formats'.

    def _luks(self, file: HostFile, _depth: int) -> Node:
        return {"key-secret": self._key(file, "LUKS")}

    def _qcow2(self, file: HostFile, depth: int) -> Node:
        header = read_header(file, any_features=True)
        node: Node = {"backing": self._backing(file, header, depth)}
        if header.crypt_method:
            name = CRYPT_NAMES[header.crypt_method]
            node["encrypt"] = {"format": name.lower(), "key-secret": self._key(file, name)}
        if header.has(Incompatible.EXTERNAL_DATA_FILE):
            if not header.data_file or b"\0" in header.data_file:
                raise FormatError("has an external data file without a name", path=file.path)
            data_file = self._own(self._policy.open_data_file(header.data_file, by=file))
            node["data-file"] = self._file(data_file)
        return node

    def _backing(self, file: HostFile, header: Header, depth: int) -> Node | None:
        if header.backing_file is None:
            return None
        path = self._policy.backing_path(header.backing_file, by=file)
        fmt = backing_format(header, file)
        if path is None:
            return self.remote(header.backing_file, fmt, file, depth)
        return self.node(
            self._policy.open_named(path, by=file, what="backing file"), fmt, depth + 1
        )

    def _vmdk(self, file: HostFile, depth: int) -> Node:
        found = read_vmdk(file)
        node: Node = {"backing": None}
        if found.parent is not None:
            path = data_file_path(found.parent, file)
            parent = self._policy.open_named(path, by=file, what="parent")
            node["backing"] = self.node(parent, "vmdk", depth + 1)
        if found.extents:
            node["file"] = self._descriptor(file, found)
        return node

    def _descriptor(self, file: HostFile, found: VmdkDescriptor) -> Node:
        """Return the node of a descriptor in which extents have names that QEMU may follow."""
        names: dict[bytes, str] = {}
        for extent in found.extents:
            if extent.name not in names:
                opened = self._named(extent.name, file, "extent")
                check_extent(opened)
                names[extent.name] = f"/dev/fd/{opened.fileno()}"
        fd = os.memfd_create("qcowdelta-vmdk", os.MFD_CLOEXEC)
        self._graph.memory.append(fd)
        os.write(fd, found.rewritten(names))
        return self._opened(fd)

    def _vpc(self, file: HostFile, _depth: int) -> Node:
        # QEMU reads a differencing disk as if there were nothing below it.
        for at in (0, file.size - 512, file.size - 511):
            footer = file.read(at, min(512, file.size - at)) if 0 <= at < file.size else b""
            if footer[:8] == b"conectix" and footer[60:64] == _VPC_DIFFERENCING.to_bytes(4, "big"):
                raise UnsupportedFeatureError(
                    "is a differencing VHD, whose parent QEMU does not read; merge them first",
                    path=file.path,
                )
        return {}

    def _qed(self, file: HostFile, _depth: int) -> Node:
        head = file.read(0, min(64, file.size))
        return self._without_backing(file, bool(int.from_bytes(head[16:24], "little") & 1))

    def _qcow(self, file: HostFile, _depth: int) -> Node:
        head = file.read(0, min(48, file.size))
        node = self._without_backing(file, any(head[8:16]))
        if any(head[36:40]):
            node["encrypt"] = {"format": "aes", "key-secret": self._key(file, "AES")}
        return node

    def _without_backing(self, file: HostFile, named: bool) -> Node:
        if named:
            raise PolicyError(
                "names a backing file without its format, which is not guessed; convert it to "
                "qcow2 with qemu-img first",
                path=file.path,
            )
        return {"backing": None}
