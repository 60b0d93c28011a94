"""Changed files by directory, cut to what a report has room for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..attribution.figures import Attribution, DirectoryNode, FileChange, FileType, directory_tree
from ..errors import printable
from .words import NO_NAME, file_path, partition_short, shortened

_NAME = 120


@dataclass(frozen=True)
class Branch:
    """A line of the tree.

    Attributes:
        parent: the index of the line that it lies under; -1 for the root.
        name: its own name, printable.
        changed_bytes, freed_bytes: with all that lies under it.
        count: how many changed files it stands for.
        kind: ``directory``, ``rest`` for files that are summed up, or the file's status.
        depth: how many lines lie above it.
    """

    parent: int
    name: str
    changed_bytes: int
    freed_bytes: int
    count: int
    kind: str
    depth: int


@dataclass(frozen=True)
class _Pending:
    parent: int
    depth: int
    name: str
    node: DirectoryNode
    files: list[FileChange]


def partition_trees(found: Attribution) -> Iterator[tuple[int, DirectoryNode, list[FileChange]]]:
    """Yield, for each partition with changed files, its index, its tree and the tree's files."""
    by_partition: dict[int, list[FileChange]] = {}
    for file in found.files:
        by_partition.setdefault(file.partition, []).append(file)
    for index in sorted(by_partition):
        files = by_partition[index]
        yield index, directory_tree(files, index), files


def directory_rows(found: Attribution) -> Iterator[dict[str, Any]]:
    """Yield every directory with changed files under it, those with most changed bytes first.

    Within a partition; each has the path, and what changed in all that lies under it.
    """
    for index, root, _ in partition_trees(found):
        rows, parents = [root], [-1]
        for at, node in enumerate(rows):  # grows while it is gone through
            rows.extend(node.directories.values())
            parents.extend([at] * len(node.directories))
        for at in sorted(range(len(rows)), key=lambda at: (-rows[at].changed_bytes, at)):
            node = rows[at]
            yield {
                "path": printable(_path(rows, parents, at)),
                "partition": index,
                "changed_bytes": node.changed_bytes,
                "freed_bytes": node.freed_bytes,
                "files": sum(node.count.values()),
            }


def _path(rows: list[DirectoryNode], parents: list[int], at: int) -> bytes:
    names = []
    while parents[at] >= 0:
        names.append(rows[at].name)
        at = parents[at]
    return b"/" + b"/".join(reversed(names))


def directory_name(node: DirectoryNode) -> str:
    """Return a directory's name as text."""
    return shortened(printable(node.name), _NAME) if node.name else NO_NAME


def branches(found: Attribution, most: int, *, files: bool = True) -> list[Branch]:
    """Return the tree of all partitions, root first, parents before what lies under them.

    The smallest are left out, so that at most ``most`` lines remain, and summed up in lines of
    kind ``rest``; the bytes of every line are those of all that is under it, shown or not.

    Args:
        found: whose files.
        most: how many lines, sums not counted.
        files: whether files have lines, and sums, or directories alone.
    """
    trees = list(partition_trees(found))
    least = _threshold(trees, most, files=files)
    lines = [Branch(-1, "all files", *_totals([node for _, node, _ in trees]), "directory", 0)]
    queue = [
        _Pending(0, 1, partition_short(found.partitions[index]), node, files)
        for index, node, files in trees
    ]
    for pending in queue:
        queue.extend(_expand(lines, pending, least, files=files))
    return lines


def _totals(nodes: list[DirectoryNode]) -> tuple[int, int, int]:
    return (
        sum(node.changed_bytes for node in nodes),
        sum(node.freed_bytes for node in nodes),
        sum(sum(node.count.values()) for node in nodes),
    )


def _weight(changed: int, freed: int) -> int:
    """Return what a line is kept for: what was only freed counts too, but less."""
    return max(changed, freed // 8)


def _threshold(
    trees: list[tuple[int, DirectoryNode, list[FileChange]]], most: int, *, files: bool
) -> int:
    """Return the least weight of lines that are kept."""
    weights = []
    stack = [node for _, node, _ in trees]
    while stack:
        node = stack.pop()
        weights.append(_weight(node.changed_bytes, node.freed_bytes))
        stack.extend(node.directories.values())
    if files:
        weights += [_weight(f.changed_bytes, f.freed_bytes) for _, _, own in trees for f in own]
    weights.sort(reverse=True)
    return max(1, weights[most] + 1 if len(weights) > most else 1)


def _expand(lines: list[Branch], pending: _Pending, least: int, *, files: bool) -> list[_Pending]:
    """Add a directory's own line and those of its files; return the directories to go on with."""
    node = pending.node
    own = len(lines)
    lines.append(Branch(pending.parent, pending.name, *_totals([node]), "directory", pending.depth))
    kept: list[DirectoryNode] = []
    rest: list[DirectoryNode] = []
    for directory in node.directories.values():
        heavy = _weight(directory.changed_bytes, directory.freed_bytes) >= least
        (kept if heavy else rest).append(directory)
    if files:
        _add_files(lines, own, pending, least, list(_totals(rest)))
    return [
        _Pending(own, pending.depth + 1, directory_name(directory), directory, pending.files)
        for directory in kept
    ]


def _add_files(
    lines: list[Branch], own: int, pending: _Pending, least: int, small: list[int]
) -> None:
    """Add lines for a directory's files, and one that sums up the small ones, after ``small``."""
    depth = pending.depth + 1
    for index in pending.node.files:
        file = pending.files[index]
        changed, freed = file.changed_bytes, file.freed_bytes
        if _weight(changed, freed) < least:
            small = [small[0] + changed, small[1] + freed, small[2] + 1]
            continue
        name = file_path(file, None).rsplit("/", 1)[-1]
        name = "." if file.type is FileType.DIRECTORY else shortened(name, _NAME)
        lines.append(Branch(own, name, changed, freed, 1, file.status.value, depth))
    if small[2]:
        lines.append(Branch(own, "", small[0], small[1], small[2], "rest", depth))
