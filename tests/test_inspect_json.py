"""``inspect --json`` and ``--json-lines`` keep to formats/inspect.schema.json and to their sums."""

from __future__ import annotations

import base64
import copy
import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from qcowdelta.disk.kinds import SpaceKind
from qcowdelta.report import document
from tests.support import qemu
from tests.support.attributions import HOSTILE_NAMES, made
from tests.support.commandline import ok, refused, run

SCHEMA = Path(__file__).resolve().parents[1] / "formats" / "inspect.schema.json"
KIB, MIB = 1 << 10, 1 << 20


def schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(SCHEMA.read_text(encoding="utf-8"))
    return found


def strict(value: Any) -> Any:
    """The schema, but refusing properties that it does not describe."""
    if isinstance(value, list):
        return [strict(each) for each in value]
    if not isinstance(value, dict):
        return value
    closed = {key: strict(each) for key, each in value.items()}
    if "properties" in closed and "allOf" not in closed and "additionalProperties" not in closed:
        closed["additionalProperties"] = False
    if "allOf" in closed:
        closed["unevaluatedProperties"] = False
    return closed


def validator(pointer: str = "") -> Draft202012Validator:
    whole = schema()
    if not pointer:
        # The head is closed together with the lists, not by itself.
        closed = strict(whole)
        closed["$defs"]["head"].pop("additionalProperties")
        return Draft202012Validator(closed)
    closed = strict(whole)
    for name in closed["$defs"]:
        closed["$defs"][name].pop("additionalProperties", None)
    return Draft202012Validator({"$ref": pointer, "$defs": closed["$defs"]})


def valid(found: dict[str, Any]) -> dict[str, Any]:
    """A document that has been found to be valid, and to add up."""
    validator().validate(found)
    adds_up(found)
    return found


def adds_up(found: dict[str, Any]) -> None:
    whole = found["changed_bytes"]
    assert whole == found["data_bytes"] + found["zero_bytes"]
    assert whole == sum(found[kind]["bytes"] for kind in ("added", "modified", "zeroed"))
    assert whole + found["unchanged_bytes"] + found["new_zero_bytes"] == found["virtual_size"]
    assert whole == sum(found["space"].values())
    assert found["zero_bytes"] == sum(found["zeroed_space"].values())
    total: Counter[str] = Counter()
    for partition in found["partitions"]:
        assert partition["changed_bytes"] == sum(partition["space"].values())
        total.update(partition["space"])
    assert +total == Counter(found["space"])
    if found["extents"]:
        assert whole == sum(extent["length"] for extent in found["extents"])
    files = [file["changed_bytes"] for file in found["files"]]
    assert files == sorted(files, reverse=True)
    assert sum(files) == sum(each["changed_bytes"] for each in found["files_by_status"].values())


