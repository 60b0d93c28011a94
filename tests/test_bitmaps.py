"""Persistent dirty bitmaps: read as QEMU reads them, used only where they tell all."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcowdelta import (
    AtomicOutput,
    HostFile,
    ImageDelta,
    OpenPolicy,
    describe,
    open_bitmap,
    open_image,
    spot_check,
    write_overlay,
)
from qcowdelta.delta import Summary
from qcowdelta.errors import (
    BitmapMismatchError,
    CorruptImageError,
    OptionError,
    UnusableBitmapError,
)
from qcowdelta.identity import BaseIdentity
from qcowdelta.qcow2.bitmaps import BitmapBits, read_bitmaps
from qcowdelta.qcow2.header import read_header
from tests.support import fixtures, judge, qemu
from tests.support.commandline import ok, refused, run
from tests.support.fixtures import Fixture

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
WITH_BITMAPS = [f for f in fixtures.all_fixtures() if f.bitmaps]


@pytest.fixture(autouse=True)
def qemu_tools() -> None:
    qemu.require("qemu-img", "qemu-io", "qemu-nbd")


@contextmanager
def bits_of(path: Path, name: str) -> Iterator[BitmapBits]:
    """The bits of a bitmap, whatever its state is."""
    file = HostFile.open(path)
    try:
        header = read_header(file)
        (found,) = (b for b in read_bitmaps(file, header) if b.name == name.encode())
        yield BitmapBits(file, header, found)
    finally:
        file.close()


def rows(bits: BitmapBits, start: int, stop: int) -> list[tuple[int, int]]:
    return [(a, b - a) for a, b in bits.ranges(start, stop).tolist()]


# Reading


@pytest.mark.parametrize(
    ("fixture", "bitmap"),
    [(f, b) for f in WITH_BITMAPS for b in f.bitmaps if not b.in_use],
    ids=lambda value: value.name,
)
def test_bits_are_what_qemu_exports(fixture: Fixture, bitmap: fixtures.Bitmap) -> None:
    with bits_of(fixture.path, bitmap.name) as bits:
        assert bits.granularity == bitmap.granularity
        assert rows(bits, 0, bits.size) == list(bitmap.dirty)


@dataclass(frozen=True)
class Marked:
    """An image with a bitmap, and what QEMU says is marked."""

    path: Path
    size: int
    dirty: tuple[tuple[int, int], ...]


@pytest.fixture(scope="module")
def scattered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Marked]]:
    """Bitmaps of several clusters of bits, in images of small clusters."""
    qemu.require("qemu-img", "qemu-io", "qemu-nbd")
    folder, source, made = tmp_path_factory.mktemp("scattered"), random.Random(4), []
    for cluster, granularity, size in (
        (512, 512, 9 * MIB + 512),
        (512, 4096, 40 * MIB - 1024),
        (4096, 512, 50 * MIB),
    ):
        path = folder / f"{cluster}-{granularity}.qcow2"
        qemu.create(path, size, cluster_size=cluster)
        qemu.bitmap(path, "b", granularity=granularity)
        starts = [source.randrange(0, size // 512 - 64) * 512 for _ in range(60)]
        whole = cluster * 8 * granularity  # what one cluster of bits tells of
        commands = [qemu.write_command(at, 512 * source.randrange(1, 64), 1) for at in starts]
        if 3 * whole < size:
            commands.append(qemu.zero_command(whole, 2 * whole, unmap=True))
        commands.append(qemu.write_command(size - 512, 512, 1))
        qemu.io(path, commands)
        made.append(Marked(path, size, tuple(qemu.dirty_ranges(path, "b"))))
    yield made
    shutil.rmtree(folder)


def test_bits_of_any_window_are_what_qemu_exports(scattered: list[Marked]) -> None:
    source = random.Random(5)
    for marked in scattered:
        with bits_of(marked.path, "b") as bits:
            assert rows(bits, 0, marked.size) == list(marked.dirty)
            sectors = np.zeros(marked.size // 512, bool)
            for start, length in marked.dirty:
                sectors[start // 512 : (start + length) // 512] = True
            for _ in range(200):
                first, last = sorted(source.sample(range(sectors.size + 1), 2))
                got = np.zeros(sectors.size, bool)
                for start, length in rows(bits, first * 512, last * 512):
                    got[start // 512 : (start + length) // 512] = True
                assert (got[first:last] == sectors[first:last]).all()
                assert not got[:first].any()
                assert not got[last:].any()


def test_next_mark_is_found_from_anywhere(scattered: list[Marked]) -> None:
    source = random.Random(6)
    for marked in scattered:
        edges = [at for start, length in marked.dirty for at in (start, start + length)]
        places = [max(0, at + by) for at in edges for by in (-512, 0, 512)]
        places += [source.randrange(marked.size // 512) * 512 for _ in range(100)]
        with bits_of(marked.path, "b") as bits:
            for place in (at for at in places if at < marked.size):
                left = [(s, n) for s, n in marked.dirty if s + n > place]
                assert bits.next_dirty(place) == (max(place, left[0][0]) if left else None)


# What a diff makes of it


@dataclass(frozen=True)
class Pair:
    """OLD, and NEW that was OLD when its bitmap ``b`` began."""

    folder: Path
    old: Path
    new: Path
    old_format: str = "qcow2"

    @property
    def dirty(self) -> list[tuple[int, int]]:
        return qemu.dirty_ranges(self.new, "b")

    def assert_rebuilt(self, *more: str) -> None:
        """Assert that overlay and patch, made with the bitmap, read as NEW."""
        overlay, patch = self.folder / "out.qcow2", self.folder / "out.qcpatch"
        for output in (overlay, patch):
            output.unlink(missing_ok=True)
            ok("diff", self.old, self.new, "-o", output, "--bitmap", "b", *more)
        assert qemu.compare(overlay, self.new, "qcow2", "qcow2")
        judge.assert_sound(overlay)
        applied = self.folder / "applied.raw"
        ok("apply", patch, "--base", self.old, "--force", "-o", applied, "-q")
        assert qemu.compare(applied, self.new, "raw", "qcow2")


def make_pair(
    folder: Path,
    size: int = 32 * MIB,
    *,
    granularity: int | None = None,
    before: tuple[str, ...] = (),
    after: tuple[str, ...] = (),
    cluster_size: int = 64 * KIB,
) -> Pair:
    """Make a pair: OLD by ``before``, and NEW by ``after`` once the bitmap is there."""
    old, new = folder / "old.qcow2", folder / "new.qcow2"
    qemu.create(old, size, cluster_size=cluster_size)
    qemu.io(old, before or [qemu.write_command(0, size, 1)])
    shutil.copyfile(old, new)
    qemu.bitmap(new, "b", granularity=granularity)
    qemu.io(new, after)
    return Pair(folder, old, new)


SOME = (
    qemu.write_command(5 * MIB + 512, 700 * KIB, 2),
    qemu.write_command(9 * MIB, 512, 3),
    qemu.zero_command(12 * MIB, MIB),
    qemu.zero_command(20 * MIB, 2 * MIB, unmap=True),
    qemu.write_command(26 * MIB, 64 * KIB, 1),  # as it was
)


@pytest.mark.slow
@pytest.mark.parametrize("granularity", [512, 4 * KIB, 64 * KIB, 2 * MIB])
@pytest.mark.parametrize("cluster", [512, 4 * KIB, 64 * KIB, 2 * MIB])
def test_overlay_and_patch_read_as_new(cluster: int, granularity: int, tmp_path: Path) -> None:
    size = 32 * MIB + 3 * 512
    if granularity == 512 and cluster == 512:
        size = 28 * MIB + 512  # QEMU takes no more bits in one bitmap's table of such clusters
    pair = make_pair(tmp_path, size, granularity=granularity, after=SOME, cluster_size=cluster)
    pair.assert_rebuilt()
    pair.assert_rebuilt("--trust-bitmap")


@pytest.mark.slow
@pytest.mark.parametrize("cluster", [4 * KIB, 64 * KIB, MIB])
def test_little_more_is_read_than_what_is_dirty(cluster: int, tmp_path: Path) -> None:
    """By the delta's own figures, and by what the system counted."""
    after = [qemu.write_command(number * 7 * MIB, 128 * KIB, 2) for number in range(32)]
    pair = make_pair(tmp_path, 256 * MIB, after=tuple(after), cluster_size=cluster)
    dirty = sum(length for _, length in pair.dirty)
    with open_image(pair.old) as old, open_image(pair.new) as new:
        delta = ImageDelta(old, new, granularity=4096, dirty=open_bitmap(new, "b"))
        begun = _bytes_read()
        changed = sum(int(window.changes["length"].sum()) for window in delta.windows())
        assert _bytes_read() - begun <= 1.2 * 2 * dirty
    assert changed == dirty == 32 * 128 * KIB
    assert delta.stats.bytes_read_old == delta.stats.bytes_read_new == dirty
    found = ok("diff", pair.old, pair.new, "-o", tmp_path / "o", "--bitmap", "b", "--json").json
    assert found["bytes_read_old"] + found["bytes_read_new"] <= 1.2 * 2 * dirty
    assert found["decided"]["not_dirty"] == 256 * MIB - dirty
    assert found["bitmap"] == "b"


