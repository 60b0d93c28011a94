"""The map of a disk: coarser where there is less room."""

from __future__ import annotations

import numpy as np

from ..attribution.figures import Attribution, Cells
from ..delta import ChangeKind
from ..units import ceil_div

MOST = 1 << 16
"""As many cells as a report uses."""


def coarser(cells: Cells, most: int) -> Cells:
    """Return the map with at most ``most`` cells, each made of neighbours.

    What a cell is, and whose, comes from that of its parts which changed most.
    """
    count = cells.changed.shape[1]
    factor = ceil_div(count, max(1, most))
    if factor <= 1:
        return cells
    groups = ceil_div(count, factor)
    pad = groups * factor - count
    changed = np.pad(cells.changed, ((0, 0), (0, pad))).reshape(len(ChangeKind), groups, factor)
    lead = np.arange(groups) * factor + changed.sum(axis=0).argmax(axis=1)
    return Cells(
        cells.size * factor,
        changed.sum(axis=2),
        cells.space[lead],
        cells.changed_space[lead],
        cells.file[lead],
    )


def cell_rows(found: Attribution, cells: Cells) -> list[tuple[int, ChangeKind, int]]:
    """Return, for each cell: changed bytes, the kind that most of them are, the cell's length."""
    total = cells.changed.sum(axis=0).tolist()
    most = (cells.changed.argmax(axis=0) + 1).tolist()
    lengths = [min(cells.size, found.size - at * cells.size) for at in range(len(total))]
    return [
        (count, ChangeKind(kind), length)
        for count, kind, length in zip(total, most, lengths, strict=True)
    ]


def partition_marks(found: Attribution, cells: Cells) -> dict[int, int]:
    """Return the cell in which each partition begins, and its number.

    Where several begin in one cell, it is the largest's.
    """
    marks: dict[int, tuple[int, int]] = {}
    for partition in found.partitions:
        if partition.number and not partition.gone:
            cell = partition.start // cells.size
            marks[cell] = max(marks.get(cell, (0, 0)), (partition.length, partition.number))
    return {cell: number for cell, (_, number) in marks.items()}
