"""``inspect`` on a terminal and in a log: what fits, what colours hide, and strange names."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from qcowdelta.attribution.figures import Advice, FileStatus
from qcowdelta.cli.overview import Page, print_full, print_summary, print_tree
from qcowdelta.disk.kinds import Partition
from qcowdelta.report.page import page
from qcowdelta.report.words import KIND_NAMES
from tests.support.attributions import HOSTILE_NAMES, Made, made

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def printed(
    found: Made, *, width: int = 80, height: int = 24, colour: bool = True, how: str = "summary"
) -> list[str]:
    """The lines that a terminal of that size gets."""
    out = Console(
        file=io.StringIO(),
        width=width,
        height=height,
        force_terminal=True,
        color_system="truecolor" if colour else None,
        no_color=not colour,
        highlight=False,
    )
    return shown(Page(out, False), found, how)


def logged(found: Made, *, how: str = "summary", encoding: str = "utf-8") -> list[str]:
    """The lines that a log gets."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    out = Console(file=file, width=100, highlight=False)
    return shown(Page.on(out), found, how)


def shown(page: Page, found: Made, how: str) -> list[str]:
    if how == "tree":
        print_tree(page, found.attribution, found.inspection, full=False)
    elif how == "whole tree":
        print_tree(page, found.attribution, found.inspection, full=True)
    elif how == "full":
        print_full(page, found.attribution, found.inspection, None)
    else:
        print_summary(page, found.attribution, found.inspection, None)
    file = page.out.file
    if isinstance(file, io.StringIO):
        return file.getvalue().removesuffix("\n").split("\n")
    assert isinstance(file, io.TextIOWrapper)
    file.flush()
    assert isinstance(file.buffer, io.BytesIO)
    return file.buffer.getvalue().decode(file.encoding).removesuffix("\n").split("\n")


def plain(lines: list[str]) -> list[str]:
    return [ESCAPES.sub("", line) for line in lines]


@pytest.fixture(scope="module")
def everything() -> Made:
    return made(files=3000, names=HOSTILE_NAMES)


@pytest.fixture(scope="module")
def crowded(everything: Made) -> Made:
    """A disk of forty partitions."""
    found = everything.attribution
    unit = found.size // 64
    partitions = tuple(
        Partition(number + 1, number * unit, unit, "gpt", "x" * 90, f"name {number}")
        for number in range(40)
    )
    share = replace(found.by_partition[0], changed_bytes=0, by_kind={}, zeroed={})
    shares = tuple(replace(share, partition=each) for each in partitions)
    return Made(
        replace(found, partitions=partitions, by_partition=(*shares, *found.by_partition[-1:])),
        everything.inspection,
    )


@pytest.mark.parametrize("width", [40, 60, 72, 80, 100, 160])
@pytest.mark.parametrize("how", ["summary", "tree"])
def test_no_line_is_wider_than_the_window(
    everything: Made, crowded: Made, width: int, how: str
) -> None:
    for found in (everything, crowded, made(bare=True, advice=False)):
        lines = plain(printed(found, width=width, how=how))
        assert max(map(cell_len, lines)) <= width


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 30), (100, 40), (160, 50), (200, 24)])
def test_the_summary_fits_one_screen(
    everything: Made, crowded: Made, width: int, height: int
) -> None:
    for found in (everything, crowded, made(bare=True, advice=False), made(files=0)):
        # One line is the prompt that follows.
        assert len(printed(found, width=width, height=height)) <= height - 1


