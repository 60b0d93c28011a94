"""A delta that nothing is known of but where its changes are."""

from __future__ import annotations

import numpy as np

from ..attribution.figures import Attribution, Cells, PartitionShare, SourceFacts
from ..disk.kinds import SpaceKind
from ..inspect import Inspection


def unattributed(
    inspection: Inspection,
    note: str,
    sources: tuple[SourceFacts | None, SourceFacts | None] = (None, None),
) -> Attribution:
    """Return an attribution in which all that changed is "not attributed".

    Args:
        inspection: the delta in figures, with as many cells as the reports are to have.
        note: why no more is known.
        sources: what is known of OLD and NEW.
    """
    summary = inspection.summary
    changed = summary.data_bytes + summary.zero_bytes
    by_kind, zeroed = (
        {SpaceKind.UNKNOWN: count} if count else {} for count in (changed, summary.zero_bytes)
    )
    count = inspection.cells.shape[1]
    unknown = np.full(count, SpaceKind.UNKNOWN, np.uint8)
    nobody = np.full(count, -1, np.int32)
    return Attribution(
        size=summary.size,
        granularity=summary.granularity,
        changed_bytes=changed,
        by_kind=by_kind,
        zeroed=zeroed,
        partitions=(),
        by_partition=(
            PartitionShare(None, changed, by_kind, zeroed, {SpaceKind.UNKNOWN: summary.size}),
        ),
        files=(),
        cells=Cells(inspection.cell_size, inspection.cells, unknown, unknown, nobody),
        sources=sources,
        notes=(note,),
    )
