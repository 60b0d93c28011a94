"""formats/qcow2.ksy and qcowdelta/qcow2/layout.py."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np

from ksylib.compare import ROUNDS, Format, Sample, enumerations, structures
from ksylib.interpreter import Ksy, KsyError, Reader, Spec
from qcowdelta.qcow2 import layout
from qcowdelta.qcow2.geometry import (
    ALL_ONES,
    ALL_SUBCLUSTERS,
    ALL_ZERO,
    BITMAP_RESERVED,
    COMPRESSED,
    COPIED,
    OFFSET_MASK,
    REFTABLE_RESERVED,
    SUBCLUSTERS,
    Geometry,
)
from qcowdelta.qcow2.header import CRYPT_NAMES


def _sample(source: random.Random, name: str) -> Sample:
    """Make up bytes that both parse: constants in place, lengths small."""
    length = source.choice((16, 24, 40))
    data = bytearray(source.randbytes(48 * 3 if name == "FeatureNames" else 512))
    if name == "Header":
        data[:4] = layout.MAGIC
    elif name == "HeaderV3":
        data[28:32] = source.choice((104, 108, 111, 112, 120)).to_bytes(4, "big")
    elif name == "Extension":
        data[4:8] = source.randrange(200).to_bytes(4, "big")
    elif name == "DeltaExtension":
        data[:2], data[4:8] = b"\0\1", bytes(4)
    arguments = (length,) if name == "SnapshotExtra" else ()
    return Sample(bytes(data), {"length": length}, arguments)


FORMAT = Format(
    layout=layout,
    order=">",
    types={
        "Header": "header",
        "HeaderV3": "header_v3",
        "Extension": "extension",
        "FeatureNames": "feature_names",
        "BitmapsExtension": "bitmaps_extension",
        "EncryptionExtension": "encryption_extension",
        "DeltaExtension": "delta_extension",
        "SnapshotHeader": "snapshot_header",
        "SnapshotExtra": "snapshot_extra",
        "BitmapHeader": "bitmap_header",
    },
    enums={
        "extension_type": (layout.ExtensionType, False),
        "compression_type": (layout.CompressionType, False),
        "incompatible_bit": (layout.Incompatible, True),
        "compatible_bit": (layout.Compatible, True),
        "autoclear_bit": (layout.Autoclear, True),
    },
    sample=_sample,
)


def differences(spec: Spec) -> Iterator[str]:
    """Yield every difference between the .ksy and the declarations, a line each."""
    yield from structures(spec, FORMAT)
    enums = dict(spec["enums"])
    crypt = {number: text.lower() for number, text in CRYPT_NAMES.items()}
    if (found := enums.pop("crypt_method", None)) != crypt:
        yield f"enum crypt_method: {found}, {crypt} in header.py"
    yield from enumerations({**spec, "enums": enums}, FORMAT)
    yield from _entries(spec)


def _entries(spec: Spec) -> Iterator[str]:
    """Compare what is made of table entries with the arithmetic in geometry.py."""
    ksy, source = Ksy(spec), random.Random("entries")
    for _ in range(ROUNDS):
        word, bits = source.getrandbits(64), source.randrange(9, 22)
        array, geometry = np.array([word], np.uint64), Geometry(bits)
        expected: dict[str, dict[str, int]] = {
            "l1_entry": {"copied": bool(word & COPIED), "l2_table_offset": word & OFFSET_MASK},
            "l2_entry": {
                "copied": bool(word & COPIED),
                "compressed": bool(word & COMPRESSED),
                "all_zero": bool(word & ALL_ZERO),
                "host_offset": word & OFFSET_MASK,
                "payload_offset": int(geometry.compressed_host(array)[0]),
                "payload_bound": int(geometry.compressed_bound(array)[0]),
            },
            "l2_bitmap": {"allocated": word & ALL_SUBCLUSTERS, "zero": word >> SUBCLUSTERS},
            "refcount_table_entry": {"refcount_block_offset": word & ~REFTABLE_RESERVED},
            "bitmap_table_entry": {
                "all_ones": bool(word & ALL_ONES),
                "bits_offset": word & ~(BITMAP_RESERVED | ALL_ONES),
            },
        }
        for name, values in expected.items():
            arguments = [bits] if name == "l2_entry" else []
            try:
                found = ksy.parse(name, Reader(word.to_bytes(8, "big")), *arguments)
            except (KsyError, KeyError, NameError, ValueError) as error:
                yield f"{name}: {type(error).__name__}: {error}"
                return
            wrong = [k for k, v in values.items() if found.get(k) != v]
            if wrong:
                yield f"{name}: {', '.join(wrong)} of {word:#x} disagree with geometry.py"
                return
