"""The contract of the commands that make and use patches: options, statuses, output, refusals."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qcowdelta import HostFile, PatchFile, describe, open_image, open_patched
from qcowdelta.cli.commands import cli
from tests.support import patches, qemu
from tests.support.commandline import ok, refused, run

KIB, MIB = 1 << 10, 1 << 20
SIZE = 4 * MIB


@dataclass(frozen=True)
class Pair:
    """OLD and NEW: 64 KiB at 1 MiB are other noise, 128 KiB of OLD come again, 64 KiB are zeros."""

    old: Path
    new: Path
    patch: Path

    @property
    def base(self) -> list[str | Path]:
        return ["--base", self.old]


ZEROED, DATA = 64 * KIB, 192 * KIB


def assert_operations(found: dict[str, int]) -> None:
    """Assert what is zeroed, and that of the rest about as much is copied as could be."""
    assert found["zero"] == ZEROED
    assert found["data"] + found["copy_base"] == DATA
    assert 64 * KIB <= found["copy_base"] <= 128 * KIB
    assert found.get("copy_target", 0) == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    qemu.require("qemu-img", "qemu-io")
    folder = tmp_path_factory.mktemp("pair")
    chance = random.Random(1)
    noise = chance.randbytes(512 * KIB)
    old, new, patch = folder / "old.qcow2", folder / "new.qcow2", folder / "x.qcpatch"
    qemu.create(old, SIZE)
    qemu.write_bytes(old, 0, noise)
    qemu.write_bytes(old, MIB, noise[::-1])
    shutil.copyfile(old, new)
    qemu.zero(new, 0, 64 * KIB)
    qemu.write_bytes(new, MIB, chance.randbytes(64 * KIB))
    qemu.write_bytes(new, 2 * MIB, noise[128 * KIB : 256 * KIB])
    ok("diff", old, new, "-o", patch)
    return Pair(old, new, patch)


@pytest.fixture
def pair(made: Pair, tmp_path: Path) -> Pair:
    """A pair of the test's own, in its folder."""
    return Pair(*(Path(shutil.copy(path, tmp_path)) for path in (made.old, made.new, made.patch)))


def judge(out: Path, new: Path, fmt: str = "qcow2") -> None:
    assert qemu.compare(out, new, fmt, "qcow2")
    if fmt == "qcow2":
        report = qemu.check(out)
        assert (report["corruptions"], report["leaks"]) == (0, 0)
    assert int(qemu.info(out, fmt=fmt)["virtual-size"]) == SIZE


# Names


OPENING = {"--allow-path", "-U", "--force-share"}
BASE = {"--base", "--base-format", "--base-snapshot"}
WRITING = {"-o", "--output", "--force", "--progress", "--no-progress", "--json", "-q", "--quiet"}
EFFORT = {"--effort", "-T", "--threads"}
OVERLAY = {
    "--cluster-size", "--subclusters", "--compress", "--backing-name", "--relative", "--digest",
}  # fmt: skip
OPTIONS = {
    "diff": OPENING | WRITING | EFFORT | OVERLAY | {"--to"},
    "apply": OPENING | WRITING | BASE | {"--format", "--cluster-size", "--compress", "--resume"},
    "convert": OPENING | WRITING | BASE | EFFORT | OVERLAY | {"--to"},
    "verify": OPENING | BASE | {"--target", "--target-format", "--json"},
    "compose": OPENING | WRITING | BASE | EFFORT,
    "invert": OPENING | WRITING | BASE | EFFORT,
    "index": {"-o", "--output", "--force"},
}


@pytest.mark.parametrize("command", OPTIONS)
def test_options_have_their_names(command: str) -> None:
    params = cli.commands[command].params
    names = {name for p in params for name in (*p.opts, *p.secondary_opts) if name.startswith("-")}
    assert OPTIONS[command] <= names
    assert "Usage" in ok(command, "--help").out


# diff


