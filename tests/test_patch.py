"""Random pairs as patches, QEMU being the judge: what is made of them reads as NEW, or as OLD."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcowdelta import PatchFile, open_image, open_patched
from qcowdelta.errors import BaseMismatchError
from qcowdelta.extents import Kind
from tests.support import images, judge, qemu
from tests.support.commandline import ok, run
from tests.support.images import BuiltPair, PairSpec

BLOCK = 4096
EFFORTS = ["default", "fast", "default", "fast", "default", "best"]


@dataclass(frozen=True)
class How:
    """What is to be tried with a pair, beside what always is."""

    effort: str
    again: bool
    cluster_size: int
    compress: str
    seed: int


def hows() -> st.SearchStrategy[How]:
    return st.builds(
        How,
        st.sampled_from(EFFORTS),
        st.booleans(),
        st.sampled_from([65536, 65536, 4096, 512, 2 << 20]),
        st.sampled_from(["none", "none", "zlib", "zstd"]),
        st.integers(0, 1 << 16),
    )


@dataclass
class Work:
    """A pair in a folder, and the commands on it."""

    pair: BuiltPair
    how: How
    folder: Path

    @property
    def base(self) -> list[str | Path]:
        """OLD as the base of a patch."""
        pair = self.pair
        snapshot = ["--base-snapshot", pair.old_snapshot] if pair.old_snapshot else []
        return ["--base", pair.old, "--base-format", pair.old_format, *snapshot]

    @cached_property
    def base_file(self) -> tuple[Path, str]:
        """A file that has OLD's content and no snapshot."""
        return _state_of(
            self.folder / "base", self.pair.old, self.pair.old_format, self.pair.old_snapshot
        )

    @cached_property
    def target(self) -> tuple[Path, str]:
        """A file that has NEW's content and no snapshot."""
        return _state_of(
            self.folder / "target", self.pair.new, self.pair.new_format, self.pair.new_snapshot
        )

    @cached_property
    def old(self) -> bytes:
        return _content(self.pair.old, self.pair.old_format, self.pair.old_snapshot)

    @cached_property
    def new(self) -> bytes:
        return _content(self.pair.new, self.pair.new_format, self.pair.new_snapshot)

    def path(self, name: str) -> Path:
        return self.folder / name

    def diff_words(self, patch: Path, new: Path | None = None) -> list[str | Path]:
        """How the patch from OLD to NEW, or to a raw file, is made."""
        pair = self.pair
        words: list[str | Path] = ["diff", pair.old, new or pair.new, "-o", patch, *self.effort]
        words += ["--old-format", pair.old_format]
        words += ["--old-snapshot", pair.old_snapshot] if pair.old_snapshot else []
        if new is not None:
            return [*words, "--new-format", "raw"]
        words += ["--new-format", pair.new_format]
        words += ["--new-snapshot", pair.new_snapshot] if pair.new_snapshot else []
        return words

    @property
    def effort(self) -> list[str]:
        return ["--effort", self.how.effort]


def _state_of(stem: Path, path: Path, fmt: str, snapshot: str | None) -> tuple[Path, str]:
    if snapshot is None:
        return path, fmt
    raw = stem.with_suffix(".raw")
    raw.write_bytes(qemu.read_guest(path, fmt, snapshot))
    return raw, "raw"


def _content(path: Path, fmt: str, snapshot: str | None) -> bytes:
    with open_image(path, format=fmt, snapshot=snapshot) as image:
        return judge.read_all(image)


def assert_reads_as(out: Path, fmt: str, target: tuple[Path, str], size: int) -> None:
    """Assert that QEMU finds the same content and exactly that size, and nothing wrong."""
    assert qemu.compare(out, target[0], fmt, target[1])
    if fmt == "raw":
        assert out.stat().st_size == size
    else:
        assert int.from_bytes(out.read_bytes()[24:32], "big") == size
        judge.assert_sound(out)


def check_pair(work: Work) -> None:
    patch = work.path("ab.qcpatch")
    ok(*work.diff_words(patch), "-T", "1")
    if work.how.again:
        check_what_it_is_made_in_does_not_matter(work, patch)
    check_apply(work, patch)
    check_conversions(work, patch)
    check_inverse(work, patch)
    check_composition(work, patch)
    check_ranges(work, patch)
    check_base_with_a_changed_bit(work, patch)
    words = [*work.base, "--target", work.target[0], "--target-format", work.target[1]]
    ok("verify", patch, *words)


def check_what_it_is_made_in_does_not_matter(work: Work, patch: Path) -> None:
    """More threads, and the same content stored in any other way, give the same bytes."""
    again = work.path("again.qcpatch")
    ok(*work.diff_words(again), "-T", "4")
    assert again.read_bytes() == patch.read_bytes()
    raws = [work.path(f"plain-{side}.raw") for side in ("old", "new")]
    for raw, content in zip(raws, (work.old, work.new), strict=True):
        raw.write_bytes(content)
    packed = [raw.with_suffix(".qcow2") for raw in raws]
    for raw, image in zip(raws, packed, strict=True):
        qemu.convert(raw, image, source_fmt="raw", target_fmt="qcow2", compressed=True)
    for old, new in (raws, packed):
        formats = ["--old-format", old.suffix[1:], "--new-format", new.suffix[1:]]
        ok("diff", old, new, *formats, "-o", again, *work.effort, "--force")
        assert again.read_bytes() == patch.read_bytes()


def check_apply(work: Work, patch: Path) -> None:
    size, out, how = len(work.new), work.path("applied.qcow2"), work.how
    words = ["--compress", how.compress] if how.compress != "none" else []
    ok("apply", patch, *work.base, "-o", out, "--cluster-size", str(how.cluster_size), *words)
    assert_reads_as(out, "qcow2", work.target, size)
    raw = work.path("applied.raw")
    ok("apply", patch, *work.base, "-o", raw)
    assert_reads_as(raw, "raw", work.target, size)
    assert raw.read_bytes() == work.new


