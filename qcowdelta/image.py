"""Images: a file with all that lies under it, as one disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .errors import (
    FormatError,
    ImageError,
    OptionError,
    PathName,
    PolicyError,
    QemuError,
    UnsupportedFeatureError,
    printable,
)
from .extents import Extents, Kind, coalesce, join, single, stack
from .formats import FORMATS, probe
from .hostfile import HostFile
from .layer import How, Layer, Source
from .policy import MAX_DEPTH, OpenPolicy, backing_format
from .qcow2.header import CRYPT_NAMES, Header, read_header
from .qcow2.image import Qcow2Layer
from .qcow2.layout import Incompatible
from .raw import RawLayer
from .reader import GuestReader

if TYPE_CHECKING:
    from .qemu.graph import Graph


class Image:
    """A disk: a layer and those below it. Use as a context manager, or close it.

    Attributes:
        layers: the layers, top first.
        size: the virtual size in bytes, a multiple of 512.
        sources: the data source of each layer; an extent's ``source`` is an index of it.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = tuple(layers)
        self.size = self.layers[0].size
        self.sources: tuple[Source, ...] = tuple(layer.source for layer in self.layers)

    def __enter__(self) -> Image:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every file of the image."""
        for layer in self.layers:
            layer.close()
            if layer.source.kept is not None:
                layer.source.kept.close()

    @property
    def path(self) -> str:
        """The path by which the top file was opened."""
        return self.layers[0].file.path

    @property
    def format(self) -> str:
        """The format of the top file."""
        return self.layers[0].format

    @property
    def cluster_size(self) -> int | None:
        """The cluster size of the top file in bytes, or None where it has no clusters."""
        top = self.layers[0]
        return top.geometry.cluster_size if isinstance(top, Qcow2Layer) else None

    @property
    def unit(self) -> int:
        """The smallest length that any layer can allocate, bytes."""
        return min(layer.unit for layer in self.layers)

    @property
    def keys(self) -> set[tuple[int, ...]]:
        """What identifies the files that the image consists of."""
        return {file.key for layer in self.layers for file in (*layer.files, layer.source.file)}

    @property
    def how(self) -> tuple[How, ...]:
        """How each layer is read, top first."""
        return tuple(layer.how for layer in self.layers)

    @property
    def encrypted(self) -> bool:
        """Whether any of its files is encrypted."""
        return any(how.encrypted for how in self.how)

    def extents(self, start: int, stop: int) -> Extents:
        """Return what ``[start, stop)`` is, all layers taken together, by metadata alone.

        Nothing is UNALLOCATED in the result: what no layer has, and what lies beyond the end of
        a layer shorter than those above it, is ZERO.

        Raises:
            CorruptImageError: a table in the way is damaged.
        """
        found = self._resolve(0, start, stop)
        return coalesce(found) if len(self.layers) > 1 else found

    def _resolve(self, depth: int, start: int, stop: int) -> Extents:
        layer = self.layers[depth]
        inner = min(stop, layer.size)
        if inner <= start:
            return single(start, stop, Kind.ZERO)
        extents = layer.extents(start, inner)
        extents["source"] = depth
        holes = np.flatnonzero(extents["kind"] == Kind.UNALLOCATED)
        if holes.size and depth + 1 < len(self.layers):
            first, last = extents[holes[0]], extents[holes[-1]]
            below = self._resolve(
                depth + 1, int(first["start"]), int(last["start"] + last["length"])
            )
            extents = stack(extents, below)
        extents["kind"][extents["kind"] == Kind.UNALLOCATED] = Kind.ZERO
        if inner < stop:
            extents = join([extents, single(inner, stop, Kind.ZERO)])
        return extents

    def next_mapped(self, start: int) -> int:
        """Return where anything but zeros may be at or after ``start``; the size: nowhere."""
        found = (layer.next_mapped(start) for layer in self.layers)
        return min((at for at in found if at is not None), default=self.size)

    def reader(self) -> GuestReader:
        """Return a reader of guest content. Each thread needs one of its own."""
        return GuestReader(self)


def open_image(
    path: PathName,
    *,
    format: str | None = None,  # noqa: A002 # the term of qemu-img
    snapshot: str | None = None,
    policy: OpenPolicy | None = None,
) -> Image:
    """Open an image and the files it names, as far as the policy allows.

    Args:
        path: the image.
        format: one of :data:`.FORMATS`; None takes what the first bytes tell, or raw.
        snapshot: the id or name of an internal snapshot to read instead of the active state.
        policy: what may be opened, and how; the default is :class:`OpenPolicy`.

    Raises:
        PolicyError: a file that the image names was not opened.
        ImageLockedError: a writer has one of the files open.
        EncryptedImageError: one of them is encrypted, and the policy has no secret.
        FormatError, CorruptImageError: one of them cannot be read.
        QemuError: only QEMU could read it, and cannot, or is not there.
        OSError: the system refused.
    """
    return _Opener(policy or OpenPolicy()).open(path, format, snapshot)


class _Opener:
    """Opens one image; knows what it has opened so far, to find cycles and to clean up."""

    def __init__(self, policy: OpenPolicy) -> None:
        self._policy = policy
        self._files: list[HostFile] = []
        self._layers: list[Layer] = []

    def open(self, path: PathName, fmt: str | None, snapshot: str | None) -> Image:
        if fmt is not None and fmt not in FORMATS:
            raise OptionError(f"format {fmt!r} is not read here; known are: {', '.join(FORMATS)}")
        try:
            file = self._own(self._policy.open_given(path))
            below = self._add(file, fmt or probe(file), snapshot)
            while below is not None:
                if len(self._layers) >= MAX_DEPTH:
                    raise PolicyError(f"its chain is deeper than {MAX_DEPTH} files", path=path)
                below = self._add(*below)
            return Image(self._layers)
        except BaseException:
            for layer in self._layers:
                layer.close()
            for file in self._files:
                file.close()
            raise

    def _own(self, file: HostFile) -> HostFile:
        self._files.append(file)
        return file

    def _add(
        self, file: HostFile, fmt: str, snapshot: str | None = None
    ) -> tuple[HostFile, str] | None:
        """Add a file as the lowest layer; return its backing file, opened, and format.

        This is where it is decided whether we read it, or QEMU does.
        """
        if fmt != "qcow2" and snapshot is not None:
            raise OptionError(f"{printable(file.path)}: a {fmt} image has no snapshots")
        if self._policy.through_qemu:
            self._leave_to_qemu(file, fmt, "it was asked for", snapshot)
        elif fmt == "raw":
            self._layers.append(RawLayer(file))
        elif fmt == "qcow2":
            return self._add_qcow2(file, snapshot)
        else:
            self._leave_to_qemu(file, fmt, f"{fmt} is read by QEMU only")
        return None

    def _add_qcow2(self, file: HostFile, snapshot: str | None) -> tuple[HostFile, str] | None:
        try:
            header = read_header(file)
        except UnsupportedFeatureError as error:
            self._try_qemu(file, error, snapshot)
            return None
        if header.crypt_method:
            reason = f"it is encrypted ({CRYPT_NAMES[header.crypt_method]})"
            self._leave_to_qemu(file, "qcow2", reason, snapshot)
            return None
        data_file = self._open_data_file(file, header)
        self._layers.append(Qcow2Layer(file, header, data_file=data_file, snapshot=snapshot))
        return self._open_backing(file, header)

    def _leave_to_qemu(
        self, file: HostFile, fmt: str, reason: str, snapshot: str | None = None
    ) -> None:
        """Add a file, with all that lies below it, as QEMU reads it."""
        if snapshot is not None:
            raise OptionError(
                f"{printable(file.path)}: is read through QEMU ({reason}), by which internal "
                "snapshots cannot be read; 'qemu-img convert -l' takes one out"
            )
        from .qemu.graph import graph_of  # only now: most images need none of it

        self._add_graph(graph_of(file, fmt, self._policy), reason)

    def _add_graph(self, graph: Graph, reason: str) -> None:
        from .qemu.image import open_by_qemu

        layer = open_by_qemu(graph, reason)
        self._layers.append(layer)
        above = {layer.file.key for layer in self._layers[:-1]}
        for file in layer.files:
            if file.key in above:
                raise PolicyError("is named by what lies below it: a cycle", path=file.path)

    def _try_qemu(
        self, file: HostFile, error: UnsupportedFeatureError, snapshot: str | None
    ) -> None:
        """Let QEMU try what we cannot read; where it cannot either, the first error counts."""
        try:
            self._leave_to_qemu(file, "qcow2", error.message, snapshot)
        except UnsupportedFeatureError:
            raise error from None
        except (QemuError, FormatError) as second:
            raise UnsupportedFeatureError(
                f"{error.message}; nor by QEMU: {second}", path=error.path, field=error.field
            ) from None

    def _open_data_file(self, file: HostFile, header: Header) -> HostFile | None:
        if not header.has(Incompatible.EXTERNAL_DATA_FILE):
            return None
        if not header.data_file:
            raise FormatError("has an external data file but does not name it", path=file.path)
        if b"\0" in header.data_file:
            raise FormatError("the data file's name has a NUL byte", path=file.path)
        return self._own(self._policy.open_data_file(header.data_file, by=file))

    def _open_backing(self, file: HostFile, header: Header) -> tuple[HostFile, str] | None:
        if header.backing_file is None:
            return None
        path = self._policy.backing_path(header.backing_file, by=file)
        fmt = backing_format(header, file)
        if path is None:
            from .qemu.graph import graph_of_remote

            graph = graph_of_remote(header.backing_file, fmt, file, self._policy)
            self._add_graph(graph, "it is named by a protocol")
            return None
        backing = self._own(self._policy.open_named(path, by=file, what="backing file"))
        if any(backing.key == layer.file.key for layer in self._layers):
            raise PolicyError(
                f"names backing file {printable(path)}, which is above it: a cycle", path=file.path
            )
        return backing, fmt


def same_file(image: Image, path: PathName) -> bool:
    """Tell whether a path is one of the files that an image consists of."""
    try:
        info = os.stat(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ImageError(f"cannot be looked at: {error.strerror}", path=path) from error
    return (info.st_dev, info.st_ino) in image.keys
