"""What a running VM says of itself: disks, nodes, bitmaps, and all that can be left in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import LiveError, QmpError, printable
from ..qemu.qmp import QmpSession
from . import names

_PERIPHERAL = "/machine/peripheral/"


@dataclass(frozen=True)
class Bitmap:
    """A dirty bitmap.

    Attributes:
        node: the node whose writes it records.
        name: its name.
        granularity: bytes to a bit.
        count: how many bytes are dirty.
        recording: whether writes are recorded.
        busy: whether an operation uses it.
        persistent: whether it is stored in the image when the VM ends.
        inconsistent: whether it was in use when a VM was killed, so that it is of no use.
    """

    node: str
    name: str
    granularity: int
    count: int
    recording: bool
    busy: bool
    persistent: bool
    inconsistent: bool


@dataclass(frozen=True)
class Node:
    """A node of the block graph.

    Attributes:
        name, driver, file: as QEMU has them; a format's driver is what qemu-img calls the format.
        size: the virtual size, bytes.
        read_only: whether it can be written.
        stores_bitmaps: whether it can keep bitmaps when the VM ends.
        bitmaps: its bitmaps, without those that have no name.
    """

    name: str
    driver: str
    file: str
    size: int
    read_only: bool
    stores_bitmaps: bool
    bitmaps: tuple[Bitmap, ...]

    def bitmap(self, name: str) -> Bitmap | None:
        """Return the bitmap of that name."""
        return next((bitmap for bitmap in self.bitmaps if bitmap.name == name), None)


@dataclass(frozen=True)
class Disk:
    """A disk of the guest.

    Attributes:
        id: what it is called here: the id of its device where it has one.
        qdev: its device, a QOM path; empty where it has none.
        device: the name of its block backend; empty where it has none.
        node: the node it reads and writes; None: no medium.
    """

    id: str
    qdev: str
    device: str
    node: Node | None

    def is_called(self, name: str) -> bool:
        """Tell whether it goes by a name: its id, device, QOM path or node."""
        called = {self.id, self.qdev, self.device} | ({self.node.name} if self.node else set())
        return name in called - {""}


class Machine:
    """A running VM, asked through its monitor.

    Nothing is remembered: each answer is as of when it was asked for.
    """

    def __init__(self, qmp: QmpSession) -> None:
        self.qmp = qmp

    @property
    def name(self) -> str:
        """What the VM is to people, for messages: where its monitor is."""
        return self.qmp.name

    @property
    def version(self) -> tuple[int, int, int]:
        """QEMU's version."""
        found = self.qmp.execute("query-version")["qemu"]
        return found["major"], found["minor"], found["micro"]

    @property
    def status(self) -> str:
        """The run state: ``running``, ``paused`` and so on."""
        return str(self.qmp.execute("query-status")["status"])

    def disks(self) -> list[Disk]:
        """Return the guest's disks, those without a medium too."""
        return [_disk(entry) for entry in self.qmp.execute("query-block")]

    def disk(self, name: str) -> tuple[Disk, Node]:
        """Return the disk that goes by a name, and its node.

        Raises:
            LiveError: there is none, or it has no medium.
        """
        disks = self.disks()
        found = [disk for disk in disks if disk.is_called(name)]
        if not found:
            there = ", ".join(printable(disk.id) for disk in disks) or "none"
            raise LiveError(f"{self.name}: no disk is called {printable(name)}; there are: {there}")
        node = found[0].node
        if node is None:
            raise LiveError(f"{self.name}: disk {printable(name)} has no medium")
        return found[0], node

    def has_iothread(self, disk: Disk) -> bool:
        """Tell whether a disk, or what it is attached to, is served by a thread of its own."""
        device = disk.qdev
        while device:
            if self._property(device, "iothread"):
                return True
            device = self._property(device, "parent_bus").rpartition("/")[0]
        return False

    def _property(self, path: str, name: str) -> str:
        """Return a property of an object that is text; empty: it has none."""
        try:
            found = self.qmp.execute("qom-get", {"path": path, "property": name})
        except QmpError as error:
            if error.error_class is None:
                raise
            return ""
        return found if isinstance(found, str) else ""

    def nodes(self) -> dict[str, Node]:
        """Return the nodes by name."""
        flat = {"flat": True} if self.qmp.has("query-named-block-nodes:flat") else {}
        entries = self.qmp.execute("query-named-block-nodes", flat)
        return {entry["node-name"]: _node(entry) for entry in entries}

    def exports(self) -> dict[str, str]:
        """Return the type of each block export, by id."""
        if not self.qmp.has("query-block-exports"):
            return {}
        return {entry["id"]: entry["type"] for entry in self.qmp.execute("query-block-exports")}

    def jobs(self) -> dict[str, str]:
        """Return the status of each job, by id."""
        return {entry["id"]: entry["status"] for entry in self.qmp.execute("query-jobs")}

    def objects(self) -> list[str]:
        """Return the ids of the objects that a user made."""
        entries = self.qmp.execute("qom-list", {"path": "/objects"})
        return [entry["name"] for entry in entries if entry["type"].startswith("child<")]

    def descriptors(self) -> list[int]:
        """Return the sets of descriptors that have one of ours.

        One that was removed while the VM stood still is listed until it runs again.
        """
        return [
            entry["fdset-id"]
            for entry in self.qmp.execute("query-fdsets")
            if any(fd.get("opaque") == names.SCRATCH for fd in entry["fds"])
        ]

    def record(self) -> names.Record | None:
        """Return the record of the run that is at work, or was killed; None: there is none.

        Raises:
            LiveError: it is not understood.
        """
        if names.RUN not in self.objects():
            return None
        place = {"path": f"/objects/{names.RUN}", "property": "identity"}
        return names.Record.parse(self.qmp.execute("qom-get", place))


def _disk(entry: dict[str, Any]) -> Disk:
    qdev, inserted = entry.get("qdev", ""), entry.get("inserted")
    if qdev and not qdev.startswith("/"):
        qdev = _PERIPHERAL + qdev
    named = qdev.removeprefix(_PERIPHERAL).partition("/")[0]
    device = entry.get("device", "")
    node = _node(inserted) if inserted else None
    return Disk(named or device or qdev or (node.name if node else ""), qdev, device, node)


def _node(entry: dict[str, Any]) -> Node:
    image, name = entry.get("image", {}), entry["node-name"]
    data = image.get("format-specific", {}).get("data", {})
    return Node(
        name,
        entry["drv"],
        image.get("filename") or entry.get("file", ""),
        image.get("virtual-size", 0),
        entry.get("ro", False),
        entry["drv"] == "qcow2" and data.get("compat") != "0.10" and not entry.get("ro", False),
        tuple(_bitmaps(name, entry.get("dirty-bitmaps", ()))),
    )


def _bitmaps(node: str, entries: list[dict[str, Any]]) -> Iterator[Bitmap]:
    for entry in entries:
        if entry.get("name"):
            yield Bitmap(
                node,
                entry["name"],
                entry["granularity"],
                entry["count"],
                entry.get("recording", False),
                entry.get("busy", False),
                entry.get("persistent", False),
                entry.get("inconsistent", False),
            )
