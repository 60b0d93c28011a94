"""The contract of the command line: names of options, exit statuses, output, and where names go.

Images are made, and overlays judged, by QEMU's tools.
"""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import qcowdelta
from qcowdelta.cli.commands import cli
from tests.support import qemu
from tests.support.commandline import ok, refused, run

KIB = 1 << 10
MIB = 1 << 20
SIZE = 4 * MIB
RUN = [sys.executable, "-c", "from qcowdelta.cli import main; main()"]


@dataclass(frozen=True)
class Pair:
    """OLD and NEW: 64 KiB at 1 MiB are modified, 128 KiB at 2 MiB added, 64 KiB at 0 zeroed."""

    old: Path
    new: Path


CHANGED, DATA, ZEROED = 4, 192 * KIB, 64 * KIB


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    qemu.require("qemu-img", "qemu-io")
    folder = tmp_path_factory.mktemp("pair")
    old, new = folder / "old.qcow2", folder / "new.qcow2"
    qemu.create(old, SIZE)
    qemu.io(old, [qemu.write_command(0, 64 * KIB, 1), qemu.write_command(MIB, MIB, 2)])
    shutil.copyfile(old, new)
    changes = [
        qemu.zero_command(0, 64 * KIB),
        qemu.write_command(MIB, 64 * KIB, 3),
        qemu.write_command(2 * MIB, 128 * KIB, 4),
    ]
    qemu.io(new, changes)
    return Pair(old, new)


@pytest.fixture
def pair(made: Pair, tmp_path: Path) -> Pair:
    """A pair of the test's own, in its folder."""
    return Pair(*(Path(shutil.copy(path, tmp_path)) for path in (made.old, made.new)))


def judge(out: Path, new: Path, new_fmt: str = "qcow2") -> None:
    """The overlay reads as NEW and is sound, says QEMU."""
    report = qemu.check(out)
    assert (report["corruptions"], report["leaks"]) == (0, 0)
    assert qemu.compare(out, new, "qcow2", new_fmt)
    assert virtual_size(out, "qcow2") == virtual_size(new, new_fmt)


def virtual_size(path: Path, fmt: str) -> int:
    return int(qemu.info(path, fmt=fmt)["virtual-size"])


def backing(out: Path) -> tuple[str, str]:
    found = qemu.info(out, fmt="qcow2")
    return found["backing-filename"], found["backing-filename-format"]


# Names


OPENING = {"--allow-path", "-U", "--force-share"}
PAIR = {"--old-format", "--new-format", "--old-snapshot", "--new-snapshot"}
PROGRESS = {"--progress", "--no-progress"}
OPTIONS = {
    "diff": OPENING | PAIR | PROGRESS | {
        "-o", "--output", "--to", "--cluster-size", "--subclusters", "--compress",
        "--backing-name", "--relative", "--digest", "--force", "--json", "-q", "--quiet",
    },
    "inspect": OPENING | PAIR | PROGRESS | {
        "--cluster-size", "--clusters", "--exit-code", "--json",
    },
    "info": {"-U", "--force-share", "--json"},
    "check": OPENING | {"--json"},
}  # fmt: skip


@pytest.mark.parametrize("command", OPTIONS)
def test_options_have_their_names(command: str) -> None:
    params = cli.commands[command].params
    names = {name for p in params for name in (*p.opts, *p.secondary_opts) if name.startswith("-")}
    assert OPTIONS[command] <= names


def test_commands_have_their_names() -> None:
    assert set(OPTIONS) <= set(cli.commands)


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["diff", "--help"], ["inspect", "-h"]])
def test_help_goes_to_standard_output(words: list[str]) -> None:
    result = ok(*words)
    assert "Usage" in result.out
    assert result.err == ""


def test_version_is_the_packages() -> None:
    assert qcowdelta.__version__ in ok("--version").out


# diff