@pytest.fixture(scope="module")
def doubtful(everything: Made) -> Made:
    """The same with doubts, and of another size than it was."""
    summary = replace(everything.inspection.summary, base_size=3 << 30)
    doubts = tuple(f"OLD: partition {n} (ext4) is damaged; {'why ' * 20}" for n in range(9))
    return Made(
        replace(everything.attribution, doubts=doubts),
        replace(everything.inspection, summary=summary),
    )


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 50), (160, 50), (200, 24)])
def test_doubts_and_a_new_size_fit_the_screen_too(
    everything: Made, doubtful: Made, width: int, height: int
) -> None:
    lines = plain(printed(doubtful, width=width, height=height))
    assert len(lines) <= height - 1
    text = "\n".join(lines)
    assert "the disk grew from 3 GiB to 8 GiB" in text
    assert "! OLD: partition 0 (ext4) is damaged" in text
    whole = "partition 8 (ext4) is damaged" in text
    assert whole != ("more like this: --full has them" in text)
    for word in ("where", "files", "why"):
        assert word in text
    every = "\n".join(plain(printed(doubtful, width=width, height=height, how="full")))
    assert "partition 8 (ext4) is damaged" in every


@pytest.mark.parametrize("height", [24, 50])
def test_advice_is_shown_whole(everything: Made, height: int) -> None:
    remedy = "do this first, and then do that too, but only where nothing else is at hand"
    advice = tuple(
        Advice("free-space", 9, (f"reason {n} of why it is as large as it is",), remedy)
        for n in range(6)
    )
    found = Made(replace(everything.attribution, advice=advice), everything.inspection)
    lines = plain(printed(found, height=height))
    start = next(n for n, line in enumerate(lines) if line.startswith("why"))
    text = " ".join(lines[start + 1 :])
    shown = text.count("• reason")
    assert shown >= 2
    assert text.count(remedy) == shown
    assert ("--full has them all" in lines[start]) == (shown < 6)
    if height == 50:
        assert shown == 6


@pytest.mark.parametrize("width", [72, 80, 100])
def test_no_kind_of_space_is_cut(everything: Made, width: int) -> None:
    for name in KIND_NAMES:
        kinds = {name: everything.attribution.changed_bytes}
        found = Made(replace(everything.attribution, by_kind=kinds), everything.inspection)
        assert f"   {KIND_NAMES[name]} " in "\n".join(plain(printed(found, width=width)))


def test_files_say_their_partition_where_there_are_several(everything: Made) -> None:
    for how in ("summary", "full"):
        assert re.search(r" 2: /", "\n".join(plain(printed(everything, width=120, how=how))))
    alone = "\n".join(plain(printed(made(bare=True), width=120)))
    assert not re.search(r" (0|disk): /", alone)


def test_what_only_lies_beside_a_change_is_not_counted_as_one(everything: Made) -> None:
    files = list(everything.attribution.files)
    files[:5] = [file._replace(status=FileStatus.UNCHANGED) for file in files[:5]]
    some = replace(everything, attribution=replace(everything.attribution, files=tuple(files)))
    text = "\n".join(plain(printed(some, width=120)))
    assert f"{len(files) - 5:,} changed files, 5 unchanged beside them" in text
    assert f"{len(files) - 5:,} changed files, 5 unchanged beside them" in page(
        some.attribution, some.inspection
    )
    assert "= unchanged" not in text
    assert "\n".join(plain(printed(some, width=120, how="full"))).count("= unchanged") == 5


def test_a_larger_window_is_used(everything: Made) -> None:
    assert len(printed(everything, width=160, height=50)) > 40


def test_the_summary_has_sizes_partitions_kinds_files_and_advice(everything: Made) -> None:
    text = "\n".join(plain(printed(everything, width=160, height=50)))
    for word in (
        "8 GiB disk", "added", "modified", "zeroed", "unchanged", '2 ext4 "rootfs"', "4 swap",
        "outside any partition", "file data", "free space", "not read", "/etc/apt/", "run fstrim",
        "install qcowdelta[files]", "--tree",
    ):  # fmt: skip
        assert word in text, word


