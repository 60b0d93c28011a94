"""A qcow2 file as a layer of an image."""

from __future__ import annotations

from ..errors import CorruptImageError, EncryptedImageError
from ..extents import Extents
from ..hostfile import HostFile
from ..layer import How, Source, SourceFile
from .header import CRYPT_NAMES, Header
from .snapshots import Snapshot, find_snapshot, read_snapshots
from .tables import ClusterMap


class Qcow2Layer:
    """The active state of a qcow2 image, or one of its internal snapshots.

    Args:
        file: the qcow2 file.
        header: its header.
        data_file: the external data file where the header names one.
        snapshot: the id or name of an internal snapshot; None means the active state.

    Raises:
        EncryptedImageError: the image is encrypted.
        FormatError, CorruptImageError: what it names cannot be read.
    """

    format = "qcow2"
    changes_only = False

    def __init__(
        self,
        file: HostFile,
        header: Header,
        *,
        data_file: HostFile | None = None,
        snapshot: str | None = None,
    ) -> None:
        if header.crypt_method:
            raise EncryptedImageError(
                f"is encrypted ({CRYPT_NAMES[header.crypt_method]}), which only QEMU decrypts",
                path=file.path,
                field="crypt_method",
            )
        self.file = file
        self.how = How(file.path, self.format)
        self.header = header
        self.geometry = header.geometry
        self.unit = self.geometry.unit
        self._data = data_file or file
        self.files: tuple[SourceFile, ...] = (file,) if data_file is None else (file, data_file)
        self.source = Source(self._data, self.geometry.cluster_size, header.compression_type)
        self.snapshots = read_snapshots(file, header)
        self.snapshot: Snapshot | None = None
        if snapshot is not None:
            self.snapshot = find_snapshot(self.snapshots, snapshot, file.path)
        self.size = self.snapshot.disk_size if self.snapshot else header.size
        self.map = self._read_map()

    def _read_map(self) -> ClusterMap:
        state = self.snapshot or self.header
        needed = self.geometry.l1_entries(self.size)
        if state.l1_size < needed:
            raise CorruptImageError(
                f"L1 table of {state.l1_size} entries does not cover the disk, "
                f"which needs {needed}",
                path=self.file.path,
                offset=state.l1_table_offset,
            )
        # Entries beyond the disk's size hold VM state, which is none of the disk's content.
        return ClusterMap(self.file, self.header, state.l1_table_offset, needed, self._data)

    def extents(self, start: int, stop: int) -> Extents:
        """Return what ``[start, stop)`` is in this file alone."""
        return self.map.extents(start, stop)

    def next_mapped(self, start: int) -> int | None:
        """Return where the next L2 table's reach begins."""
        return self.map.next_mapped(start)

    def close(self) -> None:
        """Close the file, and the data file."""
        self._data.close()
        self.file.close()
