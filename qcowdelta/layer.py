"""What every image format offers: a layer, the map of one file of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .errors import CorruptImageError, PathName
from .extents import Extents
from .inflated import Inflated
from .qcow2.codec import CodecError, inflate
from .qcow2.layout import CompressionType


class SourceFile(Protocol):
    """What can be read by offset: a host file, or what takes the place of one."""

    @property
    def path(self) -> str:
        """Its name, for messages."""

    @property
    def size(self) -> int:
        """Its length, bytes."""

    @property
    def key(self) -> tuple[int, ...]:
        """What identifies it, whatever it is called."""

    @property
    def mtime_ns(self) -> int:
        """When its content was last modified, in nanoseconds since the epoch."""

    def fileno(self) -> int | None:
        """Return the descriptor its bytes can be copied from; None: they are no file's."""

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset``; what lies beyond :attr:`size` is zeros."""


@dataclass(eq=False)
class Source:
    """The file that holds a layer's data, and how its compressed clusters are coded.

    Attributes:
        file: the file.
        cluster_size: bytes.
        codec: what compressed clusters are coded with.
        kept: those that were inflated before; None keeps none.
    """

    file: SourceFile
    cluster_size: int
    codec: CompressionType = CompressionType.ZLIB
    kept: Inflated | None = None

    def inflate(self, payload: memoryview, host: int, guest: int) -> bytes:
        """Return a compressed cluster's content.

        Args:
            payload: the bytes from the payload's begin to its bound, or more.
            host: where the payload begins, for the message.
            guest: where the extent lies on the disk, for the message.

        Raises:
            CorruptImageError: it cannot be decoded to a whole cluster.
        """
        try:
            return inflate(self.codec, payload, self.cluster_size)
        except CodecError as error:
            raise CorruptImageError(
                f"compressed cluster at guest offset {guest:#x} cannot be inflated: {error}",
                path=self.file.path,
                offset=host,
            ) from error


def keep_inflated(sources: Sequence[Source], folder: PathName | None = None) -> None:
    """From now on keep compressed clusters that were read; see :class:`.Inflated`.

    It is for those who read scattered ranges, or the same twice. The image that the sources are
    of ends it when it is closed.

    Args:
        sources: those of an image.
        folder: where they are kept; it takes the place of the system's if that was taken before.
    """
    by_size: dict[int, Inflated] = {}
    for source in sources:
        kept = source.kept
        if kept is None or (kept.folder is None and folder is not None):
            if kept is not None:
                kept.close()
            size = source.cluster_size
            if size not in by_size:
                by_size[size] = Inflated(size, folder)
            source.kept = by_size[size]


@dataclass(frozen=True)
class How:
    """How a layer is read.

    Attributes:
        path: its file.
        format: its format, as qemu-img has it.
        by: ``native``, ``qemu-storage-daemon`` or ``qemu-img convert``.
        reason: why not natively, or None.
        encrypted: whether it, or something that is read with it, is.
    """

    path: str
    format: str
    by: str = "native"
    reason: str | None = None
    encrypted: bool = False


class Layer(Protocol):
    """One file of an image, seen alone."""

    @property
    def format(self) -> str:
        """The format's name, as qemu-img has it."""

    @property
    def file(self) -> SourceFile:
        """The file that was opened, or what takes its place."""

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """Every file it was opened from, that one first."""

    @property
    def how(self) -> How:
        """How it is read."""

    @property
    def source(self) -> Source:
        """Where the data of its extents lies."""

    @property
    def changes_only(self) -> bool:
        """Whether its data is known to differ from what lies below it, and to be no zeros."""

    @property
    def size(self) -> int:
        """Its virtual size in bytes, a multiple of 512."""

    @property
    def unit(self) -> int:
        """The smallest length that it can allocate, bytes."""

    def extents(self, start: int, stop: int) -> Extents:
        """Return what ``[start, stop)`` is, within its size; see :mod:`.extents`."""

    def next_mapped(self, start: int) -> int | None:
        """Return where something may be allocated at or after ``start``; None: nowhere."""

    def close(self) -> None:
        """Close its files."""