def _bytes_read() -> int:
    with open("/proc/self/io", encoding="ascii") as file:
        return int(dict(line.split(": ") for line in file.read().splitlines())["rchar"])


def test_trusted_bitmap_is_not_compared(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, after=SOME)
    with open_image(pair.old) as old, open_image(pair.new) as new:
        dirty = open_bitmap(new, "b")
        delta = ImageDelta(old, new, granularity=64 * KIB, dirty=dirty, trust=True)
        summary = Summary(delta.size, delta.granularity)
        begun = _bytes_read()
        for window in delta.windows():
            summary.add(window.changes)
        assert _bytes_read() - begun < 256 * KIB  # tables, and the bitmap
    assert (delta.stats.bytes_read_old, delta.stats.bytes_read_new) == (0, 0)
    assert summary.data_bytes + summary.zero_bytes == sum(length for _, length in pair.dirty)
    said = ok("diff", pair.old, pair.new, "-o", tmp_path / "o", "--bitmap", "b", "--trust-bitmap")
    assert "by trust in the bitmap" in said.out
    assert "rests on the bitmap" in said.out
    assert "reading" not in said.out


def test_new_may_have_grown(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, 3 * MIB + 512, after=SOME[:0])
    qemu.io(
        pair.new,
        [qemu.truncate_command(9 * MIB), qemu.write_command(3 * MIB, 3 * MIB, 7)],
    )
    pair.assert_rebuilt()
    pair.assert_rebuilt("--trust-bitmap")