def test_diff_writes_an_overlay_and_says_what_decided(pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "out.qcow2"
    result = ok("diff", pair.old, pair.new, "-o", out)
    judge(out, pair.new)
    assert backing(out) == (str(pair.old), "qcow2")
    assert result.out.count("\n") == 1
    for text in (str(out), "192 KiB changed", "64 KiB zeroed", "zeros", "reading"):
        assert text in result.out
    assert result.err == ""


def test_diff_json(pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "out.qcow2"
    found = ok("diff", pair.old, pair.new, "-o", out, "--json").json
    expected = {
        "output": str(out),
        "backing_file": str(pair.old),
        "backing_format": "qcow2",
        "virtual_size": SIZE,
        "cluster_size": 64 * KIB,
        "granularity": 64 * KIB,
        "changed_clusters": CHANGED,
        "data_bytes": DATA,
        "zero_bytes": ZEROED,
        "unchanged_bytes": SIZE - DATA - ZEROED,
        "file_size": out.stat().st_size,
        "copied_compressed_clusters": 0,
        "compressed_clusters": 0,
    }
    assert {name: found[name] for name in expected} == expected
    decided = found["decided"]
    assert set(decided) == {
        "shared_layer", "zero", "equal_payload", "shared_extent", "told", "not_dirty", "read",
    }  # fmt: skip
    assert sum(decided.values()) == SIZE
    assert {"old", "new", "bytes_read_old", "bytes_read_new", "seconds"} <= set(found)


def test_diff_of_a_shared_layer_reads_nothing_of_it(pair: Pair, tmp_path: Path) -> None:
    top = tmp_path / "top.qcow2"
    qemu.create(top, None, backing=pair.old, backing_fmt="qcow2")
    qemu.write(top, 3 * MIB, 64 * KIB, 9)
    found = ok("diff", pair.old, top, "-o", tmp_path / "out.qcow2", "--json").json
    assert found["decided"]["shared_layer"] == MIB + 64 * KIB
    assert found["bytes_read_old"] == 0
    assert found["bytes_read_new"] == 64 * KIB


def test_quiet_prints_nothing(pair: Pair, tmp_path: Path) -> None:
    result = ok("diff", "-q", pair.old, pair.new, "-o", tmp_path / "out.qcow2")
    assert (result.out, result.err) == ("", "")


def test_existing_output_is_replaced_only_when_forced(pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "out.qcow2"
    out.write_bytes(b"mine")
    assert "--force" in refused("diff", pair.old, pair.new, "-o", out)
    assert out.read_bytes() == b"mine"
    ok("diff", pair.old, pair.new, "-o", out, "--force")
    judge(out, pair.new)


def test_output_is_never_an_input(pair: Pair, tmp_path: Path) -> None:
    before = pair.old.read_bytes(), pair.new.read_bytes()
    link = tmp_path / "link.qcow2"
    link.symlink_to(pair.new)
    for out in (pair.old, pair.new, link):
        assert "input" in refused("diff", pair.old, pair.new, "-o", out, "--force")
    assert (pair.old.read_bytes(), pair.new.read_bytes()) == before


def test_to_overlay_overrides_the_suffix(pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "out.qcpatch"
    ok("diff", pair.old, pair.new, "-o", out, "--to", "overlay")
    judge(out, pair.new)


@pytest.mark.parametrize(
    ("text", "size"),
    [("512", 512), ("4k", 4 * KIB), ("64K", 64 * KIB), ("128KiB", 128 * KIB), ("2M", 2 * MIB)],
)
def test_cluster_size_is_what_was_asked_for(
    pair: Pair, tmp_path: Path, text: str, size: int
) -> None:
    out = tmp_path / "out.qcow2"
    found = ok("diff", pair.old, pair.new, "-o", out, "--cluster-size", text, "--json").json
    assert found["cluster_size"] == found["granularity"] == size
    assert qemu.info(out)["cluster-size"] == size
    judge(out, pair.new)


@pytest.mark.parametrize(
    "text", ["0", "-1", "", "k", "64x", "65000", "256", "4M", "1.5k", "9" * 99, "9" * 5000]
)
@pytest.mark.parametrize("command", ["diff", "inspect"])
def test_other_cluster_sizes_are_refused(
    pair: Pair, tmp_path: Path, command: str, text: str
) -> None:
    out = tmp_path / "out.qcow2"
    words: list[str | Path] = [command, pair.old, pair.new, f"--cluster-size={text}"]
    if command == "diff":
        words += ["-o", out]
    refused(*words)
    assert not out.exists()


def test_cluster_size_is_olds_or_64_kib(pair: Pair, tmp_path: Path) -> None:
    old, raw = tmp_path / "small.qcow2", tmp_path / "old.raw"
    qemu.convert(pair.old, old, source_fmt="qcow2", target_fmt="qcow2", cluster_size=4096)
    qemu.convert(pair.old, raw, source_fmt="qcow2", target_fmt="raw")
    for path, size in ((old, 4096), (raw, 64 * KIB)):
        out = tmp_path / f"{path.name}.out"
        assert ok("diff", path, pair.new, "-o", out, "--json").json["cluster_size"] == size
        judge(out, pair.new)
    assert backing(out) == (str(raw), "raw")


def test_subclusters(pair: Pair, tmp_path: Path) -> None:
    qemu.write(pair.new, 3 * MIB + 4 * KIB, 512, 7)
    out = tmp_path / "out.qcow2"
    found = ok("diff", pair.old, pair.new, "-o", out, "--subclusters", "--json").json
    assert found["granularity"] == 2 * KIB
    assert found["data_bytes"] == DATA + 2 * KIB
    assert qemu.info(out)["format-specific"]["data"]["extended-l2"] is True
    judge(out, pair.new)
    words = ["--subclusters", "--cluster-size", "8k"]
    assert "16 KiB" in refused("diff", pair.old, pair.new, "-o", tmp_path / "x.qcow2", *words)


@pytest.mark.parametrize("codec", ["none", "zlib", "zstd"])
def test_compress(pair: Pair, tmp_path: Path, codec: str) -> None:
    out = tmp_path / "out.qcow2"
    found = ok("diff", pair.old, pair.new, "-o", out, "--compress", codec, "--json").json
    assert found["compressed_clusters"] == (0 if codec == "none" else DATA // (64 * KIB))
    clusters = qemu.check(out).get("compressed-clusters", 0)
    assert clusters == found["compressed_clusters"]
    if codec == "zstd":
        assert qemu.info(out)["format-specific"]["data"]["compression-type"] == "zstd"
    judge(out, pair.new)


def test_compressed_clusters_are_copied_by_default(pair: Pair, tmp_path: Path) -> None:
    new, out = tmp_path / "compressed.qcow2", tmp_path / "out.qcow2"
    qemu.convert(pair.new, new, source_fmt="qcow2", target_fmt="qcow2", compressed=True)
    found = ok("diff", pair.old, new, "-o", out, "--json").json
    assert found["copied_compressed_clusters"] == DATA // (64 * KIB)
    assert found["compressed_clusters"] == 0
    judge(out, new)


def test_formats_are_taken_as_given(pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "out.qcow2"
    ok("diff", pair.old, pair.new, "-o", out, "--old-format", "raw", "--new-format", "raw")
    assert backing(out) == (str(pair.old), "raw")
    length = -(-pair.new.stat().st_size // 512) * 512
    assert qemu.info(out, fmt="qcow2")["virtual-size"] == length
    assert qemu.compare(out, pair.new, "qcow2", "raw")
    raw = tmp_path / "plain.raw"
    raw.write_bytes(bytes(512))
    refused("diff", raw, pair.new, "-o", tmp_path / "x.qcow2", "--old-format", "qcow2")
    refused("diff", raw, pair.new, "-o", tmp_path / "x.qcow2", "--old-format", "vmdk")


# What the overlay calls its backing file


def test_relative_old_is_kept_as_given_beside_it(pair: Pair, tmp_path: Path) -> None:
    ok("diff", "old.qcow2", "new.qcow2", "-o", "out.qcow2", cwd=tmp_path)
    assert backing(tmp_path / "out.qcow2")[0] == "old.qcow2"
    judge(tmp_path / "out.qcow2", pair.new)


def test_relative_old_still_means_old_from_another_folder(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    out = Path("elsewhere", "out.qcow2")
    ok("diff", "old.qcow2", "new.qcow2", "-o", out, cwd=tmp_path)
    assert backing(tmp_path / out)[0] == os.path.join("..", "old.qcow2")
    judge(tmp_path / out, pair.new)


def test_relative_old_does_not_become_its_namesake(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(pair.new, tmp_path / "elsewhere" / "old.qcow2")
    out = Path("elsewhere", "out.qcow2")
    ok("diff", "old.qcow2", "new.qcow2", "-o", out, cwd=tmp_path)
    judge(tmp_path / out, pair.new)


def test_relative_to_a_folder_reached_by_a_link(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "link").symlink_to(Path("deep", "er"))
    out = tmp_path / "link" / "out.qcow2"
    ok("diff", pair.old, pair.new, "-o", out, "--relative")
    assert not os.path.isabs(backing(out)[0])
    judge(out, pair.new)


def test_absolute_old_stays_absolute_unless_asked(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    plain, relative = tmp_path / "sub" / "a.qcow2", tmp_path / "sub" / "b.qcow2"
    ok("diff", pair.old, pair.new, "-o", plain)
    ok("diff", pair.old, pair.new, "-o", relative, "--relative")
    assert backing(plain)[0] == str(pair.old)
    assert backing(relative)[0] == os.path.join("..", "old.qcow2")
    judge(plain, pair.new)
    judge(relative, pair.new)


def test_a_colon_in_the_name_is_no_protocol(pair: Pair, tmp_path: Path) -> None:
    shutil.copy(pair.old, tmp_path / "a:b.qcow2")
    ok("diff", "a:b.qcow2", "new.qcow2", "-o", "out.qcow2", cwd=tmp_path)
    assert backing(tmp_path / "out.qcow2")[0] == "./a:b.qcow2"
    judge(tmp_path / "out.qcow2", pair.new)


def test_backing_name_is_recorded_as_it_is(pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "out.qcow2"
    ok("diff", pair.old, pair.new, "-o", out, "--backing-name", "golden/v1 base.qcow2")
    assert backing(out) == ("golden/v1 base.qcow2", "qcow2")


def test_backing_names_that_cannot_be_are_refused(pair: Pair, tmp_path: Path) -> None:
    words: list[str | Path] = ["diff", pair.old, pair.new, "-o", tmp_path / "out.qcow2"]
    refused(*words, "--backing-name", "")
    refused(*words, "--backing-name", "x" * 1024)
    refused(*words, "--backing-name", "old.qcow2", "--relative")
    refused(*words, "--cluster-size", "512", "--backing-name", "x" * 500)
    assert not (tmp_path / "out.qcow2").exists()


def test_a_backing_name_counts_from_the_link_that_named_its_image(
    pair: Pair, tmp_path: Path
) -> None:
    """As in QEMU: top -> link -> sub/mid, whose base is looked for beside the link."""
    folder = tmp_path / "chain"
    (folder / "sub").mkdir(parents=True)
    for name, value in (("base.raw", 1), ("sub/base.raw", 2)):
        (folder / name).write_bytes(bytes([value]) * SIZE)
    qemu.create(folder / "sub" / "mid.qcow2", None, backing="base.raw", backing_fmt="raw")
    (folder / "link.qcow2").symlink_to("sub/mid.qcow2")
    top = folder / "top.qcow2"
    qemu.create(top, None, backing="link.qcow2", backing_fmt="qcow2")
    ok("diff", pair.old, top, "-o", tmp_path / "out.qcow2")
    judge(tmp_path / "out.qcow2", top)


# Snapshots


@pytest.fixture
def snapshots(pair: Pair) -> Path:
    """NEW with what it was before as the snapshot ``before``, and 64 KiB more changed."""
    qemu.snapshot(pair.new, "before")
    qemu.write(pair.new, 3 * MIB, 64 * KIB, 5)
    return pair.new


def test_a_snapshot_as_new(pair: Pair, snapshots: Path, tmp_path: Path) -> None:
    out, was = tmp_path / "out.qcow2", tmp_path / "was.raw"
    ok("diff", pair.old, snapshots, "--new-snapshot", "before", "-o", out)
    was.write_bytes(qemu.read_guest(snapshots, "qcow2", "before"))
    judge(out, was, "raw")


def test_a_snapshot_as_old_needs_a_backing_name(snapshots: Path, tmp_path: Path) -> None:
    out, base = tmp_path / "out.qcow2", tmp_path / "before.qcow2"
    words: list[str | Path] = ["diff", snapshots, snapshots, "--old-snapshot", "before", "-o", out]
    assert "--backing-name" in refused(*words)
    assert not out.exists()
    qemu.convert(snapshots, base, source_fmt="qcow2", target_fmt="qcow2", snapshot="before")
    found = ok(*words, "--backing-name", base.name, "--json").json
    assert found["data_bytes"] == 64 * KIB
    judge(out, snapshots)


def test_a_snapshot_that_is_not_there_is_refused(snapshots: Path, tmp_path: Path) -> None:
    message = refused("inspect", snapshots, snapshots, "--old-snapshot", "after")
    assert "before" in message
    raw = tmp_path / "x.raw"
    raw.write_bytes(bytes(512))
    refused("inspect", raw, snapshots, "--old-snapshot", "before")


# inspect


def test_inspect_json(pair: Pair) -> None:
    found = ok("inspect", pair.old, pair.new, "--json").json
    expected = {
        "virtual_size": SIZE,
        "cluster_size": 64 * KIB,
        "changed_clusters": CHANGED,
        "data_bytes": DATA,
        "zero_bytes": ZEROED,
        "added": {"clusters": 2, "bytes": 128 * KIB},
        "modified": {"clusters": 1, "bytes": 64 * KIB},
        "zeroed": {"clusters": 1, "bytes": 64 * KIB},
    }
    assert {name: found[name] for name in expected} == expected
    assert [(e["start"], e["length"], e["kind"]) for e in found["extents"]] == [
        (0, 64 * KIB, "zero"),
        (MIB, 64 * KIB, "data"),
        (2 * MIB, 128 * KIB, "data"),
    ]


def test_inspect_of_an_overlay_is_its_top_layer(pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "out.qcow2"
    ok("diff", pair.old, pair.new, "-o", out)
    one, two = (ok("inspect", *w, "--json").json for w in ([out], [pair.old, pair.new]))
    assert one["extents"] == two["extents"]
    assert "backing" in refused("inspect", pair.old)


def test_inspect_shows_sizes_extents_and_a_map(pair: Pair) -> None:
    shown = ok("inspect", pair.old, pair.new).out
    for text in (
        "added",
        "modified",
        "zeroed",
        "unchanged",
        "128 KiB",
        "64 KiB",
        "4 MiB",
        "0x100000",
    ):
        assert text in shown
    assert re.search(r"^[.aAmMzZ]{50,}$", shown, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("columns", [40, 80, 160])
def test_inspect_fits_the_window(pair: Pair, columns: int) -> None:
    shown = in_terminal(["inspect", str(pair.old), str(pair.new), "--no-progress"], columns)
    assert max(map(len, plain_lines(shown))) <= columns


def test_inspect_clusters_lists_every_extent(pair: Pair, tmp_path: Path) -> None:
    qemu.io(pair.new, [qemu.write_command(i * 128 * KIB, 512, 8) for i in range(30)])
    short = ok("inspect", pair.old, pair.new).out
    full = ok("inspect", pair.old, pair.new, "--clusters").out
    assert short.count("0x") == 10 < full.count("0x")
    starts = ok("inspect", pair.old, pair.new, "--json").json["extents"]
    assert all(f"{e['start']:#x}" in full for e in starts)


def test_exit_code_says_whether_they_differ(pair: Pair, tmp_path: Path) -> None:
    words = ["--exit-code", "--json"]
    assert run("inspect", pair.old, pair.old, *words).status == 0
    assert run("inspect", pair.old, pair.new, *words).status == 1
    assert run("inspect", pair.old, pair.new, "--json").status == 0
    assert run("inspect", pair.old, tmp_path / "none", *words).status == 2
    copy = tmp_path / "same.raw"
    qemu.convert(pair.old, copy, source_fmt="qcow2", target_fmt="raw")
    assert run("inspect", pair.old, copy, *words).status == 0


# info and check


INFO_KEYS = {
    "filename", "file_size", "format", "virtual_size", "cluster_size", "backing_file",
    "backing_format", "data_file", "encryption", "compression_type", "refcount_bits", "header",
    "features", "extensions", "delta", "snapshots", "bitmaps", "tables",
}  # fmt: skip


def test_info_json(pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "out.qcow2"
    ok("diff", pair.old, pair.new, "-o", out)
    found = ok("info", out, "--json").json
    assert set(found) >= INFO_KEYS
    assert (found["format"], found["virtual_size"]) == ("qcow2", SIZE)
    assert (found["backing_file"], found["backing_format"]) == (str(pair.old), "qcow2")
    delta = found["delta"]
    assert (delta["data_bytes"], delta["zero_bytes"]) == (DATA, ZEROED)
    assert delta["base_size"] == SIZE
    assert delta["base_digest"] is None
    tables = found["tables"]
    assert (tables["data"], tables["zero"], tables["unallocated"]) == (3, 1, 60)


def test_info_opens_nothing_else(tmp_path: Path) -> None:
    image = tmp_path / "top.qcow2"
    qemu.create(image, SIZE, backing="/nowhere/secret.raw", backing_fmt="raw", unsafe=True)
    assert ok("info", image, "--json").json["backing_file"] == "/nowhere/secret.raw"
    assert "/nowhere/secret.raw" in ok("info", image).out


def test_info_shows_sizes(pair: Pair) -> None:
    shown = ok("info", pair.old).out
    for text in ("4 MiB (4,194,304 bytes)", "64 KiB (65,536 bytes)", "qcow2", "zlib"):
        assert text in shown


def test_info_of_a_raw_file(tmp_path: Path) -> None:
    raw = tmp_path / "x.raw"
    raw.write_bytes(b"x" * 700)
    found = ok("info", raw, "--json").json
    assert (found["format"], found["file_size"], found["virtual_size"]) == ("raw", 700, 1024)


def test_check_says_whether_the_base_is_the_same(pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "out.qcow2"
    ok("diff", pair.old, pair.new, "-o", out)
    found = ok("check", out, "--json").json
    assert set(found) >= {
        "corruptions", "leaks", "messages", "base", "base_recorded", "base_digest_recorded",
        "base_match", "good",
    }  # fmt: skip
    assert (found["corruptions"], found["leaks"], found["good"]) == (0, 0, True)
    assert (found["base_recorded"], found["base_match"]) == (True, "same_fingerprint")
    qemu.write(pair.old, 3 * MIB, 64 * KIB, 9)
    result = run("check", out, "--json")
    assert (result.status, result.json["base_match"]) == (1, "different")
    assert "NOT" in run("check", out).out


def test_check_with_a_digest_catches_a_byte_that_the_tables_do_not_show(
    pair: Pair, tmp_path: Path
) -> None:
    shutil.copy(pair.old, tmp_path / "base.raw")
    raw, digest, plain = (tmp_path / n for n in ("base.raw", "digest.qcow2", "plain.qcow2"))
    qemu.convert(pair.old, raw, source_fmt="qcow2", target_fmt="raw")
    qemu.resize(raw, 64 * MIB, fmt="raw")
    qemu.write(raw, 30 * MIB, MIB, 1, fmt="raw")
    ok("diff", raw, pair.new, "-o", digest, "--digest")
    ok("diff", raw, pair.new, "-o", plain)
    assert ok("check", digest, "--json").json["base_match"] == "same_content"
    with raw.open("r+b") as file:
        file.seek(30 * MIB + 130 * KIB)
        file.write(b"\xff")
    assert run("check", digest).status == 1
    assert ok("check", plain, "--json").json["base_match"] == "touched"
    os.utime(raw, (1, 1))
    assert run("check", digest).status == 1


def test_check_sees_that_a_data_file_was_modified(tmp_path: Path) -> None:
    """The base's own file stays as it is when its data file is written to in place."""
    old, new, out = (tmp_path / f"{n}.qcow2" for n in ("old", "new", "out"))
    data = tmp_path / "old.data"
    qemu.create(old, 64 * MIB, data_file=str(data))
    qemu.write(old, 0, 32 * MIB, 1)
    qemu.create(new, 64 * MIB)
    ok("diff", old, new, "-o", out)
    assert ok("check", out, "--json").json["base_match"] == "same_fingerprint"
    with data.open("r+b") as file:
        file.seek(16 * MIB + 130 * KIB)
        file.write(b"\xff")
    assert run("check", out, "--json").json["base_match"] in ("touched", "different")


def test_check_of_an_overlay_of_a_snapshots_copy(snapshots: Path, tmp_path: Path) -> None:
    """The base is what the overlay names; that its tables differ from the snapshot's is no harm."""
    out, base = tmp_path / "out.qcow2", tmp_path / "before.raw"
    base.write_bytes(qemu.read_guest(snapshots, "qcow2", "before"))
    words: list[str | Path] = ["diff", snapshots, snapshots, "--old-snapshot", "before"]
    ok(*words, "-o", out, "--backing-name", base.name, "--digest")
    judge(out, snapshots)
    assert ok("check", out, "--json").json["base_match"] == "same_content"


def test_check_finds_corruption(pair: Pair) -> None:
    header = pair.old.read_bytes()[:72]
    table = int.from_bytes(header[48:56], "big")
    with pair.old.open("r+b") as file:
        file.seek(table)
        block = int.from_bytes(file.read(8), "big")
        file.seek(block)
        file.write(bytes(2))
    assert run("check", pair.old).status == 1
    assert run("check", pair.old, "--json").json["good"] is False


def test_check_finds_what_qemu_finds_in_table_entries(pair: Pair) -> None:
    """A byte is changed in an L1 entry or L2 entry, and changed back."""
    l1 = int.from_bytes(pair.old.read_bytes()[40:48], "big")
    l2 = int.from_bytes(pair.old.read_bytes()[l1 : l1 + 8], "big") & 0x00FF_FFFF_FFFF_FE00
    changes = {
        "L1 entry without COPIED": (l1, 0x80),
        "L2 entry without COPIED": (l2, 0x80),
        "L2 entry with reserved bit 60": (l2, 0x10),
        "L2 entry with reserved bit 1": (l2 + 7, 0x02),
        "unaligned L2 entry": (l2 + 6, 0x02),
    }
    missed = []
    for what, (offset, bits) in changes.items():
        flip(pair.old, offset, bits)
        assert qemu.check(pair.old)["corruptions"], what
        if run("check", pair.old).status == 0:
            missed.append(what)
        flip(pair.old, offset, bits)
    assert run("check", pair.old).status == 0
    assert not missed


def flip(path: Path, offset: int, bits: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ bits]))


def test_info_does_not_need_bitmaps_that_are_stale(tmp_path: Path) -> None:
    """With autoclear bit 0 clear, the directory may be anything by now."""
    image = tmp_path / "image.qcow2"
    qemu.create(image, SIZE)
    qemu.run([qemu.program("qemu-img"), "bitmap", "--add", str(image), "b0"])
    data = image.read_bytes()
    extension = data.index(bytes.fromhex("23852875"))
    directory = int.from_bytes(data[extension + 24 : extension + 32], "big")
    with image.open("r+b") as file:
        file.seek(88)
        file.write(bytes(8))
        file.seek(directory)
        file.write(b"\xff" * 32)
    ok("info", image, "--json")
    ok("info", image)


# Errors


@pytest.mark.parametrize(
    "words",
    [
        ["diff"],
        ["nonsense"],
        ["diff", "--nonsense"],
        ["info", "{dir}/none"],
        ["info", "{dir}"],
        ["check", "{dir}/none"],
        ["check", "{dir}/raw"],
        ["inspect", "{dir}/none", "{dir}/raw"],
        ["inspect", "{dir}/raw"],
        ["diff", "{dir}/raw", "{dir}/none", "-o", "{dir}/out"],
        ["diff", "{dir}/raw", "{dir}/raw"],
        ["diff", "{dir}/raw", "{dir}/raw", "-o", "{dir}/no/such/out"],
        ["diff", "{dir}/raw", "{dir}/raw", "-o", "{dir}"],
        ["diff", "{dir}/raw", "{dir}/raw", "-o", "{dir}/out", "--compress", "lzma"],
        ["info", "{dir}/broken"],
        ["info", "{dir}/with\nnewline"],
        ["info", "{dir}/\x1b[31mred"],
    ],
)
def test_every_error_is_one_line_and_status_2(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(bytes(512))
    (tmp_path / "broken").write_bytes(b"QFI\xfb")
    message = refused(*(word.format(dir=tmp_path) for word in words))
    assert "\x1b" not in message
    assert "Traceback" not in message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken", "raw"]


def test_without_a_command_the_usage_is_shown() -> None:
    result = run()
    assert result.status == 2
    assert "Usage" in result.out + result.err
    assert "error" not in result.err


def test_a_refused_name_says_what_would_allow_it(tmp_path: Path) -> None:
    (tmp_path / "bases").mkdir()
    (tmp_path / "tops").mkdir()
    base, top = tmp_path / "bases" / "base.qcow2", tmp_path / "tops" / "top.qcow2"
    qemu.create(base, SIZE)
    qemu.create(top, None, backing="../bases/base.qcow2", backing_fmt="qcow2")
    message = refused("inspect", top)
    assert "--allow-path" in message
    assert str(tmp_path / "bases") in message
    ok("inspect", top, "--allow-path", tmp_path / "bases", "--json")
    ok("check", top, "--allow-path", tmp_path / "bases")


def test_an_image_in_use_is_refused_unless_shared(pair: Pair) -> None:
    with qemu.writer(pair.new):
        for words in (["info"], ["check"], ["inspect", str(pair.old)]):
            assert "force-share" in refused(*words, pair.new)
            ok(*words, pair.new, "-U")


@pytest.mark.parametrize(
    "words",
    [["inspect", "{old}", "{new}", "--json"], ["inspect", "{old}", "{new}"], ["info", "{old}"]],
)
def test_a_closed_pipe_is_no_error_message_and_no_difference(pair: Pair, words: list[str]) -> None:
    """Its status is that of a program which the signal ends, and none that means anything else."""
    words = [word.format(old=pair.old, new=pair.new) for word in words]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as out:
        done = subprocess.run([*RUN, *words], stdout=out, stderr=subprocess.PIPE, check=False)
    assert done.stderr == b""
    assert done.returncode == 141


def test_interrupt_while_modules_are_imported_is_one_line() -> None:
    begun = (
        "import signal, sys\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'qcowdelta.cli.options':\n"
        "            signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupts())\n"
        "from qcowdelta.cli import main; main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", begun, "--help"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (130, "qcowdelta: error: interrupted\n")


# Progress


def in_terminal(words: list[str], columns: int = 100) -> str:
    """What a terminal of that width is sent, on standard output and standard error."""
    ours, theirs = pty.openpty()
    env = os.environ | {"COLUMNS": str(columns), "LINES": "40", "TERM": "xterm"}
    with subprocess.Popen([*RUN, *words], stdin=theirs, stdout=theirs, stderr=theirs, env=env):
        os.close(theirs)
        shown = b"".join(_until_closed(ours))
    os.close(ours)
    return shown.decode()


def _until_closed(terminal: int) -> Iterator[bytes]:
    while True:
        try:
            data = os.read(terminal, 1 << 16)
        except OSError:  # how Linux says that the other side has gone
            return
        if not data:
            return
        yield data


def plain_lines(shown: str) -> list[str]:
    """Lines as they stand on the terminal: without escape sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).replace("\r", "").split("\n")


TITLE = "Comparing"


def test_progress_is_shown_on_a_terminal_only(pair: Pair, tmp_path: Path) -> None:
    words = ["diff", str(pair.old), str(pair.new), "--force", "-o", str(tmp_path / "out.qcow2")]
    assert TITLE in in_terminal(words)
    assert TITLE not in in_terminal([*words, "--no-progress"])
    assert TITLE not in in_terminal([*words, "-q"])
    assert ok(*words).err == ""
    forced = ok(*words, "--progress")
    assert TITLE in forced.err or not forced.err
    assert TITLE not in forced.out


def test_interrupt_that_python_can_only_drop_comes_again(pair: Pair) -> None:
    dropped = (
        "import signal, time\n"
        "import qcowdelta.cli as cli\n"
        "class Drops:\n"
        "    def __del__(self):\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "def slow():\n"
        "    Drops()\n"
        "    time.sleep(20)\n"
        "cli._run_before, cli._run = cli._run, lambda: slow() or cli._run_before()\n"
        "cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", dropped, "info", pair.old],
        capture_output=True, text=True, timeout=15, check=False,
    )  # fmt: skip
    assert done.stdout == ""
    assert done.stderr == "qcowdelta: error: interrupted\n"
    assert done.returncode == 130