def check_conversions(work: Work, patch: Path) -> None:
    base, fmt = work.base_file
    overlay, back = work.path("overlay.qcow2"), work.path("back.qcpatch")
    cluster = ["--cluster-size", str(work.how.cluster_size)]
    ok("convert", patch, "--base", base, "--base-format", fmt, "-o", overlay, *cluster)
    assert_reads_as(overlay, "qcow2", work.target, len(work.new))
    assert run("check", overlay, "--json").json["good"]
    ok("convert", overlay, "-o", back, *work.effort)
    assert back.read_bytes() == patch.read_bytes()
    out = work.path("back.raw")
    ok("apply", back, "--base", base, "--base-format", fmt, "-o", out)
    assert out.read_bytes() == work.new


def check_inverse(work: Work, patch: Path) -> None:
    inverse, old = work.path("ba.qcpatch"), work.path("old-again.qcow2")
    ok("invert", patch, *work.base, "-o", inverse, *work.effort)
    ok("apply", inverse, "--base", work.path("applied.qcow2"), "-o", old)
    assert_reads_as(old, "qcow2", work.base_file, len(work.old))


def check_composition(work: Work, patch: Path) -> None:
    third, second = work.path("third.raw"), work.path("bc.qcpatch")
    third.write_bytes(changed(work.new, work.old, random.Random(work.how.seed)))
    new = ["--old-format", "raw", "--new-format", "raw"]
    ok("diff", work.path("applied.raw"), third, *new, "-o", second, *work.effort)
    direct, composed = work.path("direct.qcpatch"), work.path("ac.qcpatch")
    ok(*work.diff_words(direct, third))
    ok("compose", patch, second, *work.base, "-o", composed, *work.effort)
    for made in (direct, composed):
        out = work.path(f"{made.stem}.raw")
        ok("apply", made, *work.base, "-o", out)
        assert_reads_as(out, "raw", (third, "raw"), third.stat().st_size)
    check_composition_without_base(work, patch, second, third)


def check_composition_without_base(work: Work, patch: Path, second: Path, third: Path) -> None:
    """It may refuse; a patch that it writes is right."""
    merged, out = work.path("merged.qcpatch"), work.path("merged.raw")
    if run("compose", patch, second, "-o", merged).status == 0:
        ok("apply", merged, *work.base, "-o", out)
        assert out.read_bytes() == third.read_bytes()
    else:
        assert not merged.exists()


def changed(content: bytes, other: bytes, chance: random.Random) -> bytes:
    """Return content of another size now and then, with parts written, zeroed and moved about."""
    length = len(content)
    if chance.random() < 0.5:
        length = max(0, length + 512 * chance.randrange(-2048, 2048))
    data = bytearray(content[:length].ljust(length, b"\0"))
    for _ in range(chance.randrange(1, 6) if data else 0):
        size = chance.choice([1, 512, BLOCK, 3 * BLOCK, 64 << 10, 200_000])
        at = chance.randrange(len(data))
        source = chance.choice([content, other, data])
        begin = chance.randrange(max(1, len(source)))
        piece = chance.choice([bytes(size), chance.randbytes(size), source[begin : begin + size]])
        piece = piece[: len(data) - at]
        data[at : at + len(piece)] = piece
    return bytes(data)


def check_base_with_a_changed_bit(work: Work, patch: Path) -> None:
    if not work.old:
        return
    chance, content = random.Random(work.how.seed), bytearray(work.old)
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    wrong = work.path("wrong.raw")
    wrong.write_bytes(content)
    with (
        open_image(wrong, format="raw") as base,
        PatchFile.open(patch) as opened,
        pytest.raises(BaseMismatchError, match="its content is different"),
    ):
        open_patched(opened, base)


def check_ranges(work: Work, patch: Path) -> None:
    chance = random.Random(work.how.seed)
    pair = work.pair
    base = open_image(pair.old, format=pair.old_format, snapshot=pair.old_snapshot)
    with open_patched(PatchFile.open(patch), base, check=chance.random() < 0.5) as image:
        assert image.size == len(work.new)
        for start, stop in _ranges(len(work.new), chance):
            assert image.reader().read(start, stop - start) == work.new[start:stop]
        assert_zeros_are_zeros(image.extents(0, image.size), work.new)


def assert_zeros_are_zeros(rows: np.ndarray, content: bytes) -> None:
    """Assert that extents tile the disk, and what they call zeros is."""
    assert not rows.size or int(rows["start"][0]) == 0
    assert int(rows["length"].sum()) == len(content)
    for row in rows[rows["kind"] == Kind.ZERO]:
        start, stop = int(row["start"]), int(row["start"] + row["length"])
        assert not content[start:stop].strip(b"\0")


def _ranges(size: int, chance: random.Random) -> Iterator[tuple[int, int]]:
    for _ in range(6 if size else 0):
        start = chance.randrange(size)
        yield start, min(size, start + chance.choice([1, 700, 5000, 70_000, 1 << 21]))
    yield 0, size


@pytest.mark.slow
@pytest.mark.parametrize("relation", images.RELATIONS)
def test_whatever_is_made_of_a_random_pairs_patch_reads_as_it_must(
    relation: images.Relation,
) -> None:
    qemu.require("qemu-img", "qemu-io")

    @given(images.pair_specs(relations=(relation,)), hows())
    def holds(spec: PairSpec, how: How) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            check_pair(Work(images.build(spec, folder), how, folder))

    holds()