def test_diff_writes_a_patch_where_the_name_says_so(pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "out.qcpatch"
    result = ok("diff", pair.old, pair.new, "-o", out)
    assert result.out.count("\n") == 1
    for text in (str(out), str(pair.old), "64 KiB zeroed", "KiB copied", "KiB coded"):
        assert text in result.out
    assert result.err == ""
    assert out.read_bytes() == pair.patch.read_bytes()
    assert ok("diff", pair.old, pair.new, "-o", out, "--force", "-q").out == ""


def test_diff_json(pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "out.qcpatch"
    found = ok("diff", pair.old, pair.new, "-o", out, "--json").json
    expected = {
        "old": str(pair.old), "new": str(pair.new), "output": str(out), "effort": "default",
        "virtual_size": SIZE, "granularity": 4096, "data_bytes": 192 * KIB,
        "zero_bytes": 64 * KIB, "unchanged_bytes": SIZE - 256 * KIB, "segments": 3,
        "file_size": out.stat().st_size,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    assert_operations(found["operations"])
    assert found["payload_bytes"] <= 66 * KIB
    assert sum(found["decided"].values()) == SIZE
    assert {"bytes_read_old", "bytes_read_new", "seconds"} <= set(found)


@pytest.mark.parametrize("effort", ["fast", "default", "best"])
def test_every_effort_gives_a_patch_that_applies(pair: Pair, tmp_path: Path, effort: str) -> None:
    patch, out = tmp_path / "out.qcpatch", tmp_path / "out.qcow2"
    found = ok("diff", pair.old, pair.new, "-o", patch, "--effort", effort, "--json").json
    assert found["effort"] == effort
    ok("apply", patch, *pair.base, "-o", out)
    judge(out, pair.new)


def test_to_says_what_is_written_whatever_its_name(pair: Pair, tmp_path: Path) -> None:
    patch, overlay = tmp_path / "patch.qcow2", tmp_path / "overlay.qcpatch"
    ok("diff", pair.old, pair.new, "-o", patch, "--to", "patch")
    assert patch.read_bytes() == pair.patch.read_bytes()
    ok("diff", pair.old, pair.new, "-o", overlay, "--to", "overlay")
    judge(overlay, pair.new)


def test_patch_of_equal_images_is_small_and_applies(pair: Pair, tmp_path: Path) -> None:
    patch, out = tmp_path / "same.qcpatch", tmp_path / "same.raw"
    found = ok("diff", pair.old, pair.old, "-o", patch, "--json").json
    assert (found["segments"], found["data_bytes"]) == (0, 0)
    assert patch.stat().st_size < 1024
    ok("apply", patch, *pair.base, "-o", out)
    judge(out, pair.old, "raw")


SNAPSHOT = ["--old-snapshot", "before"]


def test_snapshots_make_patches(pair: Pair, tmp_path: Path) -> None:
    """Unlike an overlay, a patch needs no file with the snapshot's content."""
    qemu.snapshot(pair.new, "before")
    qemu.write(pair.new, 3 * MIB, 64 * KIB, 5)
    patch, out = tmp_path / "s.qcpatch", tmp_path / "s.raw"
    ok("diff", pair.new, pair.new, *SNAPSHOT, "-o", patch)
    words: list[str | Path] = ["apply", patch, "--base", pair.new, "-o", out]
    assert "is not the base" in refused(*words)
    ok(*words, "--base-snapshot", "before")
    judge(out, pair.new, "raw")
    words = [patch, "--base", pair.new, "--base-snapshot", "before", "-o", tmp_path / "s.qcow2"]
    assert "snapshot" in refused("convert", *words)


# What does not go together


@pytest.mark.parametrize(
    "words",
    [
        ["--cluster-size", "4k"],
        ["--subclusters"],
        ["--compress", "zlib"],
        ["--compress", "none"],
        ["--backing-name", "x"],
        ["--relative"],
        ["--digest"],
    ],
    ids=lambda words: words[0] + (f"={words[1]}" if words[1:] else ""),
)
def test_options_of_overlays_are_refused_for_patches(
    pair: Pair, tmp_path: Path, words: list[str]
) -> None:
    out, overlay = tmp_path / "out.qcpatch", tmp_path / "overlay.qcow2"
    assert words[0] in refused("diff", pair.old, pair.new, "-o", out, *words)
    ok("diff", pair.old, pair.new, "-o", overlay)
    assert words[0] in refused("convert", overlay, "-o", out, *words)
    assert not out.exists()


@pytest.mark.parametrize("words", [["--effort", "fast"], ["-T", "2"], ["--threads", "1"]])
def test_options_of_patches_are_refused_for_overlays(
    pair: Pair, tmp_path: Path, words: list[str]
) -> None:
    out = tmp_path / "out.qcow2"
    refused("diff", pair.old, pair.new, "-o", out, *words)
    refused("convert", pair.patch, *pair.base, "-o", out, *words)
    assert not out.exists()


def test_combinations_that_make_no_sense_are_refused(pair: Pair, tmp_path: Path) -> None:
    out, raw, overlay = (tmp_path / name for name in ("out.qcow2", "out.raw", "overlay.qcow2"))
    ok("diff", pair.old, pair.new, "-o", overlay)
    again = tmp_path / "again.qcpatch"
    for words in (
        ["apply", pair.patch, "-o", out],  # no base
        ["apply", pair.patch, *pair.base],  # no output
        ["apply", pair.patch, *pair.base, "-o", raw, "--cluster-size", "4k"],
        ["apply", pair.patch, *pair.base, "-o", raw, "--compress", "zlib"],
        ["apply", pair.patch, *pair.base, "-o", out, "--cluster-size", "1000"],
        ["apply", pair.patch, *pair.base, "-o", out, "--format", "vmdk"],
        ["apply", overlay, *pair.base, "-o", out],
        ["convert", pair.patch, "-o", out],  # no base
        ["convert", pair.patch, *pair.base, "-o", again],  # a patch from a patch
        ["convert", overlay, "-o", out],  # an overlay from an overlay
        ["convert", pair.old, "-o", again],  # no overlay
        ["convert", pair.patch, *pair.base, "-o", out, "--relative", "--backing-name", "x"],
        ["invert", pair.patch, "-o", again],
        ["invert", overlay, *pair.base, "-o", again],
        ["compose", pair.patch, "-o", again],
        ["compose", pair.patch, pair.patch, "-o", again, "--effort", "fast"],
        ["compose", pair.patch, pair.patch, "-o", again, "--base-format", "raw"],
        ["diff", pair.old, pair.new, "-o", again, "--effort", "most"],
        ["diff", pair.old, pair.new, "-o", again, "-T", "0"],
        ["diff", pair.old, pair.new, "-o", again, "-T", "65"],
        ["diff", pair.old, pair.new, "-o", again, "--to", "raw"],
        ["diff", pair.patch, pair.new, "-o", again, "--old-format", "qcow2"],
        ["verify"],
        ["index", pair.old, "-o", again],
        ["inspect", pair.patch, "--cluster-size", "4k"],
        ["inspect", pair.patch, "--old-format", "raw"],
        ["check", pair.patch],
    ):
        refused(*words)
        assert not any(path.exists() for path in (out, raw, again)), words


@pytest.mark.parametrize("command", ["apply", "convert", "invert", "verify", "compose", "info"])
def test_missing_files_are_named(pair: Pair, tmp_path: Path, command: str) -> None:
    none = tmp_path / "none"
    given = [none, pair.patch] if command == "compose" else [none]
    output = ["-o", str(tmp_path / "out")] if command not in ("verify", "info") else []
    assert str(none) in refused(command, *given, *([] if command == "info" else pair.base), *output)
    if command != "info":
        given = [pair.patch] * len(given)
        extra = ["--to", "overlay"] if command == "convert" else []
        assert str(none) in refused(command, *given, "--base", none, *output, *extra)
    assert not (tmp_path / "out").exists()


# apply


@pytest.mark.parametrize(
    ("name", "more", "fmt"),
    [
        ("out.qcow2", [], "qcow2"),
        ("out.raw", [], "raw"),
        ("out.img", [], "raw"),
        ("out", [], "qcow2"),
        ("out.raw", ["--format", "qcow2"], "qcow2"),
        ("out.qcow2", ["--format", "raw"], "raw"),
    ],
)
def test_format_of_the_output_follows_its_name_or_the_option(
    pair: Pair, tmp_path: Path, name: str, more: list[str], fmt: str
) -> None:
    out = tmp_path / name
    found = ok("apply", pair.patch, *pair.base, "-o", out, "--json", *more).json
    expected = {
        "output": str(out), "format": fmt, "virtual_size": SIZE,
        "file_size": out.stat().st_size, "segments": 3, "resumed": False,
    }  # fmt: skip
    assert {key: found[key] for key in expected} == expected
    assert "seconds" in found
    judge(out, pair.new, fmt)
    assert "backing-filename" not in qemu.info(out, fmt=fmt)


def test_apply_says_what_it_wrote(pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "out.raw"
    shown = ok("apply", pair.patch, *pair.base, "-o", out).out
    assert shown.count("\n") == 1
    assert str(out) in shown
    assert "4 MiB" in shown
    assert ok("apply", pair.patch, *pair.base, "-o", out, "--force", "-q").out == ""


@pytest.mark.parametrize("codec", ["none", "zlib", "zstd"])
@pytest.mark.parametrize("size", ["512", "64k", "2M"])
def test_apply_compresses_and_cuts_as_asked(
    pair: Pair, tmp_path: Path, codec: str, size: str
) -> None:
    old, patch, out = tmp_path / "soft.raw", tmp_path / "soft.qcpatch", tmp_path / "out.qcow2"
    old.write_bytes(b"soft" * (SIZE // 4))
    ok("diff", old, pair.new, "-o", patch)
    words = ["--compress", codec, "--cluster-size", size]
    ok("apply", patch, "--base", old, "-o", out, *words)
    judge(out, pair.new)
    info = qemu.info(out)
    assert info["cluster-size"] == {"512": 512, "64k": 64 * KIB, "2M": 2 * MIB}[size]
    if codec == "zstd":
        assert info["format-specific"]["data"]["compression-type"] == "zstd"


def test_compressed_clusters_of_the_base_stay_as_they_are(pair: Pair, tmp_path: Path) -> None:
    base, out = tmp_path / "base.qcow2", tmp_path / "out.qcow2"
    raw = tmp_path / "soft.raw"
    raw.write_bytes(b"".join(n.to_bytes(8, "big") * 8192 for n in range(64)))
    qemu.convert(raw, base, source_fmt="raw", target_fmt="qcow2", compressed=True)
    patch = tmp_path / "soft.qcpatch"
    new = tmp_path / "new.raw"
    new.write_bytes(raw.read_bytes()[:-4096] + os.urandom(4096))
    ok("diff", base, new, "-o", patch)
    ok("apply", patch, "--base", base, "-o", out)
    assert qemu.compare(out, new, "qcow2", "raw")
    assert qemu.check(out)["compressed-clusters"] >= 63


def test_cluster_size_of_the_output_is_the_bases(pair: Pair, tmp_path: Path) -> None:
    base, out = tmp_path / "base.qcow2", tmp_path / "out.qcow2"
    qemu.convert(pair.old, base, source_fmt="qcow2", target_fmt="qcow2", cluster_size=4096)
    ok("apply", pair.patch, "--base", base, "-o", out)
    assert qemu.info(out)["cluster-size"] == 4096
    judge(out, pair.new)


def test_base_format_is_taken_as_given(pair: Pair, tmp_path: Path) -> None:
    raw, patch, out = tmp_path / "x.raw", tmp_path / "x2.qcpatch", tmp_path / "out.raw"
    ok("diff", pair.old, pair.new, "-o", patch, "--old-format", "raw", "--new-format", "raw")
    refused("apply", patch, *pair.base, "-o", out)
    ok("apply", patch, *pair.base, "--base-format", "raw", "-o", out)
    assert out.read_bytes()[: pair.new.stat().st_size] == pair.new.read_bytes()
    raw.write_bytes(bytes(SIZE))
    refused("apply", patch, "--base", raw, "--base-format", "qcow2", "-o", tmp_path / "y.raw")


def test_raw_base_that_begins_as_a_qcow2_is_told_with_the_way_out(
    pair: Pair, tmp_path: Path
) -> None:
    old, new, patch, out = (tmp_path / name for name in ("o.raw", "n.raw", "l.qcpatch", "out.raw"))
    content = pair.old.read_bytes()
    old.write_bytes(content)
    new.write_bytes(content[:-512] + bytes(range(256)) * 2)
    as_raw = ["--old-format", "raw", "--new-format", "raw"]
    ok("diff", old, new, "-o", patch, *as_raw)
    message = refused("apply", patch, "--base", old, "-o", out)
    assert f"is {SIZE} bytes large, read as qcow2" in message
    assert "give --base-format raw" in message
    assert "give --old-format raw" in refused("inspect", old, patch)
    found = run("verify", patch, "--base", old, "--target", new, "--json").json
    for side in ("base", "target"):
        assert "read as qcow2" in found[side]["problem"]
        assert f"give --{side}-format raw" in found[side]["problem"]
    ok("apply", patch, "--base", old, "--base-format", "raw", "-o", out)
    message = refused(
        "apply", pair.patch, "--base", old, "--base-format", "raw", "-o", tmp_path / "y"
    )
    assert "read as raw" in message
    assert "--base-format" not in message


def test_wrong_base_with_snapshots_is_told_how_to_name_one(pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "out.raw"
    words: list[str | Path] = ["apply", pair.patch, *pair.base, "-o", out]
    qemu.snapshot(pair.old, "then")
    qemu.write(pair.old, 3 * MIB, 512, 7)
    message = refused(*words)
    assert "its content is different; it has an internal snapshot" in message
    assert "--base-snapshot" in message
    assert "--old-snapshot" in refused("inspect", pair.old, pair.patch)
    problem = run("verify", pair.patch, *pair.base, "--json").json["base"]["problem"]
    assert "--base-snapshot" in problem
    ok(*words, "--base-snapshot", "then")
    qemu.snapshot(pair.old, "now")
    refused_now = refused(*words, "--base-snapshot", "now", "--force")
    assert "name it with" not in refused_now


# convert


def test_patch_becomes_an_overlay_with_all_its_options(pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "out.qcow2"
    found = ok("convert", pair.patch, *pair.base, "-o", out, "--json").json
    assert (found["backing_file"], found["backing_format"]) == (str(pair.old), "qcow2")
    assert found["cluster_size"] == 64 * KIB
    assert sum(found["decided"].values()) == SIZE
    assert found["decided"]["told"] == 192 * KIB
    judge(out, pair.new)
    words = ["--cluster-size", "16k", "--subclusters", "--compress", "zstd", "--relative"]
    ok("convert", pair.patch, *pair.base, "-o", out, "--force", *words, "--digest")
    info = qemu.info(out)
    assert info["cluster-size"] == 16 * KIB
    assert info["format-specific"]["data"]["extended-l2"] is True
    assert info["backing-filename"] == "old.qcow2"
    judge(out, pair.new)
    assert ok("check", out, "--json").json["base_match"] == "same_content"


def test_overlay_from_a_patch_holds_what_the_one_from_the_images_holds(
    pair: Pair, tmp_path: Path
) -> None:
    one, two = tmp_path / "one.qcow2", tmp_path / "two.qcow2"
    ok("diff", pair.old, pair.new, "-o", one)
    ok("convert", pair.patch, *pair.base, "-o", two)
    found = [ok("inspect", path, "--json").json["extents"] for path in (one, two)]
    assert found[0] == found[1]
    assert one.stat().st_size == two.stat().st_size


def test_overlay_becomes_the_patch_that_the_images_give(pair: Pair, tmp_path: Path) -> None:
    overlay, patch = tmp_path / "overlay.qcow2", tmp_path / "back.qcpatch"
    ok("diff", pair.old, pair.new, "-o", overlay)
    found = ok("convert", overlay, "-o", patch, "--json").json
    assert found["output"] == str(patch)
    assert patch.read_bytes() == pair.patch.read_bytes()
    ok("convert", overlay, *pair.base, "-o", patch, "--force")
    assert patch.read_bytes() == pair.patch.read_bytes()


def test_overlay_whose_base_lies_elsewhere_needs_leave(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    overlay, patch = tmp_path / "sub" / "overlay.qcow2", tmp_path / "back.qcpatch"
    ok("diff", pair.old, pair.new, "-o", overlay)
    assert "--allow-path" in refused("convert", overlay, "-o", patch)
    ok("convert", overlay, "-o", patch, "--allow-path", tmp_path)
    assert patch.read_bytes() == pair.patch.read_bytes()


# a patch where an image is expected


@pytest.mark.parametrize("side", ["old", "new", "base", "target", "overlay"])
def test_patch_is_not_taken_for_a_raw_disk(pair: Pair, tmp_path: Path, side: str) -> None:
    out, base = tmp_path / "out.qcpatch", pair.patch
    words: dict[str, list[str | Path]] = {
        "old": ["diff", base, pair.new, "-o", out],
        "new": ["diff", pair.old, base, "-o", out],
        "base": ["apply", pair.patch, "--base", base, "-o", out],
        "target": ["verify", pair.patch, "--target", base],
        "overlay": ["inspect", pair.patch, pair.old],
    }
    message = refused(*words[side])
    assert message.startswith(f"qcowdelta: error: {base}: is a cluster patch")
    for way in ("qcowdelta apply", "qcowdelta convert", "qcowdelta inspect OLD PATCH"):
        assert way in message
    assert not out.exists()


def test_patch_is_read_as_a_raw_disk_where_that_is_asked_for(pair: Pair, tmp_path: Path) -> None:
    raw, out = tmp_path / "x.raw", tmp_path / "out.qcpatch"
    again = tmp_path / "again.raw"
    raw.write_bytes(pair.patch.read_bytes() + bytes(-pair.patch.stat().st_size % 512))
    ok("diff", raw, pair.old, "-o", out, "--old-format", "raw")
    ok("invert", out, "--base", raw, "--base-format", "raw", "-o", tmp_path / "back.qcpatch")
    ok("apply", tmp_path / "back.qcpatch", "--base", pair.old, "-o", again)
    assert again.read_bytes() == raw.read_bytes()


# verify


def test_verify_says_each_ones_state(pair: Pair) -> None:
    shown = ok("verify", pair.patch, *pair.base, "--target", pair.new).out
    assert shown.splitlines() == [
        f"patch: {pair.patch} is right",
        f"base: {pair.old} is right",
        f"target: {pair.new} is right",
    ]
    assert "not given" in ok("verify", pair.patch).out
    found = ok("verify", pair.patch, *pair.base, "--json").json
    assert found["patch"] == found["base"] == {"good": True, "problem": None, "ranges": []}
    assert found["target"] is None


def test_verify_tells_where_in_words(pair: Pair) -> None:
    qemu.write(pair.new, 3 * MIB + 4096, 512, 7)
    done = run("verify", pair.patch, *pair.base, "--target", pair.new)
    assert done.status == 1
    assert done.err == ""
    lines = done.out.splitlines()
    assert lines[0].endswith("is right")
    assert lines[2].startswith(f"target: {pair.new} is not what the patch leads to")
    assert "0x300000" in lines[3]


# compose and invert


@pytest.fixture
def third(pair: Pair, tmp_path: Path) -> tuple[Path, Path]:
    """An image that differs from NEW in its last MiB, and the patch to it."""
    new, patch = tmp_path / "third.qcow2", tmp_path / "bc.qcpatch"
    shutil.copyfile(pair.new, new)
    qemu.write_bytes(new, 3 * MIB, os.urandom(64 * KIB))
    ok("diff", pair.new, new, "-o", patch)
    return new, patch


@pytest.mark.parametrize("with_base", [True, False], ids=["with base", "without"])
def test_compose_makes_one_patch_of_two(
    pair: Pair, third: tuple[Path, Path], tmp_path: Path, with_base: bool
) -> None:
    out, image = tmp_path / "ac.qcpatch", tmp_path / "ac.qcow2"
    base = pair.base if with_base else []
    found = ok("compose", pair.patch, third[1], *base, "-o", out, "--json").json
    assert found["output"] == str(out)
    assert found["file_size"] == out.stat().st_size
    ok("apply", out, *pair.base, "-o", image)
    judge(image, third[0])
    assert str(out) in ok("compose", pair.patch, third[1], *base, "-o", out, "--force").out
    assert ok("compose", pair.patch, third[1], *base, "-o", out, "--force", "-q").out == ""


def test_compose_in_the_wrong_order_is_refused(
    pair: Pair, third: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "ac.qcpatch"
    for base in ([], pair.base):
        assert "was not made from" in refused("compose", third[1], pair.patch, *base, "-o", out)
    assert not out.exists()


def test_compose_says_when_it_needs_the_base(pair: Pair, tmp_path: Path) -> None:
    """Both patches touch the first segment."""
    back, out = tmp_path / "back.qcpatch", tmp_path / "out.qcpatch"
    ok("invert", pair.patch, *pair.base, "-o", back)
    assert "--base" in refused("compose", pair.patch, back, "-o", out)
    assert not out.exists()
    found = ok("compose", pair.patch, back, *pair.base, "-o", out, "--json").json
    assert (found["segments"], found["data_bytes"], found["zero_bytes"]) == (0, 0, 0)


SIZES = {"shorter in between": (4, 2, 4), "cut": (4, 4, 3), "grown": (2, 3, 4)}


@pytest.mark.parametrize("units", [MIB, 700 * KIB], ids=["whole", "parts"])
@pytest.mark.parametrize("sizes", SIZES)
def test_compose_without_base_of_disks_that_change_size_is_right_or_refused(
    tmp_path: Path, sizes: str, units: int
) -> None:
    content = os.urandom(4 * MIB)
    images = []
    for number, count in enumerate(SIZES[sizes]):
        images.append(tmp_path / f"{number}.raw")
        data = content[: count * units]
        if sizes == "shorter in between" and number == 2:
            data = content[: 2 * units].ljust(count * units, b"\0")
        images[-1].write_bytes(data)
    ab, bc, ac = (tmp_path / f"{name}.qcpatch" for name in ("ab", "bc", "ac"))
    ok("diff", images[0], images[1], "-o", ab)
    ok("diff", images[1], images[2], "-o", bc)
    done = run("compose", ab, bc, "-o", ac)
    assert done.status == 0 or "--base" in done.err
    if done.status:
        ok("compose", ab, bc, "--base", images[0], "-o", ac)
    ok("apply", ac, "--base", images[0], "-o", tmp_path / "out.raw")
    assert (tmp_path / "out.raw").read_bytes() == images[2].read_bytes()


def test_invert_leads_back(pair: Pair, tmp_path: Path) -> None:
    back, out = tmp_path / "back.qcpatch", tmp_path / "out.qcow2"
    found = ok("invert", pair.patch, *pair.base, "-o", back, "--effort", "fast", "--json").json
    assert (found["effort"], found["virtual_size"]) == ("fast", SIZE)
    ok("apply", back, "--base", pair.new, "-o", out)
    judge(out, pair.old)


@pytest.mark.parametrize("command", ["diff", "convert", "invert", "compose", "index"])
def test_existing_output_is_replaced_only_when_forced(
    pair: Pair, third: tuple[Path, Path], tmp_path: Path, command: str
) -> None:
    out = tmp_path / "out.x"
    out.write_bytes(b"mine")
    words: dict[str, list[str | Path]] = {
        "diff": [pair.old, pair.new, "--to", "patch"],
        "convert": [pair.patch, *pair.base, "--to", "overlay"],
        "invert": [pair.patch, *pair.base],
        "compose": [pair.patch, third[1], *pair.base],
        "index": [pair.patch],
    }
    assert "--force" in refused(command, *words[command], "-o", out)
    assert out.read_bytes() == b"mine"
    ok(command, *words[command], "-o", out, "--force")
    assert out.read_bytes() != b"mine"
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize("command", ["verify", "invert", "compose", "index"])
def test_dash_reads_the_patch_from_standard_input(
    pair: Pair, third: tuple[Path, Path], tmp_path: Path, command: str
) -> None:
    out = tmp_path / "out.qcpatch"
    out.write_bytes(b"replaced")
    words: dict[str, list[str | Path]] = {
        "verify": [*pair.base],
        "invert": [*pair.base, "-o", out, "--force"],
        "compose": [third[1], *pair.base, "-o", out, "--force"],
        "index": ["-o", out, "--force"],
    }
    with pair.patch.open() as stream, pytest.MonkeyPatch.context() as patching:
        patching.setattr(sys, "stdin", stream)
        ok(command, "-", *words[command])


def test_index_is_never_written_over_its_patch(pair: Pair) -> None:
    before = pair.patch.read_bytes()
    refused("index", pair.patch, "-o", pair.patch, "--force")
    assert pair.patch.read_bytes() == before


# info and inspect


def test_info_json(pair: Pair) -> None:
    found = ok("info", pair.patch, "--json").json
    expected = {
        "format": "qcpatch", "filename": str(pair.patch), "virtual_size": SIZE,
        "base_size": SIZE, "file_size": pair.patch.stat().st_size, "segments": 3,
        "segment_size": MIB, "same_bytes": SIZE - 256 * KIB,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    assert_operations({kind: each["bytes"] for kind, each in found["operations"].items()})
    assert found["creator"].startswith("qcowdelta ")
    assert len(found["base_digest"]) == len(found["target_digest"]) == 64
    assert set(found["codecs"]) <= {"zstd", "stored"}
    assert found["payload_bytes"] + found["overhead_bytes"] == found["file_size"]
    assert found["memory"] > 0
    with contextlib.closing(HostFile.open(pair.patch)) as file:
        assert json.loads(json.dumps(describe(file))) == found


def test_info_shows_a_patch(pair: Pair) -> None:
    shown = ok("info", pair.patch).out
    for text in ("4 MiB", "64 KiB", "copied from the base", "zeros"):
        assert text in shown


def test_exported_index_describes_the_patch_but_is_none(pair: Pair, tmp_path: Path) -> None:
    index = tmp_path / "x.index"
    ok("index", pair.patch, "-o", index)
    assert index.stat().st_size < 1024
    found = ok("info", index, "--json").json
    assert (found["segments"], found["virtual_size"]) == (3, SIZE)
    assert found["target_digest"] == ok("info", pair.patch, "--json").json["target_digest"]
    for words in (
        ["apply", index, *pair.base, "-o", tmp_path / "out.raw"],
        ["verify", index],
        ["index", pair.old, "-o", tmp_path / "out.raw"],
    ):
        refused(*words)
    assert not (tmp_path / "out.raw").exists()


def joined(extents: list[dict[str, Any]]) -> list[tuple[int, int, str]]:
    """Extents of which no two of a kind touch."""
    found: list[tuple[int, int, str]] = []
    for extent in extents:
        start, length, kind = extent["start"], extent["length"], extent["kind"]
        if found and (found[-1][0] + found[-1][1], found[-1][2]) == (start, kind):
            start, length = found[-1][0], found[-1][1] + length
            found.pop()
        found.append((start, length, kind))
    return found


def test_inspect_of_a_patch_alone(pair: Pair) -> None:
    found = ok("inspect", pair.patch, "--json").json
    assert found["virtual_size"] == SIZE
    assert (found["data_bytes"], found["zero_bytes"]) == (DATA, ZEROED)
    assert joined(found["extents"]) == [
        (0, 64 * KIB, "zero"),
        (MIB, 64 * KIB, "data"),
        (2 * MIB, 128 * KIB, "data"),
    ]
    shown = ok("inspect", pair.patch).out
    for text in ("64 KiB", "192 KiB"):
        assert text in shown
    assert run("inspect", pair.patch, "--exit-code").status == 1


def test_inspect_of_a_patch_over_old_is_that_of_both_images(pair: Pair) -> None:
    for more in ([], ["--cluster-size", "4k"]):
        one = ok("inspect", pair.old, pair.patch, "--json", *more).json
        two = ok("inspect", pair.old, pair.new, "--json", *more).json
        for name in (
            "virtual_size", "changed_clusters", "data_bytes", "zero_bytes", "added", "modified",
            "zeroed", "extents",
        ):  # fmt: skip
            assert one[name] == two[name], name
    assert "is not the base" in refused("inspect", pair.new, pair.patch)
    ok("inspect", pair.old, pair.patch)


# The library


def test_any_range_can_be_read_through_patch_and_base(pair: Pair) -> None:
    content = qemu.read_guest(pair.new, "qcow2")
    with open_patched(PatchFile.open(pair.patch), open_image(pair.old)) as image:
        assert (image.size, image.format) == (SIZE, "qcpatch")
        reader = image.reader()
        for start, length in ((0, 1), (64 * KIB - 3, 7), (MIB - 1, 64 * KIB + 2), (SIZE - 1, 1)):
            assert reader.read(start, length) == content[start : start + length]


def test_reading_a_little_decodes_a_little(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = patches.decoded(monkeypatch)
    with open_patched(PatchFile.open(pair.patch), open_image(pair.old), check=False) as image:
        image.reader().read(MIB + 5, 100)
        assert decoded == [1]
        image.reader().read(3 * MIB, 100)
        assert decoded == [1]


def test_patch_taken_apart_and_sealed_again_is_the_same_to_all(pair: Pair, tmp_path: Path) -> None:
    """The helper that other tests damage patches with does no damage of its own."""
    again = patches.resealed(pair.patch, tmp_path / "again.qcpatch", lambda taken: None)
    ok("verify", again, *pair.base, "--target", pair.new)
