"""A running VM described: its disks, nodes and bitmaps, and what was left behind in it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..errors import printable
from .machine import Disk, Machine, Node
from .names import is_checkpoint
from .steps import available
from .undo import Leftover, find_all


def describe_machine(machine: Machine) -> dict[str, Any]:
    """Return what a VM says of itself, as ``live status --json`` prints it.

    Raises:
        QmpError: it does not answer.
    """
    nodes = machine.nodes()
    return {
        "monitor": machine.name,
        "qemu": ".".join(map(str, machine.version)),
        "status": machine.status,
        "methods": available(machine),
        "disks": [_disk(disk) for disk in machine.disks()],
        "nodes": [_node(node) for node in nodes.values()],
        "bitmaps": [
            {
                **{key: _shown(value) for key, value in asdict(bitmap).items()},
                "checkpoint": is_checkpoint(bitmap.name),
            }
            for node in nodes.values()
            for bitmap in node.bitmaps
        ],
        "exports": [
            {"id": printable(name), "type": kind} for name, kind in machine.exports().items()
        ],
        "jobs": [
            {"id": printable(name), "status": status} for name, status in machine.jobs().items()
        ],
        "left_behind": describe_leftovers(find_all(machine)),
        "at_work": at_work(machine),
    }


def at_work(machine: Machine) -> bool:
    """Tell whether the process is alive, as far as is seen from here, whose run is in the VM."""
    record = machine.record()
    return record is not None and record.alive


def describe_leftovers(found: list[Leftover]) -> list[dict[str, str]]:
    """Return what a run left, or what was undone of it, as ``--json`` prints it."""
    return [{"kind": each.kind, "name": printable(each.name)} for each in found]


def _disk(disk: Disk) -> dict[str, Any]:
    node = disk.node
    return {
        "id": printable(disk.id),
        "qdev": printable(disk.qdev),
        "device": printable(disk.device),
        "node": None if node is None else printable(node.name),
        "format": None if node is None else node.driver,
        "file": None if node is None else printable(node.file),
        "size": None if node is None else node.size,
        "read_only": None if node is None else node.read_only,
    }


def _node(node: Node) -> dict[str, Any]:
    return {
        "name": printable(node.name),
        "format": node.driver,
        "file": printable(node.file),
        "size": node.size,
        "read_only": node.read_only,
    }


def _shown(value: Any) -> Any:
    return printable(value) if isinstance(value, str) else value
