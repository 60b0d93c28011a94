"""formats/cluster-patch.ksy and qcowdelta/patch/layout.py."""

from __future__ import annotations

import random
from collections.abc import Iterator

from ksylib.compare import Format, Sample, enumerations, structures
from ksylib.interpreter import Spec
from qcowdelta.patch import layout


def _sample(source: random.Random, name: str) -> Sample:
    """Make up bytes that both parse: constants in place, counts small."""
    data = bytearray(source.randbytes(1024))
    counts = {key: source.randrange(8) for key in _COUNTS.get(name, ())}
    if name == "Header":
        data[:8] = layout.MAGIC
    elif name == "SegmentHead":
        data[:4] = layout.SEGMENT_MAGIC
    elif name == "Footer":
        data[48:56] = layout.FOOTER_MAGIC
    elif name == "Section":
        data[4:8] = source.randrange(200).to_bytes(4, "little")
    return Sample(bytes(data), counts, tuple(counts.values()))


_COUNTS = {
    "SegmentLists": ("leaves", "references"),
    "Directory": ("operations", "ranges"),
    "Index": ("count",),
}

FORMAT = Format(
    layout=layout,
    order="<",
    types={
        "Header": "header",
        "Section": "section",
        "SegmentHead": "segment_head",
        "SegmentLists": "segment_lists",
        "Directory": "directory",
        "Index": "index",
        "Footer": "footer",
    },
    enums={
        "section_type": (layout.SectionType, False),
        "operation_kind": (layout.OperationKind, False),
        "space": (layout.Space, False),
        "codec": (layout.Codec, False),
    },
    sample=_sample,
    tables=layout.Columns,
)


def differences(spec: Spec) -> Iterator[str]:
    """Yield every difference between the .ksy and the declarations, a line each."""
    yield from structures(spec, FORMAT)
    yield from enumerations(spec, FORMAT)
