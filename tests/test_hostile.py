"""Hostile and broken images: each ends in its own error, soon, in little memory, with no output."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import struct
import subprocess
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from qcowdelta import (
    AtomicOutput,
    Backing,
    BaseIdentity,
    HostFile,
    ImageDelta,
    OpenPolicy,
    OverlayOptions,
    QcowDeltaError,
    check_overlay,
    describe,
    open_image,
    write_overlay,
)
from qcowdelta.errors import PolicyError
from tests.support import fixtures, hostile, qemu
from tests.support.commandline import ok, refused
from tests.support.hostile import ACCEPTED, CASES, MEMORY, MIB, SECONDS, Case, Stage

STAGES: tuple[Stage, ...] = ("info", "open", "diff", "check")
# Which operations a fault that the key's can first see must make fail.
MUST_FAIL: dict[Stage, tuple[Stage, ...]] = {
    "header": STAGES,
    "info": ("info",),
    "open": ("open", "diff"),
    "diff": ("diff",),
    "check": ("check",),
}
MAY_FAIL = (QcowDeltaError, OSError)


def _info(path: Path) -> None:
    with closing(HostFile.open(path)) as file:
        json.dumps(describe(file))


def _open(path: Path) -> None:
    open_image(path, format="qcow2").close()


def _diff(path: Path) -> None:
    base = path.parent / "old.raw"
    if not base.exists():
        base.write_bytes(bytes(MIB))
    with open_image(base, format="raw") as old, open_image(path, format="qcow2") as new:
        for _ in ImageDelta(old, new).windows():
            pass


def _check(path: Path) -> None:
    if not check_overlay(path).structure.clean:
        raise AssertionError("found")


OPERATIONS: dict[Stage, Callable[[Path], None]] = {
    "info": _info,
    "open": _open,
    "diff": _diff,
    "check": _check,
}


def _state(folder: Path) -> dict[str, tuple[int, str]]:
    """Every file's modification time and, where that is cheap, content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        small = path.is_file() and path.stat().st_size < 256 * MIB
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if small else ""
        found[str(path.relative_to(folder))] = (path.lstat().st_mtime_ns, digest)
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_library_refuses_with_the_named_error(case: Case, tmp_path: Path) -> None:
    path = case.make(tmp_path)
    failing = MUST_FAIL[case.at]
    for stage in STAGES:
        if stage == case.at == "check":
            _assert_check_finds(case, path)
        elif stage in failing:
            with pytest.raises(case.error, match=re.compile(case.says, re.DOTALL)):
                OPERATIONS[stage](path)
        else:
            try:
                OPERATIONS[stage](path)
            except MAY_FAIL:
                assert stage != "info" or case.error is not PolicyError, "info must show names"
            except AssertionError:
                assert stage == "check"


def _assert_check_finds(case: Case, path: Path) -> None:
    """`check` either cannot walk the tables and says so, or reports what it found in words."""
    try:
        report = check_overlay(path).structure
        assert not report.clean
        said = "\n".join(report.messages)
    except case.error as error:
        said = str(error)
    assert re.search(case.says, said)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_command_refuses_in_one_line_within_the_limits(case: Case, tmp_path: Path) -> None:
    path = case.make(tmp_path)
    old = tmp_path / "old.raw"
    old.write_bytes(bytes(MIB))
    before = _state(tmp_path)
    match case.at:
        case "check":
            done = hostile.cli("check", path)
            allowed = {1, 2}
        case "info":
            done = hostile.cli("info", path)
            allowed = {2}
        case _:
            done = hostile.cli(
                "diff", old, path, "--new-format", "qcow2", "-o", tmp_path / "out.qcow2"
            )
            allowed = {2}
    assert done.status in allowed, done
    if done.status == 2:
        assert_one_line(done)
        assert re.search(case.says, done.lines[0])
    assert_within_limits(done)
    assert _state(tmp_path) == before


