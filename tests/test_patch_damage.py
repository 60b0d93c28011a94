"""Damaged, wrong and hostile patches and bases: a named error or the right result, soon."""

from __future__ import annotations

import os
import random
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from qcowdelta import (
    ImageOptions,
    PatchFile,
    QcowDeltaError,
    apply_patch,
    open_image,
    open_patched,
)
from qcowdelta.errors import BaseMismatchError, CorruptImageError, FormatError
from qcowdelta.patch import layout
from tests.support import hostile, patches, qemu
from tests.support.commandline import ok, refused, run
from tests.support.hostile import MEMORY, SECONDS
from tests.support.patches import KIB, MIB, Rich

FLIPS = 10_000
SEALED_FLIPS = 3_000
TRUNCATIONS = 3_000
OVERWRITES = 1_500


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Rich:
    return patches.rich_pair(tmp_path_factory.mktemp("rich"))


@pytest.fixture(autouse=True)
def _inputs_stay_as_they_are(rich: Rich) -> Iterator[None]:
    files = rich.old, rich.new, rich.patch
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in files]
    yield
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in files] == before


# --- the base ------------------------------------------------------------------------------------


def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows with every file opened for writing from now on."""
    opened: list[str] = []
    real = os.open

    def spy(name: str | Path, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            opened.append(os.fspath(name))
        return real(name, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", spy)
    return opened


def assert_base_refused(patch: Path, base: Path, folder: Path) -> None:
    """Assert that neither library nor any command takes the base, and that nothing is written."""
    before = sorted(os.listdir(folder))
    with pytest.MonkeyPatch.context() as patching:
        opened = written(patching)
        for fmt in ("raw", "qcow2"):
            with pytest.raises(BaseMismatchError), open_image(base) as image:
                apply_patch(PatchFile.open(patch), image, folder / "out", ImageOptions(fmt))
        with pytest.raises(BaseMismatchError), open_image(base) as image:
            open_patched(PatchFile.open(patch), image)
        for command in ("apply", "convert", "invert"):
            more = ["--to", "overlay"] if command == "convert" else []
            words: list[str | Path] = [command, patch, "--base", base, *more]
            message = refused(*words, "-o", folder / "out")
            assert str(base) in message
    assert opened == []
    assert sorted(os.listdir(folder)) == before


def where_bits_are(rich: Rich) -> list[int]:
    """Offsets in OLD: the ends, some of each segment, and some that the patch leaves alone."""
    chance = random.Random(1)
    size = rich.old.stat().st_size
    with PatchFile.open(rich.patch) as patch:
        touched = {int(number) for number in patch.entries["number"]}
    spread = [chance.randrange(at, min(size, at + MIB)) for at in range(0, size, MIB)]
    return [0, size - 1, 70 * KIB, 200 * KIB, MIB + 500 * KIB, *spread, *sorted(touched)]


def test_base_with_any_bit_changed_is_refused_before_anything_is_written(
    rich: Rich, tmp_path: Path
) -> None:
    base, content = tmp_path / "base.raw", rich.old.read_bytes()
    for offset in where_bits_are(rich):
        base.write_bytes(patches.flip(content, offset, 1 << offset % 8))
        assert_base_refused(rich.patch, base, tmp_path)


def test_bit_changed_far_from_what_the_patch_touches_is_refused(tmp_path: Path) -> None:
    old, new, out = tmp_path / "old.raw", tmp_path / "new.raw", tmp_path / "x.qcpatch"
    content = random.Random(2).randbytes(5 * MIB)
    old.write_bytes(content)
    new.write_bytes(b"new" + content[3:])
    patches.make(old, new, out)
    with PatchFile.open(out) as patch:
        assert patch.entries["number"].tolist() == [0]
    for offset in (MIB, 3 * MIB + 12345, 5 * MIB - 1):
        old.write_bytes(patches.flip(content, offset, 0x80))
        assert_base_refused(out, old, tmp_path)
    old.write_bytes(content)
    patches.apply(out, old, tmp_path / "again.raw", "raw")
    assert (tmp_path / "again.raw").read_bytes() == new.read_bytes()


@pytest.mark.parametrize("change", [512, MIB, -512, -MIB, -4 * MIB])
def test_base_of_another_size_is_refused(rich: Rich, tmp_path: Path, change: int) -> None:
    base = tmp_path / "base.raw"
    shutil.copyfile(rich.old, base)
    os.truncate(base, rich.old.stat().st_size + change)
    assert_base_refused(rich.patch, base, tmp_path)


def test_patch_for_another_base_is_refused(rich: Rich, tmp_path: Path) -> None:
    for base in (rich.new, tmp_path / "zeros.raw"):
        if base != rich.new:
            base.write_bytes(bytes(rich.old.stat().st_size))
        assert_base_refused(rich.patch, base, tmp_path)


def test_bit_changed_in_a_qcow2_base_is_refused(rich: Rich, tmp_path: Path) -> None:
    qemu.require("qemu-img")
    base = tmp_path / "base.qcow2"
    qemu.convert(rich.old, base, source_fmt="raw", target_fmt="qcow2")
    ok("apply", rich.patch, "--base", base, "-o", tmp_path / "fine.raw")
    data, piece = base.read_bytes(), rich.old.read_bytes()[3 * MIB : 3 * MIB + 64]
    base.write_bytes(patches.flip(data, data.index(piece) + 5, 4))
    assert_base_refused(rich.patch, base, tmp_path)


def test_patches_that_do_not_follow_each_other_are_not_composed(rich: Rich, tmp_path: Path) -> None:
    words: list[str | Path] = ["compose", rich.patch, rich.patch, "-o", tmp_path / "out.qcpatch"]
    assert "was not made from" in refused(*words, "--base", rich.old)
    assert "was not made from" in refused(*words)
    patches.nothing_but(tmp_path, [])


# --- verify --------------------------------------------------------------------------------------


Ranges = list[tuple[int, int]]


def verdict(patch: Path, base: Path | None = None, target: Path | None = None) -> dict[str, Ranges]:
    """Which of the three are wrong, and from where to where."""
    words: list[str | Path] = ["verify", patch, "--json"]
    words += ["--base", base] if base else []
    words += ["--target", target] if target else []
    done = run(*words)
    found = {name: each for name, each in done.json.items() if each is not None}
    assert list(found) == [
        name for name, given in (("patch", patch), ("base", base), ("target", target)) if given
    ]
    assert done.status == (0 if all(each["good"] for each in found.values()) else 1)
    assert all(bool(each["problem"]) != bool(each["good"]) for each in found.values())
    return {
        name: [(each["start"], each["start"] + each["length"]) for each in finding["ranges"]]
        for name, finding in found.items()
        if finding["good"] is False
    }


def holds(ranges: Ranges, offset: int) -> bool:
    return any(start <= offset < stop for start, stop in ranges)


def test_verify_finds_nothing_where_nothing_is_wrong(rich: Rich) -> None:
    for given in ((), (rich.old,), (None, rich.new), (rich.old, rich.new)):
        assert verdict(rich.patch, *given) == {}


def test_verify_names_the_base_and_what_the_patch_uses_of_it(rich: Rich, tmp_path: Path) -> None:
    base, content = tmp_path / "base.raw", rich.old.read_bytes()
    base.write_bytes(patches.flip(content, 2 * MIB + 5 * KIB, 1))  # copied from
    found = verdict(rich.patch, base, rich.new)
    assert list(found) == ["base"]
    assert holds(found["base"], 2 * MIB + 5 * KIB)
    base.write_bytes(patches.flip(content, 70 * KIB, 1))  # zeroed: nothing is taken from there
    found = verdict(rich.patch, base, rich.new)
    assert list(found) == ["base"]
    assert not holds(found["base"], 70 * KIB)
    os.truncate(base, MIB)
    assert list(verdict(rich.patch, base, rich.new)) == ["base"]


@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize("offset", [0, 70 * KIB, 700 * KIB, MIB + 257 * KIB, 4 * MIB + 5])
def test_verify_names_the_target_and_the_leaf(
    rich: Rich, tmp_path: Path, offset: int, with_base: bool
) -> None:
    target = tmp_path / "target.raw"
    target.write_bytes(patches.flip(rich.content, offset, 0x10))
    found = verdict(rich.patch, rich.old if with_base else None, target)
    assert list(found) == ["target"]
    start = offset // MIB * MIB
    assert found["target"] == [(start, min(len(rich.content), start + MIB))]


def test_verify_finds_a_target_that_is_wrong_where_the_patch_has_nothing(tmp_path: Path) -> None:
    old, new, out = tmp_path / "old.raw", tmp_path / "new.raw", tmp_path / "x.qcpatch"
    content = random.Random(2).randbytes(3 * MIB)
    old.write_bytes(content)
    new.write_bytes(b"new" + content[3:])
    patches.make(old, new, out)
    new.write_bytes(patches.flip(new.read_bytes(), 2 * MIB + 1, 1))
    assert verdict(out, old, new) == {"target": [(2 * MIB, 3 * MIB)]}
    assert list(verdict(out, None, new)) == ["target"]
    assert list(verdict(out, new, new)) == ["base", "target"]
    os.truncate(new, 2 * MIB)
    assert list(verdict(out, old, new)) == ["target"]


@pytest.mark.parametrize("more", [0, 700 * KIB, -700 * KIB])
def test_verify_finds_a_base_that_is_wrong_where_the_patch_takes_nothing(
    tmp_path: Path, more: int
) -> None:
    """With the right target at hand: what the patch leaves alone is the same in both."""
    old, new, out = tmp_path / "old.raw", tmp_path / "new.raw", tmp_path / "x.qcpatch"
    content = random.Random(2).randbytes(3 * MIB + 4 * KIB)
    old.write_bytes(content)
    new.write_bytes((b"new" + content[3:] + bytes(max(0, more)))[: len(content) + more])
    patches.make(old, new, out)
    end = min(len(content), len(content) + more)
    for offset, place in (
        (2 * MIB + 999, (2 * MIB, min(3 * MIB, end))),  # in a segment that is not stored
        (700 * KIB, (4 * KIB, MIB)),  # in one that is, which says nothing of it
    ):
        old.write_bytes(patches.flip(content, offset, 1))
        assert verdict(out, old, new) == {"base": [place]}
        assert verdict(out, old) == {"base": []}
    old.write_bytes(bytes(len(content)))
    found = verdict(out, old, new)
    assert list(found) == ["base"]
    assert holds(found["base"], MIB + 1)


def test_verify_blames_no_target_where_the_patch_is_damaged(rich: Rich, tmp_path: Path) -> None:
    bad, target = tmp_path / "bad.qcpatch", tmp_path / "target.raw"
    with PatchFile.open(rich.patch) as patch:
        entry = patch.entries[2]
    data = patches.flip(rich.patch.read_bytes(), int(entry["offset"]) + 90, 1)
    bad.write_bytes(data)
    target.write_bytes(patches.flip(rich.content, 5, 1))
    found = verdict(bad, rich.old, target)
    assert found == {"patch": [(2 * MIB, 3 * MIB)], "target": [(0, MIB)]}


def test_verify_names_the_patch_and_the_segment(rich: Rich, tmp_path: Path) -> None:
    bad, data = tmp_path / "bad.qcpatch", rich.patch.read_bytes()
    with PatchFile.open(rich.patch) as patch:
        entry = patch.entries[2]
    bad.write_bytes(patches.flip(data, int(entry["offset"]) + 90, 1))
    for given in ((), (rich.old,), (rich.old, rich.new)):
        found = verdict(bad, *given)
        assert list(found) == ["patch"]
        assert found["patch"] == [(2 * MIB, 3 * MIB)]


def test_verify_names_a_patch_that_is_whole_but_wrong(rich: Rich, tmp_path: Path) -> None:
    """Its digests are all right, but it does not give what it says."""

    def change(taken: patches.Taken) -> None:
        taken.parts[1].leaf_digests[0] = bytes(32)

    bad = patches.resealed(rich.patch, tmp_path / "bad.qcpatch", change)
    assert list(verdict(bad, rich.old)) == ["patch"]


def test_verify_of_what_is_no_patch_is_an_error(rich: Rich, tmp_path: Path) -> None:
    refused("verify", rich.old)
    refused("verify", tmp_path / "none")
    other, data = tmp_path / "other.qcpatch", rich.patch.read_bytes()
    for bad in (b"", data[:7], patches.flip(data, 3, 1)):
        other.write_bytes(bad)
        assert "is not a cluster patch" in refused("verify", other, "--base", rich.old)


def test_verify_of_a_patch_of_a_later_version_is_an_error(rich: Rich, tmp_path: Path) -> None:
    def change(taken: patches.Taken) -> None:
        taken.set_header["version"] = layout.VERSION + 2

    later = patches.resealed(rich.patch, tmp_path / "later.qcpatch", change)
    assert "of version 3" in refused("verify", later, "--base", rich.old)


@pytest.mark.parametrize(
    "damage", ["cut", "cut in the header", "longer", "version", "header", "index", "footer"]
)
def test_verify_names_a_patch_that_cannot_be_opened_for_damage(
    rich: Rich, tmp_path: Path, damage: str
) -> None:
    bad, data = tmp_path / "bad.qcpatch", rich.patch.read_bytes()
    changed = {
        "cut": data[:-1],
        "cut in the header": data[:9],
        "longer": data + b"\0",
        "version": patches.flip(data, 8, 2),
        "header": patches.flip(data, 70, 1),
        "index": patches.flip(data, len(data) - layout.Footer.sizeof() - 5, 1),
        "footer": patches.flip(data, len(data) - layout.Footer.sizeof() + 1, 1),
    }
    bad.write_bytes(changed[damage])
    for given in ((), (rich.old,), (None, rich.new), (rich.old, rich.new)):
        assert verdict(bad, *given) == {"patch": []}
    found = run("verify", bad, "--base", rich.old, "--json").json
    assert found["base"]["good"] is None
    assert found["target"] is None
    done = run("verify", bad, "--base", rich.old)
    assert (done.status, done.err) == (1, "")
    assert done.out.splitlines()[1:] == [
        f"base: {rich.old} was not checked, since the patch is damaged",
        "target: not given",
    ]


# --- random damage -------------------------------------------------------------------------------


def attempt(patch: Path, rich: Rich, out: Path | None = None) -> str:
    """Use a patch in every way; return the class of the error, or "right" for the right result.

    Everything else is a failure of the test: another error, or another content.
    """
    begun = time.monotonic()
    try:
        with PatchFile.open(patch) as opened, open_image(rich.old) as base:
            if out is None:
                with open_patched(opened, base) as image:
                    content = image.reader().read(0, image.size)
            else:
                apply_patch(opened, base, out, ImageOptions("raw"))
                content = out.read_bytes()
                out.unlink()
    except QcowDeltaError as error:
        said, content = type(error).__name__, rich.content
    else:
        said = "right"
    assert content == rich.content
    assert out is None or os.listdir(out.parent) == []
    assert time.monotonic() - begun < SECONDS
    return said


class Bounded:
    """A block in which the process's memory must not grow beyond the limit for a patch."""

    def __enter__(self) -> None:
        self._before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def __exit__(self, *_: object) -> None:
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self._before
        assert grown << 10 < 256 * MIB


