"""``inspect --html``: the page in a browser, and what is in it whatever the image holds."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import pytest

from qcowdelta.attribution.figures import FileStatus, FileType
from qcowdelta.errors import printable
from qcowdelta.output import AtomicOutput
from qcowdelta.report.page import page, write_page
from qcowdelta.units import readable
from tests.support import browser as chromium
from tests.support import qemu
from tests.support.attributions import HOSTILE_NAMES, Made, made
from tests.support.browser import Browser
from tests.support.commandline import ok, refused

LIMIT = 2_000_000
Test = TypeVar("Test", bound=Callable[..., None])


def in_browser(test: Test) -> Test:
    """Mark a test that needs a browser, which takes its seconds."""
    missing = pytest.mark.skipif(
        bool(chromium.MISSING), reason=f"needs {' and '.join(chromium.MISSING)}"
    )
    marked: Test = pytest.mark.slow(missing(test))
    return marked


@pytest.fixture(scope="module")
def everything() -> Made:
    """A change with all there can be in it, hostile names too."""
    return made(files=3500, names=HOSTILE_NAMES)


@pytest.fixture(scope="module")
def shown(everything: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "change.html"
    with AtomicOutput(path) as output:
        write_page(everything.attribution, everything.inspection, output)
    return path


@pytest.fixture(scope="module")
def shared_window() -> Iterator[Browser]:
    with chromium.browser() as found:
        yield found


@pytest.fixture
def blank_window(shared_window: Browser) -> Browser:
    """The window, with nothing in its log of what other tests did."""
    shared_window.complaints()
    shared_window.window(1280, 900)
    return shared_window


@pytest.fixture
def window(shared_window: Browser, shown: Path) -> Browser:
    """The page, just opened, in light colours."""
    shared_window.window(1280, 900)
    shared_window.prefer("light")
    shared_window.open(shown)
    shared_window.complaints()
    assert shared_window.run("return document.documentElement.dataset.ready") == "yes"
    return shared_window


# What is in the file


class Outline(HTMLParser):
    """The elements of a page, and its text outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def embedded(text: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    assert not set("<>&") & set(found[1])
    return json.loads(found[1])


def test_the_page_needs_nothing_but_itself(everything: Made) -> None:
    text = page(everything.attribution, everything.inspection)
    for tag, attributes in Outline(text).elements:
        for name, value in attributes.items():
            assert name not in ("src", "srcset", "style", "action", "formaction"), tag
            assert not name.startswith("on"), (tag, name)
            if name == "href":
                assert value is not None
                assert value.startswith("#")
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttpRequest|import\(", text)


def test_the_policy_allows_this_script_and_this_style_alone(everything: Made) -> None:
    text = page(everything.attribution, everything.inspection)
    policies = [a["content"] for t, a in Outline(text).elements if a.get("http-equiv")]
    assert len(policies) == 1
    assert policies[0] is not None
    assert policies[0].startswith("default-src 'none'; ")
    assert "unsafe" not in policies[0]
    assert policies[0].count("'sha256-") == 2


def named(everything: Made, names: list[str]) -> Made:
    """The same with these names for all that has one, but for files."""
    found = everything.attribution
    partition = replace(found.partitions[1], label=names[0], name=names[2], note=names[3])
    shares = [
        replace(s, partition=partition) if s.partition is found.partitions[1] else s
        for s in found.by_partition
    ]
    sources = [replace(s, path=f"/tmp/{names[1]}") for s in found.sources if s is not None]
    found = replace(
        found,
        partitions=(found.partitions[0], partition, *found.partitions[2:]),
        by_partition=tuple(shares),
        sources=(sources[0], sources[1]),
        doubts=(names[4], names[0]),
        notes=(names[0],),
        advice=tuple(replace(a, text=(names[4], 5), remedy=names[0]) for a in found.advice),
    )
    return Made(found, everything.inspection)


def test_names_add_no_elements(everything: Made) -> None:
    tame = made(files=3500, names=[b"x%d" % n for n in range(len(HOSTILE_NAMES))])
    names = [name.decode(errors="surrogateescape") for name in HOSTILE_NAMES]
    one, two = (
        [tag for tag, _ in Outline(page(each.attribution, each.inspection)).elements]
        for each in (named(everything, names), named(tame, ["tame"] * len(names)))
    )
    assert one == two


@pytest.mark.slow
def test_a_page_of_a_large_disk_stays_small_and_says_what_is_left_out() -> None:
    many = made(files=200_000, cells=1 << 17, cell_size=1 << 20, seed=7)
    assert many.attribution.size > 100 * 10**9
    text = page(many.attribution, many.inspection)
    assert len(text.encode()) < LIMIT
    data = embedded(text)
    listed = len(data["files"]["rows"])
    assert f"The {listed:,} of 200,000 files" in text
    assert f"Left out are {200_000 - listed:,} with" in text


def test_the_worst_names_do_not_make_the_page_large() -> None:
    longest = [b"\x1b\xff" * 120 + b"%06d" % number for number in range(6000)]
    deep = [b"/".join([b"\x01" * 200] * 20) + b"/%d" % number for number in range(3000)]
    worst = made(files=0, names=[*longest, *deep], cells=1 << 16)
    assert len(page(worst.attribution, worst.inspection).encode()) < LIMIT


def test_a_directory_below_a_thousand_others_is_shown(everything: Made) -> None:
    deep = made(files=10, names=[b"/".join([b"d"] * 2000)])
    data = embedded(page(deep.attribution, deep.inspection))
    assert len(data["tree"]) > 2000


def test_the_tree_adds_up(everything: Made) -> None:
    tree = embedded(page(everything.attribution, everything.inspection))["tree"]
    for figure in (2, 3, 4):
        sums = [0] * len(tree)
        for node in tree[1:]:
            sums[node[0]] += node[figure]
        inner = {node[0] for node in tree[1:]}
        assert [tree[at][figure] for at in inner] == [sums[at] for at in inner]
    total = sum(file.changed_bytes for file in everything.attribution.files)
    assert tree[0][2] == total


def test_the_cells_add_up(everything: Made) -> None:
    cells = embedded(page(everything.attribution, everything.inspection))["cells"]
    amount = base64.b64decode(cells["amount"])
    shares = [int.from_bytes(amount[at : at + 2], "little") for at in range(0, len(amount), 2)]
    total = everything.attribution.changed_bytes
    assert sum(shares) / 65535 * cells["size"] == pytest.approx(total, rel=1e-3)
    changed = everything.attribution.cells.changed.sum(axis=0).tolist()
    assert [bool(share) for share in shares] == [bool(count) for count in changed]


# The command


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two images with an ext4 file system each, the second with a file of a hostile name."""
    paths = []
    for name in ("old", "new"):
        folder, image = tmp_path / f"{name}.d", tmp_path / f"{name}.raw"
        folder.mkdir()
        (folder / "kept").write_bytes(b"k" * 70_000)
        if name == "new":
            (folder / "<script>window.hurt = 1<").write_bytes(b"n" * 300_000)
        image.write_bytes(b"")
        subprocess.run(
            ["mke2fs", "-q", "-t", "ext4", "-U", "12345678-1234-1234-1234-123456789abc", "-d",
             folder, image, "16M"],
            check=True, capture_output=True, env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin",
            "E2FSPROGS_FAKE_TIME": "1700000000"},
        )  # fmt: skip
        paths.append(image)
    return paths[0], paths[1]


def test_html_writes_the_page_and_prints_as_ever(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    words = ["inspect", *map(str, pair), "--cluster-size", "4k"]
    assert ok(*words, "--html", out).out == ok(*words).out
    text = out.read_text(encoding="utf-8")
    paths = [row[0] for row in embedded(text)["files"]["rows"]]
    assert "/<script>window.hurt = 1<" in paths
    assert "exists already" in refused(*words, "--html", out)
    before = out.stat().st_ino
    ok(*words, "--html", out, "--force", "--json")
    assert out.stat().st_ino != before
    assert out.read_text(encoding="utf-8") == text


def test_html_replaces_no_input_and_leaves_nothing_after_a_failure(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    old, new = pair
    before = sorted(tmp_path.iterdir())
    for name in pair:
        message = refused("inspect", old, new, "--html", name, "--force")
        assert "is one of the inputs" in message
    refused("inspect", old, new, "--cluster-size", "3000", "--html", tmp_path / "page.html")
    refused("inspect", old, new, "--html", tmp_path / "none" / "page.html")
    refused("inspect", old, new, "--force")
    assert sorted(tmp_path.iterdir()) == before


# In the browser


@in_browser
def test_hostile_names_are_text(window: Browser) -> None:
    expected = {printable(b"/" + name) for name in HOSTILE_NAMES}
    window.type("#filter", " ")
    for _ in range(20):
        if window.run("return document.getElementById('more').hidden"):
            break
        window.click("#more")
    paths = window.run(
        "return [...document.querySelectorAll('#files tbody th')].map((e) => e.textContent)"
    )
    assert expected <= set(paths)
    # Go into every directory that a hostile name made, and over every tile.
    for index in range(window.run("return document.querySelectorAll('.tile').length"))[::40]:
        window.run(
            "const tile = document.querySelectorAll('.tile')[arguments[0]];"
            "tile.dispatchEvent(new PointerEvent('pointermove', {clientX: 5, clientY: 5}))",
            index,
        )
    assert window.run("return window.hurt === undefined")
    elements = "return document.querySelectorAll('script, img, main svg:not(.stack, .bar)').length"
    assert window.run(elements) == 2
    assert window.complaints() == []


@in_browser
def test_nothing_is_asked_of_the_network(window: Browser, shown: Path) -> None:
    window.requests()
    window.open(shown)
    window.click("#theme")
    assert window.requests() == [shown.as_uri()]
    assert window.complaints() == []


@in_browser
def test_the_policy_is_enforced(window: Browser) -> None:
    window.run(
        "const s = document.createElement('script'); s.textContent = 'window.hurt = 9';"
        "document.body.append(s)"
    )
    assert window.run("return window.hurt === undefined")
    assert any("Content Security Policy" in each["message"] for each in window.complaints())


@in_browser
def test_hovering_the_map_tells_what_is_there(window: Browser) -> None:
    assert window.run("return document.getElementById('tip').hidden")
    window.click("#map")
    window.keys("Home")
    told = window.text("#cell")
    assert "of the disk" in told
    assert "changed, mostly modified, partition table" in told
    window.point("#map", 0.004, 0.009)  # not where the corner is rounded off
    tip = window.text("#tip")
    assert not window.run("return document.getElementById('tip').hidden")
    assert tip.startswith("0 \N{EN DASH} 1 MiB of the disk")
    window.point("h1", 0.5, 0.5)
    assert window.run("return document.getElementById('tip').hidden")


@in_browser
def test_the_map_zooms_by_button_key_and_wheel_and_moves(window: Browser) -> None:
    def level() -> str:
        return window.text("#zoom-level")

    def picture() -> str:
        window.run("return new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
        found: str = window.run("return document.getElementById('map').toDataURL()")
        return found

    first = picture()
    window.click("#zoom-in")
    assert level() == "2\N{MULTIPLICATION SIGN}"
    near = picture()
    assert near != first
    window.point("#map", 0.5, 0.5, drag=(-150, -60))
    assert picture() != near
    window.run("document.getElementById('map').focus()")
    window.keys("+")
    assert level() == "3\N{MULTIPLICATION SIGN}"
    window.wheel("#map", 0.4, 0.4, -120)
    assert level() not in ("3\N{MULTIPLICATION SIGN}", "1\N{MULTIPLICATION SIGN}")
    window.keys("0", "Right", "Down")
    assert level() == "1\N{MULTIPLICATION SIGN}"
    assert "of the disk" in window.text("#cell")


@in_browser
def test_the_wheel_scrolls_the_page_until_the_map_is_in_use(window: Browser) -> None:
    window.point("#map", 0.5, 0.5)
    before = window.run("return scrollY")
    window.wheel("#map", 0.5, 0.5, 200)
    assert window.text("#zoom-level") == "1\N{MULTIPLICATION SIGN}"
    assert window.run("return new Promise((done) => setTimeout(() => done(scrollY), 400))") > before


@in_browser
@pytest.mark.parametrize("layout", ["hilbert", "rows"])
def test_every_cell_has_a_place_of_its_own(window: Browser, layout: str) -> None:
    window.run(
        "const l = document.getElementById('layout'); l.value = arguments[0];"
        "l.dispatchEvent(new Event('change'))",
        layout,
    )
    window.run("document.getElementById('map').focus()")
    window.keys("End")
    assert "8,192 MiB of the disk" in window.text("#cell")
    # Hover over a grid of places: all but those beyond the end of the disk tell of a cell.
    seen = set()
    for x in range(9):
        for y in range(5):
            window.point("#map", 0.05 + x / 10, 0.1 + y / 5)
            if not window.run("return document.getElementById('tip').hidden"):
                seen.add(window.text("#tip").split(" of the disk")[0])
    assert len(seen) > 40


@in_browser
def test_files_sort_and_filter(window: Browser) -> None:
    def column(index: int) -> list[str]:
        found: list[str] = window.run(
            "return [...document.querySelectorAll('#files tbody tr')]"
            ".map((row) => row.cells[arguments[0]].textContent)",
            index,
        )
        return found

    def heading(index: int) -> str:
        return f"#files thead th:nth-child({index}) button"

    window.click(heading(1))
    paths = column(0)
    assert paths == sorted(paths)
    assert window.run("return document.querySelector('#files [aria-sort]').textContent") == "Path"
    window.click(heading(1))
    assert column(0)[0] > column(0)[-1]
    window.click(heading(5))
    sort = "return document.querySelector('#files th:nth-child(5)').getAttribute('aria-sort')"
    assert window.run(sort) == "descending"
    assert "GiB" in column(4)[0]
    window.type("#filter", "python3.13 pycache")
    assert column(0)
    assert all("python3.13" in path and "pycache" in path for path in column(0))
    window.run(
        "const s = document.getElementById('status'); s.value = s.options[1].value;"
        "s.dispatchEvent(new Event('change'))"
    )
    assert set(column(1)) == {"Aadded"}
    assert "filtered from 3,000" in window.text("#shown")


@in_browser
def test_tables_of_figures_sort_by_number(window: Browser) -> None:
    rows = (
        "return [...document.querySelectorAll('#kinds tbody tr')]"
        ".map((row) => Number(row.cells[1].dataset.value))"
    )
    window.click("#kinds thead th:nth-child(1) button")
    assert window.run(rows) != sorted(window.run(rows), reverse=True)
    window.click("#kinds thead th:nth-child(2) button")
    assert window.run(rows) == sorted(window.run(rows), reverse=True)


@in_browser
def test_the_treemap_opens_directories_by_mouse_and_keyboard(window: Browser) -> None:
    def crumbs() -> list[str]:
        found: list[str] = window.run(
            "return [...document.querySelectorAll('#crumbs li')].map((e) => e.textContent)"
        )
        return found

    assert crumbs() == ["all files"]
    window.run("document.querySelector('.tile').focus()")
    window.keys("Enter")
    assert crumbs() == ["all files", "2 ext4/"]
    window.keys("Enter")
    assert crumbs() == ["all files", "2 ext4/", "usr/"]
    assert window.run("return document.activeElement.className").startswith("tile")
    window.keys("Right")
    assert window.run("return document.activeElement.getAttribute('aria-label')")
    window.keys("Escape", "Escape")
    assert crumbs() == ["all files"]
    window.run("document.querySelector('#folders details').open = true")
    window.click("#directory tbody button")
    assert crumbs() == ["all files", "2 ext4/"]
    assert "2 ext4/" in window.text("#directory caption")
    window.point(".tile:not(.dir):not(.tiny)", 0.5, 0.5)
    assert "changed" in window.text("#tip")


def brightness(colour: str) -> float:
    parts = [float(part) for part in re.findall(r"[\d.]+", colour)[:3]]
    return sum(parts) / 3


@in_browser
def test_dark_follows_the_system_and_the_button(window: Browser) -> None:
    page_colour = "return getComputedStyle(document.body).backgroundColor"
    middle = (
        "const c = document.getElementById('map'); const d = c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data; let sum = 0;"
        "for (let i = 0; i < d.length; i += 4) sum += d[i] + d[i + 1] + d[i + 2];"
        "return sum / d.length * 4 / 3"
    )
    settle = "return new Promise((done) => setTimeout(done, 150))"
    assert brightness(window.run(page_colour)) > 200
    window.run(settle)
    assert window.run(middle) > 150
    window.prefer("dark")
    window.run(settle)
    assert brightness(window.run(page_colour)) < 60
    assert window.run(middle) < 110
    window.click("#theme")
    window.run(settle)
    assert brightness(window.run(page_colour)) > 200
    assert window.run(middle) > 150


@in_browser
def test_a_narrow_window_needs_no_scrolling_sideways(window: Browser, shown: Path) -> None:
    window.window(390, 844)
    window.open(shown)
    assert window.run("return document.documentElement.scrollWidth") <= 390
    wide = window.run(
        "return [...document.querySelectorAll('main *')].filter((e) => "
        "e.getBoundingClientRect().right > 391 && !e.closest('.scroll, .sr'))"
        ".map((e) => e.outerHTML)"
    )
    assert wide == []


@in_browser
def test_assistive_technology_is_told_what_there_is(window: Browser) -> None:
    tree = window.tree()
    roles = [role for role, _ in tree]
    for role in ("banner", "main", "contentinfo", "application", "heading", "status"):
        assert role in roles, role
    tables = [name for role, name in tree if role == "table"]
    assert tables
    assert all(tables)
    for role in ("button", "combobox", "searchbox", "link", "region", "image"):
        assert all(name for found, name in tree if found == role), role
    headings = window.run(
        "return [...document.querySelectorAll('h1, h2, h3')].map((e) => Number(e.tagName[1]))"
    )
    assert headings[0] == 1
    assert all(b - a <= 1 for a, b in pairwise(headings))


@in_browser
def test_the_whole_page_can_be_reached_by_keyboard(window: Browser) -> None:
    reached = set()
    for _ in range(80):
        window.keys("Tab")
        reached.add(
            window.run("return document.activeElement.id || document.activeElement.tagName")
        )
        if window.run("return document.activeElement !== document.body"):
            outline = "return getComputedStyle(document.activeElement).outlineStyle"
            assert window.run(outline) != "none"
    assert {"theme", "layout", "colour", "map", "zoom-in", "filter", "status"} <= reached


@in_browser
def test_without_scripts_the_figures_are_there(
    window: Browser, shown: Path, everything: Made
) -> None:
    window.devtools("Emulation.setScriptExecutionDisabled", value=True)
    try:
        window.open(shown)
        text = window.devtools("Runtime.evaluate", expression="document.body.innerText")["result"][
            "value"
        ]
    finally:
        window.devtools("Emulation.setScriptExecutionDisabled", value=False)
    changed = readable(everything.attribution.changed_bytes)
    for word in (f"{changed} changed", '2 ext4 "rootfs"', "file data", "The map needs scripts"):
        assert word in text


@in_browser
@pytest.mark.parametrize("kind", ["nothing", "no files", "one cell"])
def test_a_page_of_little_works(blank_window: Browser, tmp_path: Path, kind: str) -> None:
    old, new = tmp_path / "old.raw", tmp_path / "new.raw"
    size = 512 if kind == "one cell" else 1 << 20
    old.write_bytes(bytes(size))
    new.write_bytes(bytes(size) if kind == "nothing" else b"x" * size)
    out = tmp_path / "page.html"
    ok("inspect", old, new, "--html", out)
    blank_window.open(out)
    assert blank_window.run("return document.documentElement.dataset.ready") == "yes"
    blank_window.point("#map", 0.5, 0.5)
    assert "of the disk" in blank_window.text("#tip")
    assert blank_window.complaints() == []


@in_browser
def test_the_page_of_a_patch_alone_works(blank_window: Browser, tmp_path: Path) -> None:
    old, new = tmp_path / "old.qcow2", tmp_path / "new.qcow2"
    qemu.create(old, 4 << 20)
    qemu.create(new, 4 << 20)
    qemu.write(new, 1 << 20, 64 << 10, 7)
    patch, out = tmp_path / "new.qcpatch", tmp_path / "page.html"
    ok("diff", old, new, "-o", patch)
    ok("inspect", patch, "--html", out)
    blank_window.open(out)
    assert "64 KiB changed" in blank_window.text(".lead")
    assert "not attributed" in blank_window.text("#kinds")
    assert blank_window.complaints() == []


def test_statuses_and_types_all_have_their_look() -> None:
    from importlib import resources

    style = resources.files("qcowdelta.report").joinpath("page.css").read_text(encoding="utf-8")
    script = resources.files("qcowdelta.report").joinpath("page.js").read_text(encoding="utf-8")
    for status in FileStatus:
        assert f".s-{status.value}" in style
        assert f"{status.value}: " in script
    assert {kind.value for kind in FileType} >= {"file", "directory"}
