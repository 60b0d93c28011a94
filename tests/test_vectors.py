"""Every vector of the cluster patch has its outcome, here and with the applier of formats/."""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import io
import re
import subprocess
import sys
from collections import Counter
from enum import EnumMeta
from pathlib import Path
from typing import Any

import construct
import lz4
import numpy as np
import pytest
import zstandard
from blake3 import blake3

from qcowdelta.cli.commands import cli
from qcowdelta.errors import QcowDeltaError
from qcowdelta.hostfile import HostFile
from qcowdelta.image import open_image
from qcowdelta.patch import layout
from qcowdelta.patch.container import PatchFile, read_sidecar
from qcowdelta.patch.decode import SegmentDecoder
from qcowdelta.patch.verify import verify_patch
from tests.support import vectors

ROOT = Path(__file__).resolve().parents[1]
APPLIER = ROOT / "formats" / "apply.py"
DOCUMENT = ROOT / "formats" / "cluster-patch.md"
ALL = vectors.names()
MADE_WITH = {"zstd": (1, 5, 7), "lz4": "1.9.4"}


def load(path: Path) -> Any:
    name = path.stem.replace("-", "_")
    loader = importlib.machinery.SourceFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)
        loader.exec_module(module)
    return module


def hold(vector: vectors.Vector, content: bytes) -> None:
    assert vector.target == (len(content), blake3(content).hexdigest())


def qcowdelta(*words: str | Path) -> None:
    """Run a command; an error comes out as it is raised."""
    status = cli.main([str(word) for word in words], standalone_mode=False)
    assert not status


# qcowdelta


@pytest.mark.parametrize("name", ALL)
def test_apply_gives_the_outcome_that_the_vector_states(name: str, tmp_path: Path) -> None:
    vector = vectors.load(name)
    patch, base = vector.put(tmp_path)
    out = tmp_path / "out.raw"
    apply = ("apply", patch, "--base", base, "--base-format", "raw", "-o", out, "--quiet")
    if vector.outcome == "valid":
        qcowdelta(*apply)
        hold(vector, out.read_bytes())
        return
    with pytest.raises(QcowDeltaError) as caught:
        qcowdelta(*apply)
    assert type(caught.value) is vectors.CLASSES[vector.outcome]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.raw", "vector.qcpatch"]


@pytest.mark.parametrize("name", ALL)
def test_verify_accepts_a_valid_patch_with_its_base_and_nothing_else(
    name: str, tmp_path: Path
) -> None:
    vector = vectors.load(name)
    patch_path, base_path = vector.put(tmp_path)
    with open_image(base_path, format="raw") as base:
        try:
            with PatchFile.open(patch_path) as patch:
                good = verify_patch(patch, base).good
        except QcowDeltaError:
            good = False
    assert good == (vector.outcome == "valid")


@pytest.mark.parametrize("name", vectors.names(file="sidecar"))
def test_a_sidecar_reads_as_the_index_of_its_patch(name: str, tmp_path: Path) -> None:
    path, _ = vectors.load(name).put(tmp_path)
    file = HostFile.open(path, lock=False)
    try:
        header, entries = read_sidecar(file)
    finally:
        file.close()
    assert header.segment_count == entries.size == 2
    assert entries["number"].tolist() == [0, 1]
    assert entries["users"].tolist() == [1, 0]
    assert int(entries["offset"][0]) == header.length


def test_a_patch_is_refused_as_a_sidecar(tmp_path: Path) -> None:
    path, _ = vectors.load("zero").put(tmp_path)
    file = HostFile.open(path, lock=False)
    try:
        with pytest.raises(vectors.CLASSES["format"]):
            read_sidecar(file)
    finally:
        file.close()


@pytest.mark.slow
def test_a_long_chain_of_references_that_is_not_closed_is_refused_from_its_end(
    tmp_path: Path,
) -> None:
    """Whoever reads one segment decodes no more than this may refer to."""
    path, base_path = tmp_path / "chain.qcpatch", tmp_path / "base.raw"
    segments = [handmade.Segment(0, [(0, 512, handmade.ZERO, 0)])]
    for number in range(1, 600):
        copy = (0, 512, handmade.COPY_TARGET, number - 1 << 20)
        segments.append(handmade.Segment(number, [copy], references=[number - 1]))
    patch = handmade.Patch(handmade.Base(0), 600 << 20, segments)
    path.write_bytes(patch.build())
    base_path.write_bytes(b"")
    with PatchFile.open(path) as opened, open_image(base_path, format="raw") as base:
        decoder = SegmentDecoder(opened, base)
        with pytest.raises(vectors.CLASSES["format"]):
            decoder.content(599)
        decoder.close()


# The applier


@pytest.mark.parametrize("name", ALL)
def test_the_independent_applier_gives_the_outcome_that_the_vector_states(
    name: str, tmp_path: Path
) -> None:
    vector = vectors.load(name)
    patch, base = io.BytesIO(vector.body), io.BytesIO(vector.base)
    with (tmp_path / "out.raw").open("w+b") as out:
        if vector.outcome == "valid":
            applier.apply(patch, base, out)
            out.seek(0)
            hold(vector, out.read())
            return
        with pytest.raises(SystemExit) as caught:
            applier.apply(patch, base, out)
        assert str(caught.value).startswith(f"apply.py: {vector.outcome}: ")


@pytest.mark.parametrize("piped", [False, True])
def test_the_independent_applier_writes_a_file(piped: bool, tmp_path: Path) -> None:
    vector = vectors.load("every_operation_at_odd_places")
    patch, base = vector.put(tmp_path)
    out = tmp_path / "out.raw"
    done = run_applier("-" if piped else patch, base, out, data=vector.body)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    hold(vector, out.read_bytes())