def test_new_may_have_shrunk(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, after=(*SOME, qemu.truncate_command(10 * MIB + 512)))
    pair.assert_rebuilt()


def test_bitmap_of_the_top_file_counts_whatever_lies_under_it(tmp_path: Path) -> None:
    base, old, new = (tmp_path / name for name in ("base.raw", "old.qcow2", "new.qcow2"))
    base.write_bytes(os.urandom(8 * MIB))
    for path in (old, new):
        qemu.create(path, None, backing=base.name, backing_fmt="raw")
    qemu.bitmap(new, "b")
    qemu.write(new, MIB, MIB, 5)
    pair = Pair(tmp_path, old, new)
    pair.assert_rebuilt()
    found = ok("inspect", old, new, "--bitmap", "b", "--json").json
    assert [(e["start"], e["length"]) for e in found["extents"]] == [(MIB, MIB)]
    assert ok("inspect", new, "--bitmap", "b", "--json").json["data_bytes"] == MIB


def test_bitmap_of_an_image_with_a_data_file(tmp_path: Path) -> None:
    old, new = tmp_path / "old.raw", tmp_path / "new.qcow2"
    old.write_bytes(bytes(8 * MIB))
    qemu.create(new, 8 * MIB, data_file=str(tmp_path / "new.data"))
    qemu.bitmap(new, "b")
    qemu.write(new, MIB, MIB, 5)
    pair = Pair(tmp_path, old, new)
    pair.assert_rebuilt("--old-format", "raw")


