"""Dirty ranges limit what is compared: outside of them all is equal without a look."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcowdelta import ChangeKind, Image, ImageDelta, open_image
from qcowdelta.delta import Summary
from qcowdelta.dirty import Suspects
from qcowdelta.errors import OptionError
from qcowdelta.extents import Offsets

KIB, MIB, TIB = 1 << 10, 1 << 20, 1 << 40


class Told:
    """Dirty ranges out of a list, whole granules, sorted and apart; counts the questions."""

    def __init__(self, size: int, *ranges: tuple[int, int], granularity: int = 4 * KIB) -> None:
        self.size, self.granularity = size, granularity
        self._ranges = np.array(ranges, np.int64).reshape(-1, 2)
        self.asked = 0

    def ranges(self, start: int, stop: int) -> Offsets:
        self.asked += 1
        assert 0 <= start < stop <= self.size
        clipped = np.clip(self._ranges, start, stop)
        return clipped[clipped[:, 0] < clipped[:, 1]]

    def next_dirty(self, start: int) -> int | None:
        left = self._ranges[self._ranges[:, 1] > start]
        return max(start, int(left[0, 0])) if left.size else None


@contextmanager
def raw_pair(folder: Path, old: bytes, new: bytes) -> Iterator[tuple[Image, Image]]:
    (folder / "old.raw").write_bytes(old)
    (folder / "new.raw").write_bytes(new)
    with open_image(folder / "old.raw") as a, open_image(folder / "new.raw") as b:
        yield a, b


def changes(delta: ImageDelta) -> list[tuple[int, int, str]]:
    """Every change, and the figures made sure of: each byte is decided by one proof."""
    found: list[tuple[int, int, str]] = []
    for window in delta.windows():
        rows = zip(*(window.changes[n].tolist() for n in ("start", "length", "kind")), strict=True)
        for start, length, kind in rows:
            name = ChangeKind(kind).name
            if found and (sum(found[-1][:2]), found[-1][2]) == (start, name):  # in two windows
                start, length = found[-1][0], found.pop()[1] + length
            found.append((start, length, name))
    stats = delta.stats
    decided = stats.shared_layer + stats.zero + stats.equal_payload + stats.shared_extent
    assert decided + stats.told + stats.not_dirty + stats.read == delta.size
    return found


def test_what_is_not_dirty_is_equal_without_being_read(tmp_path: Path) -> None:
    size = 8 * MIB
    with raw_pair(tmp_path, b"\1" * size, b"\2" * size) as (old, new):
        dirty = Told(size, (MIB, MIB + 64 * KIB), (5 * MIB, 5 * MIB + 4 * KIB))
        delta = ImageDelta(old, new, granularity=4 * KIB, dirty=dirty)
        assert changes(delta) == [
            (MIB, 64 * KIB, "MODIFIED"),
            (5 * MIB, 4 * KIB, "MODIFIED"),
        ]
        assert delta.stats.not_dirty == size - 68 * KIB
        assert delta.stats.bytes_read_old == delta.stats.bytes_read_new == 68 * KIB


def test_what_is_dirty_but_equal_is_no_change(tmp_path: Path) -> None:
    size = 2 * MIB
    with raw_pair(tmp_path, b"\1" * size, b"\1" * size) as (old, new):
        delta = ImageDelta(old, new, dirty=Told(size, (0, size)))
        assert changes(delta) == []
        assert delta.stats.read == size


def test_without_dirty_ranges_nothing_is_read(tmp_path: Path) -> None:
    size = 4 * MIB
    with raw_pair(tmp_path, b"\1" * size, b"\2" * size) as (old, new):
        delta = ImageDelta(old, new, dirty=Told(size))
        assert changes(delta) == []
        assert delta.stats.not_dirty == size


@pytest.mark.parametrize("granule", [512, 4 * KIB, 64 * KIB, 2 * MIB])
@pytest.mark.parametrize("granularity", [512, 64 * KIB, MIB])
def test_a_change_is_whole_granules_whatever_the_bitmap_counts_in(
    granularity: int, granule: int, tmp_path: Path
) -> None:
    size = 6 * MIB + 512
    old = os.urandom(size)
    new = bytearray(old)
    new[3 * MIB : 3 * MIB + 512] = os.urandom(512)
    new[size - 512 :] = os.urandom(512)
    stop = 3 * MIB + granularity
    last = (size - 512) // granularity * granularity
    with raw_pair(tmp_path, old, bytes(new)) as (a, b):
        dirty = Told(size, (3 * MIB, stop), (last, size), granularity=granularity)
        for trust in (False, True):
            delta = ImageDelta(a, b, granularity=granule, dirty=dirty, trust=trust)
            content = bytearray(old)
            for start, length, _ in changes(delta):
                assert start % granule == 0
                assert length % granule == 0 or start + length == size
                content[start : start + length] = new[start : start + length]
            assert content == new


def test_what_was_appended_to_old_is_compared_though_not_dirty(tmp_path: Path) -> None:
    old, new = b"\1" * (3 * MIB + 512), b"\1" * (3 * MIB + 512) + b"\2" * (2 * MIB)
    with raw_pair(tmp_path, old, new) as (a, b):
        for told in (len(new), len(old), MIB):
            ((start, length, kind),) = changes(ImageDelta(a, b, granularity=512, dirty=Told(told)))
            assert (start, start + length, kind) == (len(old), len(new), "ADDED")


def test_old_may_be_longer_than_new(tmp_path: Path) -> None:
    with raw_pair(tmp_path, b"\1" * 4 * MIB, b"\2" * MIB) as (a, b):
        delta = ImageDelta(a, b, dirty=Told(4 * MIB, (0, 64 * KIB), (2 * MIB, 3 * MIB)))
        assert changes(delta) == [(0, 64 * KIB, "MODIFIED")]


@pytest.mark.parametrize("base", [b"\0", b"\1"])
def test_kind_of_a_granule_that_is_dirty_in_part_is_that_of_the_whole(
    base: bytes, tmp_path: Path
) -> None:
    old = base * MIB
    new = old[: 4 * KIB] + b"\2" * (4 * KIB) + old[8 * KIB : MIB - 4 * KIB] + bytes(4 * KIB)
    with raw_pair(tmp_path, old, new) as (a, b):
        dirty = Told(MIB, (4 * KIB, 8 * KIB), (MIB - 4 * KIB, MIB))
        found = changes(ImageDelta(a, b, dirty=dirty))
    if base == b"\0":
        assert found == [(0, 64 * KIB, "ADDED")]
    else:
        assert found == [(0, 64 * KIB, "MODIFIED"), (MIB - 64 * KIB, 64 * KIB, "MODIFIED")]


def test_trusted_ranges_are_changes_that_are_not_read(tmp_path: Path) -> None:
    size = 4 * MIB
    with raw_pair(tmp_path, b"\1" * size, b"\1" * size) as (old, new):
        dirty = Told(size, (MIB + 4 * KIB, MIB + 8 * KIB), (2 * MIB, 3 * MIB))
        delta = ImageDelta(old, new, dirty=dirty, trust=True)
        assert changes(delta) == [(MIB, 64 * KIB, "MODIFIED"), (2 * MIB, MIB, "MODIFIED")]
        assert delta.stats.told == MIB + 4 * KIB
        assert (delta.stats.bytes_read_old, delta.stats.bytes_read_new) == (0, 0)


def test_trusted_ranges_are_zeros_where_metadata_says_so(tmp_path: Path) -> None:
    names = tmp_path / "old.raw", tmp_path / "new.raw"
    for path in names:
        with path.open("wb") as file:
            file.truncate(4 * MIB)
    with names[0].open("r+b") as file:
        file.write(b"\1" * MIB)
    with names[1].open("r+b") as file:
        file.seek(MIB)
        file.write(b"\2" * MIB)
    with open_image(names[0]) as old, open_image(names[1]) as new:
        delta = ImageDelta(old, new, dirty=Told(4 * MIB, (0, 4 * MIB)), trust=True)
        assert changes(delta) == [(0, MIB, "ZEROED"), (MIB, MIB, "ADDED")]


def test_trust_needs_dirty_ranges(tmp_path: Path) -> None:
    with (
        raw_pair(tmp_path, bytes(MIB), bytes(MIB)) as (old, new),
        pytest.raises(OptionError, match="trust"),
    ):
        ImageDelta(old, new, trust=True)


def test_long_clean_stretches_are_not_looked_at(tmp_path: Path) -> None:
    """A disk all of which is mapped, and a few dirty bits far apart."""
    for name in ("old.raw", "new.raw"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(4 * TIB)
            for number in range(64):
                file.seek(number * (4 * TIB // 64) + 12345 * 512)
                file.write(name.encode())
    with open_image(tmp_path / "old.raw") as old, open_image(tmp_path / "new.raw") as new:
        where = [number * (4 * TIB // 64) + 12345 * 512 for number in range(64)]
        dirty = Told(
            4 * TIB, *((at - at % (64 * KIB), at - at % (64 * KIB) + 64 * KIB) for at in where)
        )
        delta = ImageDelta(old, new, dirty=dirty)
        summary = Summary(delta.size, delta.granularity)
        for window in delta.windows():
            summary.add(window.changes)
            assert window.stop - window.start <= 64 * MIB
        assert summary.changed_clusters == 64
        assert delta.stats.not_dirty + delta.stats.zero + delta.stats.read == 4 * TIB
        assert dirty.asked <= 2 * 64


RANGE = st.tuples(st.integers(0, 40), st.integers(1, 12))


@given(
    told=st.lists(RANGE, max_size=5),
    sizes=st.tuples(*[st.integers(1, 40)] * 3),
    asked=RANGE,
)
def test_suspects_are_what_is_dirty_or_beyond_either_end(
    told: list[tuple[int, int]], sizes: tuple[int, int, int], asked: tuple[int, int]
) -> None:
    size, old_size, new_size = (n * 512 for n in sizes)
    bits = np.zeros(64, bool)
    for at, count in told:
        bits[at : at + count] = True
    bits[size // 512 :] = False
    edges = np.flatnonzero(np.diff(np.concatenate([[False], bits, [False]]).astype(np.int8)))
    ranges = [(a * 512, b * 512) for a, b in edges.reshape(-1, 2).tolist()]
    suspects = Suspects(Told(size, *ranges, granularity=512), old_size, new_size)
    expected = bits.copy()
    expected[min(size, old_size, new_size) // 512 :] = True
    start, stop = asked[0] * 512, min(sum(asked) * 512, new_size)
    if start >= stop:
        return
    got = np.zeros(64, bool)
    last = -1
    for a, b in suspects.ranges(start, stop).tolist():
        assert last < a < b <= stop
        got[a // 512 : b // 512] = True
        last = b
    inside = slice(start // 512, stop // 512)
    assert (got[inside] == expected[inside]).all()
    following = np.flatnonzero(expected[start // 512 : new_size // 512])
    found = suspects.next_dirty(start)
    assert found == (start + int(following[0]) * 512 if following.size else None)