def mke2fs(folder: Path, image: Path, size: str = "16M") -> Path:
    env = {"PATH": "/usr/sbin:/sbin:/usr/bin:/bin", "E2FSPROGS_FAKE_TIME": "1700000000"}
    uuid = "12345678-1234-1234-1234-123456789abc"
    words: list[str | Path] = [
        "mke2fs",
        "-q",
        "-t",
        "ext4",
        "-L",
        "<root>",
        "-U",
        uuid,
        "-d",
        folder,
        image,
        size,
    ]
    subprocess.run(words, check=True, capture_output=True, env=env)
    return image


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two disks with an ext4 each: a file more, one less, one changed; one has an odd name."""
    home = tmp_path_factory.mktemp("disks")
    old, new = home / "old", home / "new"
    for folder in (old, new):
        (folder / "etc").mkdir(parents=True)
        (folder / "etc" / "same").write_bytes(b"s" * 50_000)
        (folder / "etc" / "changed").write_bytes(folder.name.encode() * 20_000)
    (old / "gone").write_bytes(b"g" * 90_000)
    (new / "etc" / "come").write_bytes(b"c" * 200_000)
    Path(new / "odd\udcff").write_bytes(b"o" * 70_000)
    return mke2fs(old, home / "old.raw"), mke2fs(new, home / "new.raw")


def by_path(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {file["path"]: file for file in found["files"]}


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(schema())


def test_the_schema_names_every_kind_of_space() -> None:
    names = schema()["$defs"]["space"]["propertyNames"]["enum"]
    assert names == [kind.name.lower() for kind in SpaceKind]


def test_strictness_is_real(pair: tuple[Path, Path]) -> None:
    found = ok("inspect", *pair, "--json").json
    for change in ({"surplus": 1}, {"virtual_size": -1}, {"format_version": "2.0"}):
        assert not validator().is_valid({**found, **change})
    worse = copy.deepcopy(found)
    worse["files"][0]["surplus"] = 1
    assert not validator().is_valid(worse)


def test_a_document_tells_files_and_sums(pair: tuple[Path, Path]) -> None:
    found = valid(ok("inspect", *pair, "--json", "--cluster-size", "4k").json)
    assert (found["format"], found["format_version"]) == ("qcowdelta-inspect", "1.1")
    files = by_path(found)
    statuses = {path: file["status"] for path, file in files.items()}
    assert statuses["/etc/come"] == "added"
    assert statuses["/etc/changed"] == "modified"
    assert statuses["/gone"] == "deleted"
    assert files["/gone"]["changed_bytes"] == 0
    assert files["/gone"]["freed_bytes"] >= 90_000
    assert found["old"]["filename"] == str(pair[0])
    assert found["partitions"][0]["label"] == "<root>"
    assert found["partitions"][-1]["index"] is None


def test_a_name_that_is_no_text_is_told_exactly(pair: tuple[Path, Path]) -> None:
    found = ok("inspect", *pair, "--json").json
    odd = [file for file in found["files"] if "path_base64" in file]
    assert [base64.b64decode(file["path_base64"]) for file in odd] == [b"/odd\xff"]
    assert odd[0]["path"] == "/odd\\udcff"


def test_directories_come_with_tree(pair: tuple[Path, Path]) -> None:
    assert "directories" not in ok("inspect", *pair, "--json").json
    found = valid(ok("inspect", *pair, "--json", "--tree").json)
    rows = {row["path"]: row for row in found["directories"]}
    assert {"/", "/etc"} <= set(rows)
    assert rows["/"]["changed_bytes"] == sum(file["changed_bytes"] for file in found["files"])
    assert rows["/"]["files"] == len(found["files"])


def records(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        yield json.loads(line)


@pytest.mark.parametrize("more", [[], ["--tree"], ["--no-files"]])
def test_lines_say_the_same_as_the_document(pair: tuple[Path, Path], more: list[str]) -> None:
    document = ok("inspect", *pair, "--json", *more).json
    found = list(records(ok("inspect", *pair, "--json-lines", *more).out))
    check = validator("#/$defs/record")
    lists: dict[str, list[dict[str, Any]]] = {}
    for record in found:
        check.validate(record)
        kind = record.pop("record")
        lists.setdefault(kind, []).append(record)
    assert [kind for kind in lists if kind == "summary"] == ["summary"]
    assert found[-1] is lists["summary"][0]
    summary = lists["summary"][0]
    counts = summary.pop("counts")
    names = {"partition": "partitions", "file": "files", "directory": "directories"}
    for kind, plural in (*names.items(), ("advice", "advice"), ("extent", "extents")):
        rows = document.pop(plural, [])
        assert lists.get(kind, []) == rows
        if plural in counts:
            assert counts[plural] == len(rows)
    assert summary == document


def test_whatever_names_there_are_the_document_is_valid() -> None:
    made_up = made(files=300, names=HOSTILE_NAMES)
    found, inspection = made_up.attribution, made_up.inspection
    lists = {key: list(rows) for key, rows in document.lists(found, directories=True).items()}
    opened: dict[str, Any] = {"opened": {"old": [], "new": []}, "extents": []}
    text = json.dumps({**document.head(found, inspection), **lists, **opened})
    whole = valid(json.loads(text))
    names = {
        base64.b64decode(file["path_base64"]) if "path_base64" in file else file["path"].encode()
        for file in whole["files"]
    }
    assert {b"/" + name for name in HOSTILE_NAMES} <= names
    for file in whole["files"]:
        assert file["path"].isprintable()


def test_patches_and_disks_without_anything_are_valid(tmp_path: Path) -> None:
    old, new, patch = (tmp_path / name for name in ("old.qcow2", "new.qcow2", "x.qcpatch"))
    qemu.create(old, 4 * MIB)
    qemu.create(new, 4 * MIB)
    qemu.write(new, MIB, 64 * KIB, 7)
    ok("diff", old, new, "-o", patch)
    alone = valid(ok("inspect", patch, "--json").json)
    assert (alone["old"], alone["new"]) == (None, None)
    assert alone["space"] == {"unknown": 64 * KIB}
    assert alone["notes"]
    assert alone["patch"]["segments"] == 1
    over = valid(ok("inspect", old, patch, "--json").json)
    assert "patch" in over
    same = valid(ok("inspect", old, old, "--json").json)
    assert (same["changed_bytes"], same["extents"], same["files"]) == (0, [], [])
    for words in ([patch], [old, new]):
        lines = list(records(ok("inspect", *words, "--json-lines").out))
        assert lines[-1]["record"] == "summary"
        assert ("patch" in lines[-1]) == (words == [patch])


def test_no_files_looks_at_no_file_system(pair: tuple[Path, Path]) -> None:
    whole = ok("inspect", *pair, "--json").json
    found = valid(ok("inspect", *pair, "--json", "--no-files").json)
    assert found["files"] == []
    assert list(found["space"]) == ["unknown"]
    assert (found["old"], found["new"]) == (whole["old"], whole["new"])
    for name in ("changed_bytes", "added", "modified", "zeroed", "extents"):
        assert found[name] == whole[name]


def test_no_files_still_names_the_inputs(pair: tuple[Path, Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    text = ok("inspect", *pair, "--no-files", "--html", page).out
    assert text.startswith("old.raw -> new.raw")
    assert "<title>old.raw → new.raw" in page.read_text(encoding="utf-8")


def test_a_tree_without_files_says_why(pair: tuple[Path, Path]) -> None:
    text = ok("inspect", *pair, "--no-files", "--tree").out
    assert "(--no-files)" in text
    assert "No file is known" not in text
    assert "No file is known" in ok("inspect", pair[0], pair[0], "--tree").out


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A disk of 1 MiB, and the same with 3 MiB of zeros after it."""
    home = tmp_path_factory.mktemp("grown")
    small, large = home / "small.raw", home / "large.raw"
    small.write_bytes(b"x" * MIB)
    large.write_bytes(b"x" * MIB + bytes(3 * MIB))
    return small, large


