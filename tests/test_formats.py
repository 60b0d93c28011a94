"""The formats as they are written down in formats/ are those that the package has."""

from __future__ import annotations

import copy
import importlib.machinery
import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import construct
import numpy as np
import pytest
import yaml
from blake3 import blake3

from qcowdelta.hashtree import content_digest
from qcowdelta.hostfile import HostFile
from qcowdelta.identity import BaseIdentity
from qcowdelta.image import open_image
from qcowdelta.patch import layout as patch_layout
from qcowdelta.patch.container import PatchFile
from qcowdelta.qcow2 import bitmaps, header, layout, snapshots
from qcowdelta.qcow2.header import read_header
from qcowdelta.qcow2.layout import ExtensionType
from qcowdelta.qcow2.snapshots import read_snapshots
from qcowdelta.qcow2.tables import read_l1
from tests.support import fixtures, vectors

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "check-ksy"
KSY = ROOT / "formats" / "qcow2.ksy"
PATCH_KSY = ROOT / "formats" / "cluster-patch.ksy"
PROFILE = ROOT / "formats" / "qcow2-profile.md"

Spec = dict[str, Any]


def load_script() -> Any:
    loader = importlib.machinery.SourceFileLoader("check_ksy", str(SCRIPT))
    spec = importlib.util.spec_from_loader("check_ksy", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


check_ksy = load_script()
interpreter = sys.modules["ksylib.interpreter"]


@pytest.fixture
def spec() -> Spec:
    loaded: Spec = copy.deepcopy(check_ksy.load(KSY))
    return loaded


@pytest.fixture
def patch_spec() -> Spec:
    loaded: Spec = copy.deepcopy(check_ksy.load(PATCH_KSY))
    return loaded


def run(*arguments: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False
    )


def test_each_ksy_agrees_with_the_declarations() -> None:
    done = run()
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_a_difference_is_told_and_exits_1(tmp_path: Path, spec: Spec) -> None:
    spec["types"]["header"]["seq"][1]["type"] = "u8"
    path = tmp_path / "other.ksy"
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    done = run(path)
    assert done.returncode == 1
    assert "('version', 'u4') in layout.py, ('version', 'u8') here" in done.stdout


def field(spec: Spec, type_name: str, name: str) -> Spec:
    found: Spec = next(f for f in spec["types"][type_name]["seq"] if f.get("id") == name)
    return found


def drop(spec: Spec, type_name: str, index: int) -> None:
    del spec["types"][type_name]["seq"][index]


def swap(spec: Spec, type_name: str, index: int) -> None:
    seq = spec["types"][type_name]["seq"]
    seq[index], seq[index + 1] = seq[index + 1], seq[index]


def value(spec: Spec, type_name: str, name: str, text: str) -> None:
    spec["types"][type_name]["instances"][name]["value"] = text


MUTATIONS: dict[str, Callable[[Spec], Any]] = {
    "field missing": lambda s: drop(s, "header", 4),
    "last field missing": lambda s: drop(s, "delta_extension", -1),
    "padding missing": lambda s: drop(s, "extension", -1),
    "fields swapped": lambda s: swap(s, "header", 7),
    "fields of one type swapped": lambda s: swap(s, "delta_extension", 7),
    "field renamed": lambda s: field(s, "snapshot_header", "id_size").update(id="id_length"),
    "narrower integer": lambda s: field(s, "bitmap_header", "table_size").update(type="u2"),
    "signed integer": lambda s: field(s, "header", "size").update(type="s8"),
    "little-endian": lambda s: s["meta"].update(endian="le"),
    "another magic": lambda s: field(s, "header", "magic").update(contents=[0x51, 0x46, 0x49, 0]),
    "another constant": lambda s: field(s, "delta_extension", "version").update(valid=2),
    "no constant": lambda s: field(s, "delta_extension", "reserved").pop("valid"),
    "another size": lambda s: field(s, "feature_name", "name").update(size=45),
    "another condition": lambda s: field(s, "header_v3", "additional").update(
        {"if": "header_length >= 105"}
    ),
    "no condition": lambda s: field(s, "snapshot_extra", "icount").pop("if"),
    "another padding": lambda s: s["types"]["extension"]["seq"][-1].update(size="length % 8"),
    "type missing": lambda s: s["types"].pop("bitmap_header"),
    "enum value": lambda s: s["enums"]["extension_type"].update({0x5143_444C: "other"}),
    "enum value missing": lambda s: s["enums"]["incompatible_bit"].pop(4),
    "enum unknown": lambda s: s["enums"].update(other={0: "zero"}),
    "encryption method": lambda s: s["enums"]["crypt_method"].pop(2),
    "offset mask": lambda s: value(s, "l1_entry", "l2_table_offset", "entry & 0x00ffffffffffff00"),
    "payload bound": lambda s: value(s, "l2_entry", "payload_bound", "payload_sectors * 512"),
    "shift": lambda s: value(s, "l2_entry", "shift", "62 - cluster_bits"),
    "sub-cluster halves": lambda s: value(s, "l2_bitmap", "zero", "bitmap & 0xffffffff"),
    "unknown name": lambda s: value(s, "l1_entry", "copied", "nothing"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_every_kind_of_difference_is_found(spec: Spec, name: str) -> None:
    MUTATIONS[name](spec)
    assert list(check_ksy.qcow2.differences(spec))


def test_a_declaration_that_the_ksy_lacks_is_found(
    spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = construct.Struct("field" / construct.Int8ub)
    monkeypatch.setattr(layout, "SomethingNew", new, raising=False)
    assert list(check_ksy.qcow2.differences(spec)) == ["SomethingNew: not in check-ksy"]


@pytest.mark.parametrize(
    "name",
    [
        "v2-65536", "v2-512", "header-104", "snapshots", "snapshots-v2", "snapshot-vm-state",
        "extended-l2-65536", "bitmaps", "encrypted-luks", "feature-names", "backing-chain",
        "compressed-zstd-4096", "data-file", "unknown-extension",
    ],
)  # fmt: skip
def test_the_ksy_reads_an_image_as_the_package_does(spec: Spec, name: str) -> None:
    path = fixtures.fixture(name)
    found = interpreter.Ksy(spec).image(path.read_bytes())
    file = HostFile.open(path)
    try:
        ours = read_header(file)
        fields = {**found["header"], **found.get("v3", {})}
        for each in ("version", "cluster_bits", "l1_size", "l1_table_offset", "nb_snapshots"):
            assert fields[each] == getattr(ours, each)
        assert found["header_length"] == ours.header_length
        assert found["has_extended_l2"] == ours.geometry.extended_l2
        kinds = [e["type"] for e in found["extensions"]]
        assert kinds == [*(e.type for e in ours.extensions), ExtensionType.END]
        assert found.get("backing_file") == ours.backing_file
        l1 = read_l1(file, ours.geometry, ours.l1_table_offset, ours.l1_size)
        assert [e["l2_table_offset"] for e in found["l1_table"]] == l1.tolist()
        theirs = [(s["id"], s["name"]) for s in found.get("snapshots", ())]
        assert theirs == [(s.id, s.name) for s in read_snapshots(file, ours)]
    finally:
        file.close()


# The cluster patch

PATCH_MUTATIONS: dict[str, Callable[[Spec], Any]] = {
    "field missing": lambda s: drop(s, "segment_head", 5),
    "fields swapped": lambda s: swap(s, "header", 5),
    "narrower integer": lambda s: field(s, "segment_head", "length").update(type="u2"),
    "big-endian": lambda s: s["meta"].update(endian="be"),
    "another magic": lambda s: field(s, "footer", "magic").update(contents=[0x51] * 8),
    "another padding": lambda s: s["types"]["section"]["seq"][-1].update(size="length % 8"),
    "column missing": lambda s: drop(s, "index", 4),
    "columns swapped": lambda s: swap(s, "operations", 0),
    "wider column": lambda s: field(s, "ranges", "length").update(type="u8"),
    "not a column": lambda s: field(s, "ranges", "length").pop("repeat"),
    "another count": lambda s: field(s, "segment_lists", "referenced").update(
        {"repeat-expr": "leaves"}
    ),
    "tables swapped": lambda s: swap(s, "directory", 0),
    "type missing": lambda s: s["types"].pop("index"),
    "enum value": lambda s: s["enums"]["operation_kind"].update({2: "copy_target"}),
    "enum missing": lambda s: s["enums"].pop("space"),
}


@pytest.mark.parametrize("name", PATCH_MUTATIONS)
def test_every_kind_of_difference_in_the_patch_is_found(patch_spec: Spec, name: str) -> None:
    PATCH_MUTATIONS[name](patch_spec)
    assert list(check_ksy.patch.differences(patch_spec))


@pytest.mark.parametrize("new", [construct.Struct(), patch_layout.Columns(np.dtype("u1"), 1)])
def test_a_declaration_of_the_patch_that_the_ksy_lacks_is_found(
    patch_spec: Spec, monkeypatch: pytest.MonkeyPatch, new: object
) -> None:
    monkeypatch.setattr(patch_layout, "SomethingNew", new, raising=False)
    assert list(check_ksy.patch.differences(patch_spec)) == ["SomethingNew: not in check-ksy"]


@pytest.mark.parametrize("name", vectors.names(outcome="valid"))
def test_the_ksy_reads_a_patch_as_the_package_does(
    patch_spec: Spec, name: str, tmp_path: Path
) -> None:
    path, _ = vectors.load(name).put(tmp_path)
    found = interpreter.Ksy(patch_spec).image(path.read_bytes())
    with PatchFile.open(path) as patch:
        ours = patch.header
        for each in ("base_size", "target_size", "target_digest", "segment_bits", "memory"):
            assert found["header"][each] == getattr(ours, each)
        sections = [(s["type"], s["data"]) for s in found["sections"]["entries"]]
        assert sections == list(ours.sections)
        for column in patch.entries.dtype.names or ():
            assert found["index"][column] == patch.entries[column].tolist()
        for theirs, segment in zip(found["segments"], patch.segments(), strict=True):
            assert theirs["head"]["number"] == segment.number
            assert theirs["lists"]["leaf_digests"] == list(segment.leaf_digests)
            assert theirs["lists"]["referenced"] == list(segment.references)
            assert theirs["payload"] == bytes(segment.payload)
            if theirs["head"]["directory_codec"] == patch_layout.Codec.STORED:
                for table in ("operations", "ranges"):
                    rows = getattr(segment, table)
                    for column in rows.dtype.names:
                        assert theirs["directory"][table][column] == rows[column].tolist()


# What the profile says of itself


def test_the_profile_states_the_limits_that_the_code_has() -> None:
    """Each limit stands in the profile's table of limits, by the name it has in the code."""
    text = PROFILE.read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\d,]+) \|", text, re.MULTILINE))
    named = {
        name: number
        for module in (header, snapshots, bitmaps)
        for name, number in vars(module).items()
        if name.startswith(("MAX_", "MIN_", "V2_", "V3_")) and isinstance(number, int)
    }
    assert {name: int(number.replace(",", "")) for name, number in rows.items()} == named


def test_the_profiles_table_of_the_delta_extension_is_the_declaration() -> None:
    text = PROFILE.read_text(encoding="utf-8")
    section = text.split("## The delta extension")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d+)-(\d+) \| `(\w+)` \|", section, re.MULTILINE)
    position, expected = 0, []
    for declared in layout.DeltaExtension.subcons:
        size = declared.sizeof()
        expected.append((position, position + size - 1, declared.name))
        position += size
    assert [(int(first), int(last), name) for first, last, name in rows] == expected
    assert position == layout.DeltaExtension.sizeof()
    assert f"{position} bytes." in section


def test_the_profiles_fingerprint_can_be_made_from_its_text_alone(tmp_path: Path) -> None:
    """Re-implemented here from formats/qcow2-profile.md, for a raw base and a qcow2 one."""
    for name in ("raw", "zero-clusters", "cluster-512", "extended-l2-65536", "backing-chain"):
        with open_image(fixtures.fixture(name)) as image:
            assert BaseIdentity.of(image).fingerprint == fingerprint_by_the_text(image)


def fingerprint_by_the_text(image: Any) -> bytes:
    parts = [b"qcowdelta base fingerprint 1", image.size.to_bytes(8, "big")]
    for layer in image.layers:
        parts += [layer.format.encode().ljust(8, b"\0"), layer.size.to_bytes(8, "big")]
        if layer.format == "qcow2":
            parts += table_stretches(layer)
    read = image.reader().read
    parts.append(read(0, min(2 << 20, image.size)))
    step = image.size // 64
    if step:
        for i in range(64):
            parts.append(read(i * step // 4096 * 4096, 4096))  # the text: A rounded down
    digest: bytes = blake3(b"".join(parts)).digest()
    return digest


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 512, 1 << 20, (3 << 20) + 512, 256 << 20, (257 << 20) + 512])
def test_the_profiles_digest_can_be_made_from_its_text_alone(tmp_path: Path, size: int) -> None:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(size)
        for offset in range(0, size, 37 << 20):
            file.seek(offset)
            file.write(b"data")
    with open_image(path) as image:
        assert content_digest(image) == digest_by_the_text(path.read_bytes())


def digest_by_the_text(content: bytes) -> bytes:
    leaf = 1 << 20
    level = [blake3(content[i : i + leaf]).digest() for i in range(0, len(content), leaf)]
    while True:
        groups = [level[i : i + 256] for i in range(0, len(level), 256)] or [[]]
        level = [blake3(b"".join(group)).digest() for group in groups]
        if len(level) == 1:
            return bytes(blake3(len(content).to_bytes(8, "big") + level[0]).digest())


def table_stretches(layer: Any) -> list[bytes]:
    bits = layer.header.cluster_bits
    words = 2 if layer.geometry.extended_l2 else 1
    per = (1 << bits) // (8 * words)
    total = -(-layer.size // (1 << bits))
    tables = [int(offset) for offset in layer.map.l1]
    data = Path(layer.file.path).read_bytes()
    parts, cluster = [], 0
    while cluster < total:
        if not tables[cluster // per]:
            cluster = (cluster // per + 1) * per
            continue
        stop = min(cluster + 65536, total)
        parts.append((cluster << bits).to_bytes(8, "big"))
        for each in range(cluster, stop):
            at = tables[each // per]
            begin = at + each % per * 8 * words
            entry = data[begin : begin + 8 * words] if at else bytes(8 * words)
            parts.append(bytes([entry[0] & 0x7F]) + entry[1:])
        cluster = stop
    return parts