def assert_one_line(done: hostile.Outcome) -> None:
    assert len(done.lines) == 1, done.stderr
    assert done.lines[0].startswith("qcowdelta: error: ")
    assert "internal error" not in done.lines[0]
    assert b"\x1b" not in done.stderr


def assert_within_limits(done: hostile.Outcome) -> None:
    assert done.seconds < SECONDS
    assert done.memory < MEMORY


@pytest.mark.slow
@pytest.mark.parametrize(("name", "make"), ACCEPTED, ids=[name for name, _ in ACCEPTED])
def test_what_is_just_inside_the_limits_is_read_as_qemu_reads_it(
    name: str, make: hostile.Maker, tmp_path: Path
) -> None:
    qemu.require("qemu-img")
    path = make(tmp_path)
    _info(path)
    with open_image(path, format="qcow2") as image:
        ours = image.reader().read(0, min(image.size, 16 * MIB))
        size = image.size
    raw = tmp_path / "qemu.raw"
    qemu.convert(path, raw, source_fmt="qcow2", target_fmt="raw")
    assert raw.stat().st_size == size
    with raw.open("rb") as file:
        assert file.read(len(ours)) == ours


def test_hand_built_image_is_sound(tmp_path: Path) -> None:
    qemu.require("qemu-img")
    for name, image in (
        ("plain", hostile.plain()),
        ("version2", hostile.plain(version=2)),
        ("extended", hostile.plain(extended=True)),
        ("packed", hostile.packed(hostile.deflated(bytes(65536)))),
    ):
        path = image.write(tmp_path / name)
        report = qemu.check(path)
        assert not report["corruptions"], (name, report)
        assert not report["leaks"], (name, report)
        assert check_overlay(path).good, name


@pytest.mark.parametrize(("name", "make"), hostile.BOMBS, ids=[n for n, _ in hostile.BOMBS])
@pytest.mark.parametrize("against", ["raw", "itself"])
def test_bomb_stays_within_the_limits(
    name: str, make: hostile.Maker, against: str, tmp_path: Path
) -> None:
    path = make(tmp_path)
    old = tmp_path / "old.raw"
    old.write_bytes(bytes(MIB))
    if against == "itself":
        old = tmp_path / "old.qcow2"
        old.write_bytes(path.read_bytes())
        with old.open("r+b") as file:  # a change behind where they differ, so payloads are compared
            file.seek(8 * (2 << 20) + 300_000)
            file.write(b"\x01")
    output = tmp_path / "out.qcow2"
    done = hostile.cli("diff", old, path, "-o", output)
    assert_within_limits(done)
    assert done.status in (0, 2)
    if done.status == 2:
        assert_one_line(done)
        assert not output.exists()
    else:
        assert_reads_the_same(output, path)


COSTLY_IDS = [name for name, _, _ in hostile.COSTLY]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "make", "command"), hostile.COSTLY, ids=COSTLY_IDS)
def test_costly_tables_are_refused_or_read_within_the_limits(
    name: str, make: hostile.Maker, command: str, tmp_path: Path
) -> None:
    try:
        path = make(tmp_path)
    except OSError as error:
        pytest.skip(f"the file system of the test folder takes no sparse file so long: {error}")
    words: list[str | Path] = [command, path]
    if command == "diff":
        old = tmp_path / "old.raw"
        old.write_bytes(bytes(MIB))
        words = ["diff", old, path, "-o", tmp_path / "out.qcow2"]
    done = hostile.cli(*words)
    assert_within_limits(done)
    assert done.status in (0, 1, 2)
    if done.status == 2:
        assert_one_line(done)