def test_a_disk_that_grew_by_zeros_is_not_the_same(grown: tuple[Path, Path]) -> None:
    small, large = grown
    result = run("inspect", small, large, "--exit-code", "--json")
    found = valid(result.json)
    assert result.status == 1
    assert (found["old_virtual_size"], found["virtual_size"]) == (MIB, 4 * MIB)
    assert (found["changed_bytes"], found["unchanged_bytes"]) == (0, MIB)
    assert found["new_zero_bytes"] == 3 * MIB


def test_a_disk_that_shrank_is_not_the_same(grown: tuple[Path, Path]) -> None:
    small, large = grown
    result = run("inspect", large, small, "--exit-code", "--json")
    assert result.status == 1
    assert valid(result.json)["unchanged_bytes"] == MIB


def test_what_changed_beyond_the_end_of_old_counts_once(
    grown: tuple[Path, Path], tmp_path: Path
) -> None:
    # OLD's end and what follows it lie in one granule.
    old, new = tmp_path / "old.raw", tmp_path / "new.raw"
    old.write_bytes(b"x" * (MIB + 512))
    new.write_bytes(b"x" * (MIB + 512) + b"y" * 512 + bytes(MIB))
    found = valid(ok("inspect", old, new, "--json").json)
    assert found["changed_bytes"] == 64 * KIB
    assert found["unchanged_bytes"] == MIB
    assert found["new_zero_bytes"] == MIB + KIB - 64 * KIB


def test_every_report_says_that_the_disk_was_resized(
    grown: tuple[Path, Path], tmp_path: Path
) -> None:
    small, large = grown
    page, patch = tmp_path / "page.html", tmp_path / "x.qcpatch"
    text = ok("inspect", small, large, "--html", page).out
    assert "the disk grew from 1 MiB to 4 MiB" in text
    assert "(3 MiB of new zeros)" in text
    assert "the disk grew from 1 MiB to 4 MiB" in page.read_text(encoding="utf-8")
    assert "the disk shrank from 4 MiB to 1 MiB" in ok("inspect", large, small, "--tree").out
    ok("diff", small, large, "-o", patch)
    assert "the disk grew from 1 MiB to 4 MiB" in ok("inspect", patch).out


def test_exit_code_goes_with_each_way_of_printing(pair: tuple[Path, Path]) -> None:
    old, new = pair
    for word in ("--json", "--json-lines", "--tree", "--full"):
        assert run("inspect", old, new, "--exit-code", word).status == 1
        assert run("inspect", old, old, "--exit-code", word).status == 0
    assert "exclude" in refused("inspect", old, new, "--json", "--json-lines")