@pytest.mark.parametrize("name", ["magic", "cut_in_a_segment", "target_digest", "zstd_bomb"])
def test_the_independent_applier_refuses_in_one_line_and_writes_nothing(
    name: str, tmp_path: Path
) -> None:
    patch, base = vectors.load(name).put(tmp_path)
    done = run_applier(patch, base, tmp_path / "out.raw")
    assert done.returncode == 1
    assert re.fullmatch(rb"apply\.py: \w+: .+\n", done.stderr)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.raw", "vector.qcpatch"]


def test_the_independent_applier_replaces_nothing(tmp_path: Path) -> None:
    patch, base = vectors.load("zero").put(tmp_path)
    before = base.read_bytes()
    done = run_applier(patch, base, base)
    assert done.returncode == 1
    assert base.read_bytes() == before


def run_applier(
    patch: Path | str, base: Path, out: Path, data: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    words = [sys.executable, "-B", str(APPLIER), str(patch), str(base), str(out)]
    return subprocess.run(words, input=data, capture_output=True, check=False)


def test_the_independent_applier_is_short_and_needs_only_the_codecs() -> None:
    text = APPLIER.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    used = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            used |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            used.add(str(node.module).partition(".")[0])
    assert used - sys.stdlib_module_names == {"blake3", "lz4", "zstandard"}
    assert not {"importlib", "runpy", "subprocess", "ctypes"} & used


# The vectors themselves


@pytest.mark.slow
def test_each_vector_is_what_its_generator_makes() -> None:
    if (zstandard.ZSTD_VERSION, lz4.library_version_string()) != tuple(MADE_WITH.values()):
        pytest.skip("other versions of zstd and lz4 may compress otherwise")
    assert make_vectors.check() == 0


def test_the_generators_use_nothing_of_the_package() -> None:
    for path in (vectors.FOLDER / "generators").glob("*.py"):
        assert "qcowdelta" not in path.read_text(encoding="utf-8").replace("qcowdelta ", "")


def test_the_vectors_are_small() -> None:
    assert sum(path.stat().st_size for path in vectors.FOLDER.glob("*.vector")) < 200_000


def test_valid_vectors_use_every_kind_codec_and_space(tmp_path: Path) -> None:
    seen: Counter[Any] = Counter()
    for name in vectors.names(outcome="valid"):
        path, _ = vectors.load(name).put(tmp_path)
        with PatchFile.open(path) as patch:
            for segment in patch.segments():
                seen.update(layout.OperationKind(k) for k in segment.operations["kind"].tolist())
                seen.update(layout.Space(k) for k in segment.ranges["space"].tolist())
                seen[f"codec {segment.codec}"] += 1
    wanted = {*layout.OperationKind, *layout.Space, *(f"codec {int(c)}" for c in layout.Codec)}
    assert wanted <= seen.keys()


# The document


def limits() -> dict[str, int]:
    return {
        name: number
        for name, number in vars(layout).items()
        if (name.startswith(("MAX_", "MIN_")) or name == "LEAF") and isinstance(number, int)
    }


def test_the_document_and_the_applier_state_the_limits_that_the_code_has() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\d,]+) \|", text, re.MULTILINE))
    assert {name: int(number.replace(",", "")) for name, number in rows.items()} == limits()
    of_applier = {name: value for name, value in vars(applier).items() if name in limits()}
    assert of_applier.items() <= limits().items()
    assert set(limits()) - set(of_applier) == {
        "MIN_SEGMENT_BITS", "MAX_SEGMENT_BITS", "MAX_OPERATIONS", "MAX_RANGES"
    }  # fmt: skip


def test_the_document_has_every_structure_enumeration_and_magic() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, value in vars(layout).items():
        structure = isinstance(value, construct.Struct | layout.Columns | np.dtype)
        enumeration = isinstance(value, EnumMeta) and value.__module__ == layout.__name__
        if structure or enumeration:
            assert f"`{name}`" in text, name
        if enumeration:
            for member in value:
                assert re.search(rf"\b{int(member)}\b.*\b{member.name}\b", text), member
        if name.endswith("MAGIC"):
            assert value.hex(" ").upper() in text, name


@pytest.mark.parametrize("name", ["Header", "SegmentHead", "Footer"])
def test_the_documents_tables_of_bytes_are_the_declarations(name: str) -> None:
    declared = getattr(layout, name)
    section = re.split(rf"`{name}`, {declared.sizeof()} bytes", document())[1].split("\n\n")[1]
    rows = re.findall(r"^\| (\d+)-(\d+) \| `(\w+)` \|", section, re.MULTILINE)
    position, expected = 0, []
    for field in declared.subcons:
        expected.append((str(position), str(position + field.sizeof() - 1), field.name))
        position += field.sizeof()
    assert rows == expected


@pytest.mark.parametrize("name", ["OPERATION", "RANGE", "ENTRY"])
def test_the_documents_tables_of_columns_are_the_declarations(name: str) -> None:
    declared = getattr(layout, name)
    section = document().split(f"`{name}`, {declared.itemsize} bytes")[1].split("\n\n")[1]
    rows = re.findall(r"^\| `(\w+)` \| u(\d) \|", section, re.MULTILINE)
    assert rows == [(n, str(declared[n].itemsize)) for n in declared.names]


def document() -> str:
    return DOCUMENT.read_text(encoding="utf-8")


applier = load(APPLIER)
handmade = load(vectors.FOLDER / "generators" / "handmade.py")
make_vectors = load(ROOT / "scripts" / "make-vectors")