def test_info_opens_nothing_but_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base.raw").write_bytes(bytes(MIB))
    (tmp_path / "x.data").write_bytes(bytes(MIB))
    image = replace(
        hostile.plain(header={"incompatible_features": hostile.EXTERNAL}, backing=b"base.raw"),
        extensions=[(hostile.BACKING_FORMAT, b"raw"), (hostile.DATA_FILE, b"x.data")],
    )
    path = image.write(tmp_path / "x.qcow2")
    opened: list[str] = []
    real = os.open

    def spy(name: str | Path, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        opened.append(os.fspath(name))
        return real(name, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", spy)
    _info(path)
    assert opened == [str(path)]


@pytest.mark.parametrize("kind", ["fifo", "folder", "socket-less-device"])
def test_what_is_no_image_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path = Path("/dev/zero")
    with pytest.raises(PolicyError):
        open_image(path)
    for words in (("info", path), ("check", path), ("diff", path, path, "-o", tmp_path / "out")):
        done = hostile.cli(*words)
        assert done.status == 2
        assert_one_line(done)
        assert_within_limits(done)


def test_backing_elsewhere_is_opened_when_allowed(tmp_path: Path) -> None:
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    inner.mkdir()
    outer.mkdir()
    (outer / "base.raw").write_bytes(b"\x11" * MIB)
    path = hostile.plain(
        backing=b"../outer/base.raw", extensions=[(hostile.BACKING_FORMAT, b"raw")]
    ).write(inner / "x.qcow2")
    with pytest.raises(PolicyError, match=r"--allow-path .*outer"):
        open_image(path)
    with open_image(path, policy=OpenPolicy(allow_paths=(outer,))) as image:
        assert image.reader().read(0, 4) == b"\x11" * 4


def test_folder_whose_name_only_begins_like_an_allowed_one_is_refused(tmp_path: Path) -> None:
    inner, beside = tmp_path / "disks", tmp_path / "disks-secret"
    inner.mkdir()
    beside.mkdir()
    (beside / "base.raw").write_bytes(bytes(MIB))
    path = hostile.plain(
        backing=b"../disks-secret/base.raw", extensions=[(hostile.BACKING_FORMAT, b"raw")]
    ).write(inner / "x.qcow2")
    with pytest.raises(PolicyError):
        open_image(path, policy=OpenPolicy(allow_paths=(inner,)))


def test_data_file_that_only_qemu_finds_is_told_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative name is relative to the image's folder here, and to the current one for QEMU."""
    qemu.require("qemu-img")
    (tmp_path / "d").mkdir()
    monkeypatch.chdir(tmp_path)
    image = Path("d/x.qcow2")
    qemu_img = qemu.program("qemu-img")
    options = "data_file=d/e.dat"
    create = [qemu_img, "create", "-q", "-f", "qcow2", "-o", options, str(image), "1M"]
    subprocess.run(create, check=True)
    words: list[str | Path] = ["inspect", image, image]
    message = refused(*words)
    assert "d/d/e.dat, which cannot be opened" in message
    assert "QEMU takes d/e.dat relative to the current folder" in message
    monkeypatch.chdir(tmp_path / "d")
    assert "QEMU takes" not in refused("inspect", "x.qcow2", "x.qcow2")
    monkeypatch.chdir(tmp_path)
    options = f"data_file={tmp_path / 'd/e.dat'}"
    subprocess.run([qemu_img, "amend", "-q", "-o", options, str(image)], check=True)
    ok(*words)


def test_relative_name_is_resolved_from_the_links_own_folder(tmp_path: Path) -> None:
    """As QEMU does: by the path as it was given, at every step of the chain."""
    qemu.require("qemu-img")
    sub = tmp_path / "sub"
    sub.mkdir()
    (tmp_path / "base.raw").write_bytes(b"\x01" * MIB)
    (sub / "base.raw").write_bytes(b"\x02" * MIB)
    raw = [(hostile.BACKING_FORMAT, b"raw")]
    hostile.plain(backing=b"base.raw", extensions=raw).write(sub / "middle.qcow2")
    (tmp_path / "link.qcow2").symlink_to("sub/middle.qcow2")
    qcow2 = [(hostile.BACKING_FORMAT, b"qcow2")]
    top = hostile.plain(backing=b"link.qcow2", extensions=qcow2).write(tmp_path / "top.qcow2")
    for path in (tmp_path / "link.qcow2", top):
        with open_image(path) as image:
            assert image.reader().read(0, MIB) == qemu.read_guest(path, "qcow2")


@pytest.mark.parametrize(
    "fault",
    ["dirty", "corrupt", "refcounts zero", "refcounts wrong", "copied wrong"],
)
def test_flags_and_refcounts_are_never_trusted_for_reading(fault: str, tmp_path: Path) -> None:
    block, data = hostile.REFCOUNT_BLOCK * hostile.K64, hostile.DATA * hostile.K64
    images = {
        "dirty": hostile.plain(header={"incompatible_features": 1}),
        "corrupt": hostile.plain(header={"incompatible_features": 2}),
        "refcounts zero": hostile.plain(blobs={block: bytes(hostile.K64)}),
        "refcounts wrong": hostile.plain(blobs={block: b"\x77" * hostile.K64}),
        "copied wrong": hostile.plain(l2={2: data}),
    }
    path = images[fault].write(tmp_path / "x.qcow2")
    old, output = tmp_path / "old.raw", tmp_path / "out.qcow2"
    old.write_bytes(bytes(MIB))
    assert hostile.cli("diff", old, path, "-o", output).status == 0
    content = bytearray(MIB)
    content[2 << 16 : 3 << 16] = b"\x5a" * hostile.K64
    with open_image(output) as image:
        assert image.reader().read(0, MIB) == content


ODD = b"\x1b]0;owned\x07\xff\xc2\x9b31m\xe2\x80\xae\n"


@pytest.mark.parametrize("form", ["table", "json"])
def test_names_from_the_file_are_shown_escaped(form: str, tmp_path: Path) -> None:
    entry = hostile.snapshot_entry(name=ODD + b"\0tail", ident=b"\x1b[2J")
    features = struct.pack(">BB46s", 1, 7, b"\x1b[31mred")
    image = hostile.plain(
        backing=ODD,
        header={
            "nb_snapshots": 1,
            "snapshots_offset": 9 << 16,
            "compatible_features": 1 << 7,
            "incompatible_features": hostile.EXTERNAL,
        },
        blobs={9 << 16: entry},
        extensions=[
            (hostile.BACKING_FORMAT, b"\x1b[5m\xff"),
            (hostile.FEATURE_NAMES, features),
            (hostile.DATA_FILE, ODD),
        ],
    )
    path = image.write(tmp_path / os.fsdecode(ODD.strip() + b".qcow2"))
    done = hostile.cli("info", path, *(["--json"] if form == "json" else []))
    assert done.status == 0, done.stderr
    shown = done.stdout + done.stderr
    for raw in (b"\x1b", b"\x07", b"\0", b"\xc2\x9b", b"\xe2\x80\xae", b"\xff"):
        assert raw not in shown, raw
    shown.decode("utf-8")
    assert b"owned" in shown
    if form == "json":
        assert "\\x1b]0;owned" in json.loads(done.stdout)["backing_file"]


def test_error_shows_names_escaped(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\x1b[31m\xff.qcow2")
    hostile.plain(header={"cluster_bits": 40}).write(path)
    for words in (("info", path), ("info", tmp_path / "\x1b[1mmissing")):
        done = hostile.cli(*words)
        assert done.status == 2
        assert_one_line(done)


# --- random damage -------------------------------------------------------------------------------

SEEDS = 10
CASES_EACH = 30
_WORDS = (0, 1, 0x200, 1 << 16, 0xFFFF_FFFF, 1 << 62, 1 << 63, (1 << 63) - 1, (1 << 64) - 1)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_damage_is_refused_or_read_right(seed: int, tmp_path: Path) -> None:
    """Whatever bytes are hit, only errors of our own; and an overlay that is made is right."""
    chance = random.Random(seed)
    names = [each.name for each in fixtures.all_fixtures() if each.format == "qcow2"]
    for number in range(CASES_EACH):
        folder = tmp_path / str(number)
        folder.mkdir()
        name = chance.choice(names)
        new = fixtures.unpack(name, folder)
        if new.stat().st_size > 16 * MIB:
            continue
        old = folder / "sound.copy"
        old.write_bytes(new.read_bytes())
        damage = _damage(new, chance)
        try:
            _use_everything(old, new, folder / "out.qcow2", name)
        except Exception as error:
            error.add_note(f"seed {seed}, case {number}: {name}, damage {damage}")
            raise


def _damage(path: Path, chance: random.Random) -> list[tuple[int, str]]:
    """Overwrite bytes or words where the file has any; mostly in the header and tables."""
    data = bytearray(path.read_bytes())
    cluster = 1 << min(21, max(9, int.from_bytes(data[20:24], "big")))
    tables = [
        int.from_bytes(data[at : at + 8], "big") for at in (40, 48, 64)
    ]  # L1, refcounts, snapshots
    first = int.from_bytes(data[tables[0] : tables[0] + 8], "big") & 0x00FF_FFFF_FFFF_FE00
    places = [(0, 112), (0, min(cluster, 1024)), *((at, 64) for at in tables if at)]
    places += [(first, 256)] * 2 + [(0, len(data))]
    done = []
    for _ in range(chance.choice((1, 1, 2, 4))):
        start, length = chance.choice(places)
        at = min(start + chance.randrange(length), len(data) - 1)
        if chance.random() < 0.4:
            change = bytes([data[at] ^ 1 << chance.randrange(8)])
        elif chance.random() < 0.5:
            at -= at % 8
            change = struct.pack(
                ">Q", chance.choice(_WORDS) ^ chance.choice((0, chance.getrandbits(24)))
            )
        else:
            change = chance.randbytes(chance.randrange(1, 9))
        change = change[: len(data) - at]
        data[at : at + len(change)] = change
        done.append((at, change.hex()))
    if chance.random() < 0.1:
        del data[chance.randrange(len(data)) :]
        done.append((len(data), "cut"))
    path.write_bytes(data)
    return done


def _use_everything(old: Path, new: Path, output: Path, name: str) -> None:
    for use in (_info, check_overlay):
        with suppress(*MAY_FAIL):
            use(new)
    try:
        with open_image(old, format="qcow2") as a, open_image(new, format="qcow2") as b:
            if b.size > 64 * MIB:
                return
            _overlay(a, b, output)
            content = b.reader().read(0, b.size)
    except MAY_FAIL:
        assert not output.exists()
        return
    with open_image(output) as image:
        assert image.size == len(content)
        assert image.reader().read(0, image.size) == content
    assert check_overlay(output).structure.clean
    if qemu.has("qemu-img"):
        _assert_qemu_agrees(output, new)


def _overlay(old: object, new: object, output: Path) -> None:
    from qcowdelta import Image

    assert isinstance(old, Image)
    assert isinstance(new, Image)
    options = OverlayOptions(
        Backing(os.fsencode(Path(old.path).name), "qcow2"),
        cluster_size=old.cluster_size or 65536,
        subclusters=False,
        compress="keep",
    )
    delta = ImageDelta(old, new, granularity=options.geometry.unit)
    with AtomicOutput(output) as out:
        write_overlay(delta, out, options, BaseIdentity.of(old))


def _assert_qemu_agrees(output: Path, new: Path) -> None:
    """QEMU reads the overlay as it reads NEW, if it reads NEW; where NEW is damaged it may not."""
    try:
        content = qemu.read_guest(new, "qcow2")
    except qemu.QemuError:
        return
    assert qemu.read_guest(output, "qcow2") == content


def assert_reads_the_same(a: Path, b: Path) -> None:
    with open_image(a) as first, open_image(b) as second:
        assert first.size == second.size
        assert first.reader().read(0, first.size) == second.reader().read(0, second.size)