def test_old_may_be_the_snapshot_that_the_bitmap_began_with(tmp_path: Path) -> None:
    new, patch, applied = (tmp_path / name for name in ("new.qcow2", "p.qcpatch", "applied.raw"))
    qemu.create(new, 8 * MIB)
    qemu.write(new, 0, 8 * MIB, 1)
    qemu.snapshot(new, "s")
    qemu.bitmap(new, "b")
    qemu.io(new, [qemu.write_command(MIB, MIB, 2), qemu.zero_command(4 * MIB, MIB, unmap=True)])
    how = ("--bitmap", "b", "--old-snapshot", "s")
    found = ok("diff", new, new, "-o", patch, *how, "--json").json
    assert found["decided"]["not_dirty"] == 6 * MIB
    ok("apply", patch, "--base", new, "--base-snapshot", "s", "-o", applied, "-q")
    assert qemu.compare(applied, new, "raw", "qcow2")


def test_huge_disk_with_few_marks_is_quick(tmp_path: Path) -> None:
    old, new = tmp_path / "old.qcow2", tmp_path / "new.qcow2"
    qemu.create(old, 8 * TIB, preallocation="off")
    qemu.io(old, [qemu.write_command(number * TIB, MIB, 1) for number in range(8)])
    shutil.copyfile(old, new)
    qemu.bitmap(new, "b", granularity=64 * KIB)
    qemu.io(new, [qemu.write_command(number * TIB + 128 * KIB, 512, 2) for number in range(8)])
    with open_image(old) as a, open_image(new) as b:
        delta = ImageDelta(a, b, dirty=open_bitmap(b, "b"))
        begun = time.process_time()
        assert spot_check(a, b, open_bitmap(b, "b")) > 32 * 4096
        count = sum(window.changes.size for window in delta.windows())
        assert time.process_time() - begun < 1
    assert count == 8
    assert delta.stats.bytes_read_old == 8 * 64 * KIB