def test_shapes_tell_what_colours_tell(everything: Made) -> None:
    """Without colours nothing is lost: the same characters, and each kind has its own."""
    coloured = plain(printed(everything))
    assert coloured == plain(printed(everything, colour=False))
    start = next(n for n, line in enumerate(coloured) if line.startswith("the disk"))
    cells = set("".join(coloured[start + 1 : start + 5]))
    assert {"·", "1", "2", "3", "4"} <= cells
    for shapes in ("░▒▓█", "▖▞▚▜", "∘○"):
        assert set(shapes) & cells


def test_partitions_are_marked_where_they_begin(everything: Made) -> None:
    lines = logged(everything)
    start = next(n for n, line in enumerate(lines) if line.startswith("the disk"))
    cells = "".join(lines[start + 1 : start + 9])
    size = everything.attribution.size
    for partition in everything.attribution.partitions:
        place = cells.index(str(partition.number)) / len(cells)
        assert place == pytest.approx(partition.start / size, abs=0.01)


def test_nothing_is_red_or_green_alone(everything: Made) -> None:
    text = "\n".join(printed(everything))
    colours = set(re.findall(r"38;2;(\d+);(\d+);(\d+)", text))
    assert colours
    for red, green, blue in (tuple(map(int, each)) for each in colours):
        assert not (red > 150 and green < 60 and blue < 60)
        assert not (green > 150 and red < 60 and blue < 60)


def test_a_log_is_ascii_but_for_names(everything: Made) -> None:
    for how in ("summary", "tree", "whole tree", "full"):
        text = "\n".join(logged(everything, how=how))
        assert "\x1b" not in text
        assert text.isascii(), {c for c in text if not c.isascii()}


def test_names_are_kept_where_the_log_can_hold_them() -> None:
    found = made(files=0, names=["/größe 漢字 \N{SNOWMAN}".encode()])
    assert "größe 漢字 \N{SNOWMAN}" in "\n".join(logged(found))
    latin = "\n".join(logged(found, encoding="latin-1"))
    assert "größe \\u6f22\\u5b57" in latin
    assert "gr\\xf6\\xdfe" in "\n".join(logged(found, encoding="ascii"))


@pytest.mark.parametrize("how", ["summary", "tree", "full"])
def test_hostile_names_send_no_escape_and_no_markup(everything: Made, how: str) -> None:
    text = "\n".join(printed(everything, width=160, height=60, colour=False, how=how))
    rest = ESCAPES.sub("", text)
    assert all(c.isprintable() or c == "\n" for c in rest)
    if how != "tree":
        assert "\\x1b[31mred" in rest
        assert "<script>" in rest
    if how == "full":
        assert "/[red]markup[/red] [/] \\[" in rest
        assert "/right\\u202eto left" in rest


def test_wide_names_are_cut_to_the_column() -> None:
    found = made(files=0, names=["漢".encode() * 60, b"x" * 200])
    lines = plain(printed(found))
    assert max(map(cell_len, lines)) <= 80
    assert any("…" in line and line.rstrip().endswith("xx") for line in lines)


def test_full_shows_every_file_and_partition(everything: Made) -> None:
    lines = plain(printed(everything, how="full"))
    text = "\n".join(lines)
    for file in everything.attribution.files[::97]:
        assert file.path.decode(errors="replace").rsplit("/", 1)[-1][:8] in text
    assert len(lines) > len(everything.attribution.files)
    for word in ("needs recovery", "GPT, EFI system", "UUID 1A2B-3C4D", "OLD", "longest extents"):
        assert word in text


def test_the_tree_rolls_up(everything: Made) -> None:
    lines = plain(printed(everything, how="tree", width=120))
    total = sum(file.changed_bytes for file in everything.attribution.files)
    assert 10 < len(lines) <= 70
    joined = "\n".join(lines)
    assert "all files" in joined
    assert "cache/apt/archives/" in joined
    assert len(plain(printed(everything, how="whole tree"))) >= len(lines)
    assert total


def test_a_disk_without_files_shows_extents() -> None:
    text = "\n".join(plain(printed(made(files=0))))
    assert "longest extents" in text
    assert "0x100000" in text