def structure_of(data: bytes) -> list[int]:
    """Every offset that is not in a payload: header, heads, lists, directories, index, footer."""
    taken = layout.Header.parse(data)
    places = list(range(taken.header_length))
    end = taken.header_length + taken.segments_length
    at = taken.header_length
    while at < end:
        head = layout.SegmentHead.parse(data[at:])
        payload = at + head.length - layout.DIGEST - head.payload_length
        places += [*range(at, payload), *range(payload + head.payload_length, at + head.length)]
        at += head.length
    return [*places, *range(end, len(data))]


@pytest.mark.slow
@pytest.mark.parametrize("half", [0, 1])
def test_10000_flipped_bits_are_each_refused_or_harmless(
    rich: Rich, tmp_path: Path, half: int
) -> None:
    """Every byte of the structure, the rest evenly spread; one in 50 is applied to a file."""
    data = rich.patch.read_bytes()
    structure = structure_of(data)
    wanted = FLIPS - len(structure)
    positions = structure + [len(data) * i // wanted for i in range(wanted)]
    assert len(positions) == FLIPS
    said: dict[str, int] = {}
    bad, folder = tmp_path / "bad.qcpatch", tmp_path / "out"
    folder.mkdir()
    with Bounded():
        for number, offset in list(enumerate(positions))[half::2]:
            bad.write_bytes(patches.flip(data, offset, 1 << number // 2 % 8))
            outcome = attempt(bad, rich, folder / "out.raw" if number // 2 % 50 == 0 else None)
            said[outcome] = said.get(outcome, 0) + 1
    assert sum(said.values()) == FLIPS // 2
    assert said.get("CorruptImageError", 0) > FLIPS // 4


@pytest.mark.slow
def test_flipped_bits_under_digests_made_right_are_refused_or_harmless(
    rich: Rich, tmp_path: Path
) -> None:
    """Whoever changes a patch can change its digests too: here all fields are really looked at."""
    sealed, bad = tmp_path / "sealed.qcpatch", tmp_path / "bad.qcpatch"
    patches.resealed(rich.patch, sealed, lambda taken: None)  # its directories are stored plain
    data = sealed.read_bytes()
    places = [offset for offset in structure_of(data) if offset < len(data) - 40]
    chance, said = random.Random(5), set()
    with Bounded():
        for offset in chance.choices(places, k=SEALED_FLIPS):
            bad.write_bytes(
                patches.reseal(data, patches.flip(data, offset, 1 << chance.randrange(8)))
            )
            said.add(attempt(bad, rich))
    assert said >= {"FormatError", "CorruptImageError", "BaseMismatchError", "right"}


@pytest.mark.slow
def test_patch_cut_anywhere_is_refused(rich: Rich, tmp_path: Path) -> None:
    data = rich.patch.read_bytes()
    chance, cut = random.Random(6), tmp_path / "cut.qcpatch"
    lengths = {*structure_of(data), *chance.sample(range(len(data)), TRUNCATIONS)}
    for length in sorted(lengths):
        cut.write_bytes(data[:length])
        assert attempt(cut, rich) in ("FormatError", "CorruptImageError")
    cut.write_bytes(data + b"\0")
    assert attempt(cut, rich) == "FormatError"


@pytest.mark.slow
@pytest.mark.parametrize("sealed", [False, True], ids=["as it is", "digests made right"])
def test_bytes_overwritten_anywhere_are_refused_or_harmless(
    rich: Rich, tmp_path: Path, sealed: bool
) -> None:
    original, bad = tmp_path / "original.qcpatch", tmp_path / "bad.qcpatch"
    patches.resealed(rich.patch, original, lambda taken: None)
    data = original.read_bytes()
    structure, chance = structure_of(data), random.Random(7)
    with Bounded():
        for _ in range(OVERWRITES):
            changed = bytearray(data)
            for _ in range(chance.choice((1, 1, 2, 5))):
                at = (
                    chance.choice(structure)
                    if chance.random() < 0.8
                    else chance.randrange(len(data))
                )
                word = chance.choice(
                    (bytes(8), b"\xff" * 8, chance.randbytes(8), bytes([1] + 7 * [0]))
                )
                piece = word[: min(chance.randrange(1, 9), len(data) - at)]
                changed[at : at + len(piece)] = piece
            bad.write_bytes(patches.reseal(data, bytes(changed)) if sealed else changed)
            attempt(bad, rich)


@pytest.mark.slow
def test_command_refuses_damage_in_one_line(rich: Rich, tmp_path: Path) -> None:
    data = rich.patch.read_bytes()
    chance, bad = random.Random(8), tmp_path / "bad.qcpatch"
    folder = tmp_path / "out"
    folder.mkdir()
    for offset in [*chance.sample(range(len(data)), 12), 0, 9, 40, 90, 130, len(data) - 1]:
        bad.write_bytes(patches.flip(data, offset, 0x20))
        for words in (["apply"], ["convert", "--to", "overlay"], ["invert"]):
            refused(*words, bad, "--base", rich.old, "-o", folder / "out.x")
        assert run("verify", bad).status in (1, 2)
        for words in (["info"], ["inspect"]):
            assert run(*words, bad, "--json").status in (0, 2)
        patches.nothing_but(folder, [])


# --- hostile -------------------------------------------------------------------------------------

Change = Callable[[patches.Taken], None]
HOSTILE: dict[str, tuple[type[QcowDeltaError], Change]] = {}


def refused_as(error: type[QcowDeltaError]) -> Callable[[Change], Change]:
    def add(change: Change) -> Change:
        HOSTILE[change.__name__.strip("_").replace("_", "-")] = error, change
        return change

    return add


def frame(size: int, expands_to: int, window: int | None = None) -> bytes:
    """A zstd frame that says it holds so many bytes, and holds others."""
    block = 128 << 10
    lengths = [min(block, expands_to - at) for at in range(0, expands_to, block)]
    head = b"\x28\xb5\x2f\xfd"
    if window is None:
        head += bytes([0xE0]) + size.to_bytes(8, "little")  # single segment, 8 bytes of size
    else:
        head += bytes([0xC0, (window.bit_length() - 11) << 3]) + size.to_bytes(8, "little")
    blocks = [
        (length << 3 | 1 << 1 | (i == len(lengths) - 1)).to_bytes(3, "little") + b"\0"
        for i, length in enumerate(lengths)
    ]
    return head + b"".join(blocks)


def only_data(taken: patches.Taken, payload: bytes, codec: int = 2) -> None:
    """Make the first segment one DATA operation over all of it, with a payload."""
    part = taken.parts[0]
    part.operations, part.ranges = part.operations[:1].copy(), part.ranges[:0]
    part.operations["start"], part.operations["length"] = 0, MIB
    part.operations["kind"], part.operations["source"] = 1, 0
    part.payload = payload
    part.fields |= {"data_length": MIB, "dictionary_length": 0, "payload_codec": codec}
    part.fields["base_digest"] = blake3(b"").digest()


@refused_as(CorruptImageError)
def _payload_that_expands_to_8_gib(taken: patches.Taken) -> None:
    only_data(taken, frame(MIB, 8 << 30))


@refused_as(CorruptImageError)
def _payload_that_says_it_is_8_gib(taken: patches.Taken) -> None:
    only_data(taken, frame(8 << 30, 8 << 30))


@refused_as(CorruptImageError)
def _payload_with_a_window_of_2_gib(taken: patches.Taken) -> None:
    only_data(taken, frame(MIB, MIB, 2 << 30))


@refused_as(CorruptImageError)
def _payload_of_two_frames(taken: patches.Taken) -> None:
    only_data(taken, frame(MIB, MIB) * 2)


@refused_as(CorruptImageError)
def _payload_that_is_all_zeros_and_not_what_it_should_be(taken: patches.Taken) -> None:
    only_data(taken, frame(MIB, MIB))


@refused_as(CorruptImageError)
def _lz4_payload_that_expands_further(taken: patches.Taken) -> None:
    run_of_zeros = b"\x1f\0\x01\0" + b"\xff" * 65000 + b"\0" + b"\x50" + b"\0" * 5
    only_data(taken, run_of_zeros, 1)


@refused_as(FormatError)
def _directory_that_expands_to_8_gib(taken: patches.Taken) -> None:
    part = taken.parts[0]
    part.directory = frame(len(part.operations) * 17 + len(part.ranges) * 13, 8 << 30)
    part.set = {"directory_codec": 2}


@refused_as(FormatError)
def _directory_that_says_it_is_8_gib(taken: patches.Taken) -> None:
    taken.parts[0].directory = frame(8 << 30, 8 << 30)
    taken.parts[0].set = {"directory_codec": 2}


def _absurd(**fields: int) -> Change:
    def change(taken: patches.Taken) -> None:
        taken.parts[0].set = fields

    return change


MOST = (1 << 32) - 1
for _name in ("operations", "ranges", "directory_length", "payload_length", "data_length",
              "dictionary_length", "memory", "length"):  # fmt: skip
    HOSTILE[f"absurd-{_name}"] = FormatError, _absurd(**{_name: MOST})
HOSTILE["absurd-number"] = FormatError, _absurd(number=(1 << 64) - 1)
HOSTILE["absurd-leaves"] = FormatError, _absurd(leaves=255)
HOSTILE["absurd-references"] = FormatError, _absurd(references=255)


def _header(**fields: int) -> Change:
    return lambda taken: taken.set_header.update(fields)


for _name, _value in (
    ("header_length", MOST), ("segment_count", 1 << 62), ("segments_length", (1 << 64) - 1),
    ("memory", MOST), ("segment_bits", 63), ("segment_bits", MOST), ("target_size", 1 << 63),
    ("base_size", (1 << 64) - 512),
):  # fmt: skip
    HOSTILE[f"header-{_name}-{_value:#x}"] = FormatError, _header(**{_name: _value})


@refused_as(BaseMismatchError)
def _base_of_4_eib(taken: patches.Taken) -> None:
    taken.set_header["base_size"] = 1 << 62


@refused_as(CorruptImageError)
def _target_of_4_eib(taken: patches.Taken) -> None:
    taken.set_header["target_size"] = 1 << 62
    del taken.parts[4:]  # the last one would be longer


@refused_as(FormatError)
def _as_many_sections_as_fit(taken: patches.Taken) -> None:
    taken.sections = bytes([9, 0, 0, 0, 0, 0, 0, 0]) * ((64 * KIB - 200) // 8)
    taken.set_header["segment_bits"] = 30


@refused_as(FormatError)
def _operations_that_overlap(taken: patches.Taken) -> None:
    taken.parts[0].operations["start"][1] = taken.parts[0].operations["start"][0]


@refused_as(FormatError)
def _operation_beyond_the_segment(taken: patches.Taken) -> None:
    taken.parts[0].operations["length"][-1] = MOST


@refused_as(FormatError)
def _copy_from_behind_the_base(taken: patches.Taken) -> None:
    taken.parts[0].operations["source"][taken.parts[0].operations["kind"] == 2] = (1 << 64) - 1


@refused_as(FormatError)
def _range_that_wraps_around(taken: patches.Taken) -> None:
    part = next(part for part in taken.parts if len(part.ranges))
    part.ranges["start"][0] = (1 << 64) - 4096


@refused_as(FormatError)
def _copy_from_itself(taken: patches.Taken) -> None:
    taken.parts[1].referenced = [1]


@refused_as(FormatError)
def _copy_from_a_later_segment(taken: patches.Taken) -> None:
    taken.parts[1].referenced = [3]


@refused_as(FormatError)
def _index_in_another_order(taken: patches.Taken) -> None:
    taken.set_entries = lambda entries: entries[::-1].copy()


@refused_as(FormatError)
def _index_with_one_segment_twice(taken: patches.Taken) -> None:
    def twice(entries: patches.Entries) -> patches.Entries:
        entries[1] = entries[0]
        return entries

    taken.set_entries = twice


@refused_as(FormatError)
def _index_with_lengths_that_wrap_around(taken: patches.Taken) -> None:
    def wrap(entries: patches.Entries) -> patches.Entries:
        entries["offset"][1:] -= 1 << 63
        return entries

    taken.set_entries = wrap


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_patch_is_refused_with_the_named_error(
    rich: Rich, tmp_path: Path, name: str
) -> None:
    error, change = HOSTILE[name]
    bad = patches.resealed(rich.patch, tmp_path / "bad.qcpatch", change)
    folder = tmp_path / "out"
    folder.mkdir()
    for fmt in ("raw", "qcow2"):
        with pytest.raises(error), PatchFile.open(bad) as patch, open_image(rich.old) as base:
            apply_patch(patch, base, folder / "out", ImageOptions(fmt))
    patches.nothing_but(folder, [])


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_patch_is_refused_by_commands_within_the_limits(
    rich: Rich, tmp_path: Path, name: str
) -> None:
    bad = patches.resealed(rich.patch, tmp_path / "bad.qcpatch", HOSTILE[name][1])
    assert_within_limits(bad, rich.old, tmp_path)


def assert_within_limits(bad: Path, base: Path, tmp_path: Path) -> None:
    """Assert that apply refuses in one line, and that all others end soon in little memory."""
    folder = tmp_path / "out"
    folder.mkdir()
    commands: list[list[str | Path]] = [
        ["apply", bad, "--base", base, "-o", folder / "out.raw"],
        ["verify", bad, "--base", base],
        ["info", bad],
        ["inspect", bad],
    ]
    for words in commands:
        done = hostile.cli(*words)
        assert done.seconds < SECONDS, words
        assert done.memory < MEMORY, words
        allowed = {"apply": {2}, "verify": {1, 2}}.get(str(words[0]), {0, 2})
        assert done.status in allowed, done
        if done.status == 2:
            assert len(done.lines) == 1, done.stderr
            assert "internal error" not in done.lines[0]
    patches.nothing_but(folder, [])


@pytest.mark.slow
@pytest.mark.parametrize("what", ["segment", "index"])
def test_holes_of_gigabytes_are_not_read(rich: Rich, tmp_path: Path, what: str) -> None:
    """A sparse file is as long as it likes at no cost; what it says of lengths is then true."""
    bad = tmp_path / "bad.qcpatch"
    if what == "segment":
        patches.with_a_hole_as_segment(rich.patch, bad, MOST)
    else:
        patches.with_a_hole_as_index(rich.patch, bad, 8 << 30)
    assert_within_limits(bad, rich.old, tmp_path)


@pytest.mark.slow
def test_list_of_references_that_is_not_closed_is_refused(tmp_path: Path) -> None:
    """Each segment needs the one before it: a chain that would have to be decoded as a whole."""
    base, bad = tmp_path / "base.raw", tmp_path / "bad.qcpatch"
    base.write_bytes(b"")
    content = patches.chain(bad, 2500)
    with (
        open_patched(PatchFile.open(bad), open_image(base)) as target,
        pytest.raises(FormatError, match="refers to"),
    ):
        target.reader().read(len(content) * 2400, 4096)
    with pytest.raises(FormatError, match="refers to"):
        patches.apply(bad, base, tmp_path / "out.raw", "raw")
    patches.nothing_but(tmp_path, ["bad.qcpatch", "base.raw"])


@pytest.mark.slow
def test_what_is_no_patch_file_is_refused_at_once(rich: Rich, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/zero"), rich.old, tmp_path / "none"):
        done = hostile.cli("apply", path, "--base", rich.old, "-o", tmp_path / "out.raw")
        assert done.status == 2
        assert len(done.lines) == 1
        assert done.seconds < SECONDS
    patches.nothing_but(tmp_path, ["fifo"])


@pytest.mark.slow
def test_names_in_a_patch_are_shown_escaped(rich: Rich, tmp_path: Path) -> None:
    odd = b"\x1b]0;owned\x07\xff\xe2\x80\xae"

    def change(taken: patches.Taken) -> None:
        taken.sections = layout.Section.build({"type": 1, "length": len(odd), "data": odd})

    bad = patches.resealed(rich.patch, tmp_path / os.fsdecode(b"\x1b[31m\xff.qcpatch"), change)
    for form in ([], ["--json"]):
        for words in (["info"], ["inspect"], ["verify"]):
            done = hostile.cli(*words, bad, *form)
            assert done.status == 0, done
            for raw in (b"\x1b", b"\x07", b"\xe2\x80\xae", b"\xff"):
                assert raw not in done.stdout + done.stderr
    assert "owned" in ok("info", bad, "--json").json["creator"]