@st.composite
def works(draw: st.DrawFn, size: int) -> list[str]:
    """Writes, zeros and discards anywhere."""
    commands = []
    for _ in range(draw(st.integers(1, 8))):
        start = draw(st.integers(0, size // 512 - 1))
        length = draw(st.integers(1, min(1024, size // 512 - start))) * 512
        match draw(st.sampled_from(["write", "zero", "unmap", "discard"])):
            case "write":
                commands.append(qemu.write_command(start * 512, length, draw(st.integers(1, 3))))
            case "discard":
                commands.append(qemu.discard_command(start * 512, length))
            case kind:
                commands.append(qemu.zero_command(start * 512, length, unmap=kind == "unmap"))
    return commands


@pytest.mark.slow
@given(data=st.data())
def test_what_was_written_since_the_bitmap_began_is_all_the_delta_needs(
    data: st.DataObject,
) -> None:
    size = data.draw(st.integers(1, 8192)) * 512
    granularity = 1 << data.draw(st.integers(9, 21))
    cluster = 1 << data.draw(st.sampled_from([9, 12, 16, 21]))
    before, after = data.draw(works(size)), data.draw(works(size))
    with tempfile.TemporaryDirectory(prefix="qcowdelta-") as name:
        pair = make_pair(
            Path(name), size, granularity=granularity, cluster_size=cluster,
            before=tuple(before), after=tuple(after),
        )  # fmt: skip
        for trust in ([], ["--trust-bitmap"]):
            overlay = Path(name, "out.qcow2")
            ok("diff", pair.old, pair.new, "--force", "-o", overlay, "--bitmap", "b", *trust)
            assert qemu.compare(overlay, pair.new, "qcow2", "qcow2")
            assert qemu.info(overlay)["virtual-size"] == size


# Bitmaps that do not tell all


def _refused_with(pair: Pair, *more: str, name: str = "b") -> str:
    output = pair.folder / "none"
    said = refused("diff", pair.old, pair.new, "-o", output, "--bitmap", name, *more)
    assert not output.exists()
    return said


def test_bitmap_that_a_writer_did_not_close_is_refused_and_the_remedy_works(
    tmp_path: Path,
) -> None:
    pair = make_pair(tmp_path, MIB, after=(qemu.write_command(0, 512, 2),))
    qemu.io(pair.new, ["write -q -P 3 64k 512", "flush", "sigraise 9"], accept=(-9,))
    for more in ([], ["--trust-bitmap"]):
        said = _refused_with(pair, *more)
        assert "in use" in said
        assert "qemu-img bitmap --remove" in said
    ok("diff", pair.old, pair.new, "-o", tmp_path / "full.qcow2")
    qemu.bitmap(pair.new, "b", "--remove")
    shutil.copyfile(pair.new, pair.old)
    qemu.bitmap(pair.new, "b", "--add")
    qemu.write(pair.new, MIB // 2, 512, 9)
    pair.assert_rebuilt()


def test_bitmap_of_an_image_that_is_being_written_is_refused(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, MIB)
    with qemu.writer(pair.new):
        assert "in use by a writer" in _refused_with(pair)
        assert "bitmap 'b' is in use" in _refused_with(pair, "-U")
    pair.assert_rebuilt()


def test_bitmap_that_something_did_not_keep_is_refused_and_the_remedy_works(
    tmp_path: Path,
) -> None:
    pair = make_pair(tmp_path, MIB, after=(qemu.write_command(0, 512, 2),))
    _set_byte(pair.new, 95, 0)
    said = _refused_with(pair)
    assert "autoclear" in said
    assert "qemu-img bitmap --add" in said
    ok("diff", pair.old, pair.new, "-o", tmp_path / "full.qcow2")
    shutil.copyfile(pair.new, pair.old)
    qemu.bitmap(pair.new, "b2", "--add")
    qemu.write(pair.new, MIB // 2, 512, 9)
    ok("diff", pair.old, pair.new, "-o", tmp_path / "o.qcow2", "--bitmap", "b2")
    assert qemu.compare(tmp_path / "o.qcow2", pair.new, "qcow2", "qcow2")


def _set_byte(path: Path, offset: int, value: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes([value]))


def test_stale_bitmap_is_refused_even_where_its_directory_is_lost(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, MIB)
    data = pair.new.read_bytes()
    extension = data.index(bytes.fromhex("23852875"))
    _set_byte(pair.new, 95, 0)
    _set_byte(pair.new, int.from_bytes(data[extension + 24 : extension + 32], "big"), 0xFF)
    assert "stale" in _refused_with(pair)


def test_disabled_bitmap_is_refused_and_the_remedies_work(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, MIB, after=(qemu.write_command(0, 512, 2),))
    qemu.bitmap(pair.new, "b", "--disable")
    said = _refused_with(pair)
    assert "qemu-img bitmap --add" in said
    assert "--merge" in said
    assert "only if nothing was written since" in said
    assert "--enable" not in said
    qemu.bitmap(pair.new, "c", "--add")
    qemu.write(pair.new, MIB // 2, 512, 9)
    qemu.bitmap(pair.new, "both", "--add")
    for name in ("b", "c"):
        qemu.bitmap(pair.new, "both", "--merge", name)
    ok("diff", pair.old, pair.new, "-o", tmp_path / "o.qcow2", "--bitmap", "both")
    assert qemu.compare(tmp_path / "o.qcow2", pair.new, "qcow2", "qcow2")


def test_disabled_bitmap_can_be_enabled_where_nothing_was_written_since(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, MIB, after=(qemu.write_command(0, 512, 2),))
    qemu.bitmap(pair.new, "b", "--disable")
    qemu.bitmap(pair.new, "b", "--enable")
    pair.assert_rebuilt()


def test_unknown_bitmap_is_refused_and_the_others_are_named(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, MIB)
    qemu.bitmap(pair.new, "with\x1b[31m red")
    said = _refused_with(pair, name="nonsense")
    assert "'nonsense'" in said
    assert "it has 'b', 'with" in said
    assert "\x1b" not in said
    swapped = Pair(tmp_path, pair.new, pair.old)
    assert "it has none" in _refused_with(swapped)


def test_bitmap_needs_a_qcow2_image_in_its_active_state(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, MIB)
    raw = tmp_path / "new.raw"
    raw.write_bytes(bytes(MIB))
    assert "raw image has no" in _refused_with(Pair(tmp_path, pair.old, raw))
    qemu.snapshot(pair.new, "s")
    assert "not of a snapshot" in _refused_with(pair, "--new-snapshot", "s")
    assert "--trust-bitmap needs" in refused(
        "diff", pair.old, pair.new, "-o", tmp_path / "none", "--trust-bitmap"
    )
    ok("diff", pair.old, pair.new, "-o", tmp_path / "p.qcpatch")
    for words in ((tmp_path / "p.qcpatch",), (pair.old, tmp_path / "p.qcpatch")):
        assert "patch" in refused("inspect", *words, "--bitmap", "b")


# OLD that is not what the bitmap began with


def test_old_that_the_bitmap_did_not_begin_with_is_noticed(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, after=SOME)
    other = tmp_path / "other.qcow2"
    qemu.create(other, 32 * MIB)
    qemu.write(other, 0, 32 * MIB, 9)
    wrong = Pair(tmp_path, other, pair.new)
    for more in ([], ["--trust-bitmap"], ["--to", "patch"]):
        said = _refused_with(wrong, *more)
        assert "marks nothing" in said
        assert "other.qcow2" in said


def test_samples_are_taken_where_something_is_stored_and_nothing_is_marked(
    tmp_path: Path,
) -> None:
    """A disk of 64 GiB with little on it, of which a part differs beside the bitmap."""
    before = (qemu.write_command(40 * GIB, MIB, 1),)
    pair = make_pair(tmp_path, 64 * GIB, before=before)
    with open_image(pair.old) as old, open_image(pair.new) as new:
        assert 0 < spot_check(old, new, open_bitmap(new, "b")) <= 64 * 4096
    qemu.write(pair.old, 40 * GIB, MIB, 2)
    with open_image(pair.old) as old, open_image(pair.new) as new:
        with pytest.raises(BitmapMismatchError, match="0xa000"):
            spot_check(old, new, open_bitmap(new, "b"))
        # What metadata proves equal is no sample.
        assert spot_check(new, new, open_bitmap(new, "b")) == 0


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 5, 31, 62])
def test_write_that_the_bitmap_missed_is_noticed_where_it_is_a_part_of_what_is_stored(
    place: int, tmp_path: Path
) -> None:
    """Samples are spaced by what is stored, however little of the disk that is."""
    before = (qemu.write_command(3 * MIB, 32 * MIB, 1), qemu.write_command(GIB, 32 * MIB, 1))
    pair = make_pair(tmp_path, 2 * GIB, before=before)
    qemu.bitmap(pair.new, "b", "--disable")
    offset = place * MIB + 3 * MIB if place < 32 else GIB + (place - 32) * MIB
    qemu.write(pair.new, offset, MIB + 64 * KIB, 2)
    qemu.bitmap(pair.new, "b", "--enable")
    assert "did not record all" in _refused_with(pair)


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_disk_that_was_shrunk_and_has_grown_again_is_noticed(fmt: str, tmp_path: Path) -> None:
    """A bitmap does not mark what is lost so."""
    pair = make_pair(tmp_path)
    if fmt == "raw":
        qemu.convert(pair.old, tmp_path / "old.raw", source_fmt="qcow2", target_fmt="raw")
        pair = Pair(tmp_path, tmp_path / "old.raw", pair.new, "raw")
    qemu.io(pair.new, [qemu.truncate_command(32 * MIB - 64 * KIB)])
    qemu.io(pair.new, [qemu.truncate_command(32 * MIB)])
    assert "shrunk" in _refused_with(pair)


def test_result_says_that_it_rests_on_the_bitmap_and_how_far_that_was_checked(
    tmp_path: Path,
) -> None:
    pair = make_pair(tmp_path, after=SOME)
    words = ("diff", pair.old, pair.new, "--force", "-o", tmp_path / "o.qcow2")
    found = ok(*words, "--bitmap", "b", "--json").json
    assert found["bitmap_checked_bytes"] == 64 * 4096
    line = ok(*words, "--bitmap", "b").out.splitlines()[1]
    assert "rests on the bitmap" in line
    assert "256 KiB were compared as samples" in line
    assert ok(*words, "--json").json["bitmap_checked_bytes"] is None
    assert "bitmap" not in ok(*words).out
    inspect = ("inspect", pair.old, pair.new)
    by_bitmap = (*inspect, "--bitmap", "b")
    for told in (ok(*by_bitmap).out, str(ok(*by_bitmap, "--json").json["notes"])):
        told = " ".join(told.split())
        assert "this rests on the bitmap" in told
        assert "256 KiB were compared as samples" in told
    assert "bitmap" not in ok(*inspect).out


# The library


def test_overlay_from_a_bitmap_by_the_library(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, after=SOME)
    out = tmp_path / "overlay.qcow2"
    with open_image(pair.old) as old, open_image(pair.new) as new:
        dirty = open_bitmap(new, "b")
        spot_check(old, new, dirty)
        delta = ImageDelta(old, new, granularity=64 * KIB, dirty=dirty)
        with AtomicOutput(out) as output:
            options = judge.options_over(pair.old, "qcow2")
            write_overlay(delta, output, options, BaseIdentity.of(old))
    assert qemu.compare(out, pair.new, "qcow2", "qcow2")


def test_errors_have_types(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, MIB)
    qemu.bitmap(pair.new, "b", "--disable")
    with open_image(pair.new) as new:
        with pytest.raises(UnusableBitmapError, match="disabled"):
            open_bitmap(new, "b")
        with pytest.raises(OptionError, match="no bitmap 'c'"):
            open_bitmap(new, "c")
    with (
        qemu.writer(pair.new),
        open_image(pair.new, policy=OpenPolicy(force_share=True)) as new,
        pytest.raises(UnusableBitmapError, match="in use"),
    ):
        open_bitmap(new, "b")


# What info says


def test_info_tells_the_state_of_each_bitmap(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    qemu.create(path, MIB)
    qemu.bitmap(path, "kept", granularity=4096)
    qemu.bitmap(path, "frozen", "--add", "--disable")

    def states() -> dict[str, str]:
        found = ok("info", path, "--json").json["bitmaps"]
        text = ok("info", path).out
        for bitmap in found:
            line = next(line for line in text.splitlines() if line.startswith(bitmap["name"]))
            assert line.rstrip().endswith(bitmap["state"])
        return {bitmap["name"]: bitmap["state"] for bitmap in found}

    assert states() == {"kept": "usable", "frozen": "disabled"}
    qemu.io(path, ["write -q -P 3 0 512", "flush", "sigraise 9"], accept=(-9,))
    assert states() == {"kept": "in use", "frozen": "in use"}
    _set_byte(path, 95, 0)
    assert states() == {"kept": "stale", "frozen": "stale"}


def test_names_of_bitmaps_are_told_apart_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    qemu.create(path, MIB)
    names = ["b0", "b0 ", " b0", "b  0"]
    for name in names:
        qemu.bitmap(path, name)
    shown = ["b0", "'b0 '", "' b0'", "'b  0'"]
    lines = ok("info", path).out.splitlines()
    assert all(sum(line.startswith(f"{name} ") for line in lines) == 1 for name in shown)
    names.append("x" * 300)
    qemu.bitmap(path, names[-1])
    lines = ok("info", path).out.splitlines()
    assert all(lines.count(name) == 1 for name in (*shown, names[-1]))
    assert [b["name"] for b in ok("info", path, "--json").json["bitmaps"]] == names


@pytest.mark.parametrize("fixture", WITH_BITMAPS, ids=lambda value: value.name)
def test_state_agrees_with_qemu(fixture: Fixture) -> None:
    file = HostFile.open(fixture.path)
    try:
        found = {b["name"]: b["state"] for b in describe(file)["bitmaps"]}
    finally:
        file.close()
    states = {(True, False): "usable", (False, False): "disabled"}
    for bitmap in fixture.bitmaps:
        assert found[bitmap.name] == states.get((bitmap.enabled, bitmap.in_use), "in use")


# Damage


CLUSTER = 4096
BEYOND = 1 << 40


def _table(path: Path) -> int:
    file = HostFile.open(path)
    try:
        return read_bitmaps(file, read_header(file))[0].table_offset
    finally:
        file.close()


@pytest.mark.parametrize(
    ("what", "damage"),
    [
        ("reserved", lambda entry: entry | 1 << 63),
        ("reserved", lambda entry: entry | 1 << 56),
        ("reserved", lambda entry: entry | 2),
        ("reserved", lambda _: 1 << 8),
        ("unaligned", lambda entry: entry + 512),
        ("unaligned", lambda entry: entry | 1),
        ("beyond the end", lambda _: BEYOND),
        ("beyond the end", lambda _: 0x00FF_FFFF_FFFF_F000),
    ],
)
def test_damaged_table_is_refused_with_its_place(
    what: str, damage: Callable[[int], int], tmp_path: Path
) -> None:
    pair = make_pair(tmp_path, 300 * MIB, granularity=512, before=SOME[:1],
                     after=(qemu.write_command(200 * MIB, 512, 2),),
                     cluster_size=CLUSTER)  # fmt: skip
    table = _table(pair.new)
    at = table + 8 * (200 * MIB // (CLUSTER * 8 * 512))
    data = bytearray(pair.new.read_bytes())
    entry = int.from_bytes(data[at : at + 8], "big")
    assert entry
    data[at : at + 8] = damage(entry).to_bytes(8, "big")
    pair.new.write_bytes(data)
    with open_image(pair.old) as old, open_image(pair.new) as new:
        dirty = open_bitmap(new, "b")
        with pytest.raises(CorruptImageError, match=what) as raised:
            list(ImageDelta(old, new, dirty=dirty).windows())
    assert raised.value.offset == at
    assert "table entry" in str(raised.value)
    assert what in _refused_with(pair)


@pytest.mark.parametrize("entries", [1, 9, 100])
def test_table_of_another_length_than_the_disk_needs_is_refused(
    entries: int, tmp_path: Path
) -> None:
    pair = make_pair(tmp_path, 20 * MIB, granularity=512, cluster_size=512)
    data = bytearray(pair.new.read_bytes())
    extension = data.index(bytes.fromhex("23852875"))
    directory = int.from_bytes(data[extension + 24 : extension + 32], "big")
    assert int.from_bytes(data[directory + 8 : directory + 12], "big") == 10
    data[directory + 8 : directory + 12] = entries.to_bytes(4, "big")
    pair.new.write_bytes(data.ljust(len(data) + CLUSTER, b"\0"))
    assert "the disk needs 10" in _refused_with(pair)


def test_two_bitmaps_of_one_name_are_refused(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, MIB)
    qemu.bitmap(pair.new, "c")
    data = pair.new.read_bytes()
    extension = data.index(bytes.fromhex("23852875"))
    directory = int.from_bytes(data[extension + 24 : extension + 32], "big")
    at = data.index(b"c\0", directory)
    _set_byte(pair.new, at, ord("b"))
    assert "2 bitmaps are called 'b'" in _refused_with(pair)


def test_all_ones_in_the_table_mark_everything(tmp_path: Path) -> None:
    """QEMU writes such entries no more, and reads them."""
    pair = make_pair(tmp_path, 40 * MIB + 512, granularity=512, before=SOME[:1], after=SOME,
                     cluster_size=512)  # fmt: skip
    table, data = _table(pair.new), bytearray(pair.new.read_bytes())
    for number in (0, 3, 4, 20):
        data[table + 8 * number : table + 8 * number + 8] = (1).to_bytes(8, "big")
    pair.new.write_bytes(data)
    with bits_of(pair.new, "b") as bits:
        assert rows(bits, 0, bits.size) == qemu.dirty_ranges(pair.new, "b")
        assert rows(bits, 0, bits.size)[-1] == (40 * MIB, 512)
        assert bits.next_dirty(3 * 2 * MIB + 512) == 3 * 2 * MIB + 512
    pair.assert_rebuilt()


def test_bitmap_does_not_get_in_the_way_when_it_is_not_named(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, MIB)
    _set_byte(pair.new, _table(pair.new) + 7, 2)
    assert run("diff", pair.old, pair.new, "-o", tmp_path / "o.qcow2").status == 0
