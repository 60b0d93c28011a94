"""What a delta changes, on a terminal or in a log.

On a terminal the summary fits its window, down to 24 rows of 80 columns, and says by shapes what
it says by colours. In a log, where nobody knows what width a character takes, it is all ASCII but
for the names themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.containers import Lines
from rich.text import Text

from ..units import ceil_div, readable

if TYPE_CHECKING:
    from ..attribution.figures import Attribution, FileChange, PartitionShare
    from ..inspect import Inspection
    from ..report.tree import Branch

COLOURS = {
    "added": "#2f8fd0",
    "modified": "#d98200",
    "zeroed": "#c061a8",
    "deleted": "dim",
    "moved": "#1f9d78",
    "metadata": "dim",
    "unchanged": "dim",
}
"""Blue, orange and purple stay apart in every common kind of colour blindness."""
_SHAPES = {"added": "░▒▓█", "modified": "▖▞▚▜", "zeroed": "∘∘○○"}
_LETTERS = {"added": "aaAA", "modified": "mmMM", "zeroed": "zzZZ"}
_STATUS = {
    "added": "A",
    "modified": "M",
    "deleted": "D",
    "moved": "R",
    "metadata": "T",
    "unchanged": "=",
}
_NARROW = 72
_SIZE = 9
_FIGURES = _SIZE + 9
"""A size and a share."""


@dataclass(frozen=True)
class Room:
    """How much is shown: how many lines of each thing."""

    where: int = 10
    map: int = 8
    files: int = 10
    advice: int = 1 << 30
    doubts: int = 1 << 30


@dataclass(frozen=True)
class Page:
    """Where things are shown.

    Attributes:
        out: the console.
        ascii: whether nothing but ASCII is to be used, names excepted.
    """

    out: Console
    ascii: bool

    @classmethod
    def on(cls, out: Console) -> Page:
        """Return the page that suits a console."""
        return cls(out, not out.is_terminal or not out.encoding.lower().startswith("utf"))

    @property
    def width(self) -> int:
        """How many columns there are."""
        return self.out.width

    def room(self, found: Attribution, *, more: int = 0) -> Room:
        """Return how much fits the window.

        Args:
            found: what is to be shown.
            more: how many lines are taken by what is not always there.
        """
        if not self.out.is_terminal or self.width < _NARROW:
            return Room()
        # At 24 rows: 4 of partitions and kinds, 3 of the map, 4 files, 4 of advice; 8 are the rest.
        spare = max(0, min(self.out.height, 60) - 24)
        rows = max(len(found.by_partition), len(found.by_kind))
        where = min(rows, 4 + min(8, spare // 4))
        doubts = min(self.lines_of(found.doubts), 3 + spare // 4)
        spare += 4 - where - doubts - more
        wanted = self.lines_of(_points(found))
        advice = min(wanted, max(3, min(4 + spare // 2, 4 + spare)))
        # Without any its heading is not there either.
        spare += 4 - advice + (0 if wanted else 1)
        map_ = max(2, 3 + min(9, spare // 3))
        return Room(where, map_, max(2, 4 + spare - (map_ - 3)), advice, doubts)

    def lines_of(self, points: Iterable[str]) -> int:
        """Return how many lines points take, each with its mark."""
        return sum(len(self._broken(f"* {point}")) for point in points)

    def _broken(self, *parts: str | tuple[str, str]) -> Lines:
        return Text.assemble(*parts).wrap(self.out, self.width)

    def fitting(self, points: list[str], most: int) -> int:
        """Return how many of the first points fit in ``most`` lines whole, but at least one."""
        count = 1
        while count < len(points) and self.lines_of(points[: count + 1]) <= most:
            count += 1
        return min(count, len(points))

    def points(self, mark: str, points: list[str], most: int, style: str = "") -> int:
        """Print as many points as fit in ``most`` lines, and return how many.

        They are whole, but for the first where it does not fit by itself.
        """
        shown = points[: self.fitting(points, most)]
        for point in shown:
            self.wrapped((mark, style), (point, style), most=max(1, most))
        return len(shown)

    def text(self, name: str) -> str:
        """Return a name as the console can show it."""
        encoding = self.out.encoding
        return name.encode(encoding, "backslashreplace").decode(encoding, "replace")

    def fit(self, name: str, width: int) -> str:
        """Return a name in exactly ``width`` columns: cut in the middle, or filled with spaces."""
        name = self.text(name)
        if cell_len(name) > width:
            dots = ".." if self.ascii else "…"
            keep = max(0, width - len(dots))
            head = set_cell_size(name, keep // 3)
            # The end of a path says most; it is taken from behind, as wide characters count twice.
            name = head + dots + set_cell_size(name[::-1], keep - keep // 3)[::-1]
        return set_cell_size(name, width)

    def line(self, *parts: str | tuple[str, str]) -> None:
        """Print a line, as wide as it is."""
        text = Text.assemble(*parts)
        text.rstrip()
        self.out.print(text, soft_wrap=True)

    def wrapped(self, *parts: str | tuple[str, str], most: int = 0) -> int:
        """Print a text, broken into lines where it is wider than the window, and how many."""
        lines = self._broken(*parts)
        shown = lines[:most] if most else lines
        if len(shown) < len(lines):
            last = shown[-1]
            last.truncate(max(0, self.width - 3))
            last.append("..." if self.ascii else "…")
        for text in shown:
            text.rstrip()
            self.out.print(text, soft_wrap=True)
        return len(shown)

    def flow(self, parts: Iterable[Text]) -> None:
        """Print parts beside each other, as many in a line as fit it."""
        line = Text()
        for part in parts:
            if line and line.cell_len + 3 + part.cell_len > self.width:
                self.out.print(line, soft_wrap=True)
                line = Text()
            line = Text.assemble(line, "   ", part) if line else part
        self.out.print(line, soft_wrap=True)

    def head(self, title: str) -> None:
        """Print a heading."""
        rule = "-" if self.ascii else "─"
        title = self.fit(title, min(self.width, cell_len(self.text(title))))
        fill = rule * max(0, self.width - cell_len(title) - 1)
        self.line((title, "bold"), (f" {fill}" if fill else "", "dim"))

    def bar(self, part: int, whole: int, width: int) -> str:
        """Return a bar for a share."""
        length = round(width * part / whole) if whole else 0
        length = max(length, 1) if part else 0
        return ("#" if self.ascii else "▬") * length


def print_summary(page: Page, found: Attribution, inspection: Inspection, patch: Any) -> None:
    """Print what changed, on one screen."""
    from ..report.words import resize_text

    room = page.room(found, more=bool(resize_text(inspection.summary)))
    _title(page, found, inspection, patch)
    _doubts(page, found, room.doubts)
    _where_and_what(page, found, room.where)
    _map(page, found, room.map)
    if found.files:
        _files(page, found, room.files)
    elif found.changed_bytes:
        print_extents(page, inspection.longest[: room.files], "longest extents")
    _advice(page, found, room.advice)
    if page.out.is_terminal:
        hint = "--tree: by directory; --full: all of it; --html FILE: to look around in"
        page.wrapped((hint, "dim"))


def print_full(page: Page, found: Attribution, inspection: Inspection, patch: Any) -> None:
    """Print all that is known of what changed."""
    from ..report.words import told_shares

    _title(page, found, inspection, patch)
    _doubts(page, found, 1 << 30)
    _sources(page, found)
    _counts(page, inspection)
    page.head("partitions")
    for share in told_shares(found):
        _partition(page, found, share)
    page.head("kinds of space")
    for kind in _kinds(page, found):
        page.line(*kind(40))
    _map(page, found, 16)
    _advice(page, found, 1 << 30)
    if found.files:
        _files(page, found, len(found.files), cut=False)
    if found.changed_bytes:
        print_extents(page, inspection.longest, "longest extents")


def print_tree(page: Page, found: Attribution, inspection: Inspection, *, full: bool) -> None:
    """Print the directories in which files changed, those with most changed bytes first."""
    from ..report.tree import branches

    _title(page, found, inspection, None)
    _doubts(page, found, 1 << 30)
    if not found.files:
        if found.partitions:
            page.line("No file is known to have changed.")
        _advice(page, found, 1 << 30)
        return
    tree = branches(found, len(found.files) * 64 if full else 60, files=False)
    children: dict[int, list[int]] = {}
    for index, branch in enumerate(tree):
        children.setdefault(branch.parent, []).append(index)
    freed = "" if page.width < _NARROW else "freed"
    page.line((f"{'changed':>{_SIZE}}{freed and f'{freed:>{_SIZE + 2}}'}{'files':>8}", "bold"))
    stack = [(0, 0)]
    while stack:
        index, depth = stack.pop()
        name = tree[index].name
        # A directory with all of it in one other shares a line with that.
        while (inner := _only(tree, children.get(index, []), index)) is not None:
            index = inner
            name += f"/{tree[index].name}"
        _branch(page, tree[index], name, depth, tree[0])
        below = sorted(children.get(index, []), key=lambda each: tree[each].changed_bytes)
        stack.extend((each, depth + 1) for each in below)


def print_extents(page: Page, extents: Iterable[Any], title: str) -> None:
    """Print changed extents."""
    page.head(title)
    for extent in extents:
        name = extent.kind.name.lower()
        exact = f"  {extent.length}" if page.width >= _NARROW else ""
        page.line(
            f"{extent.start:#14x}  {readable(extent.length):>{_SIZE}}  ",
            (name, COLOURS[name]),
            exact,
        )


# The parts


def _title(page: Page, found: Attribution, inspection: Inspection, patch: Any) -> None:
    from ..report.words import percent, resize_text, source_name

    summary = inspection.summary
    old, new = found.sources
    if patch is not None and new is None:
        names = f"{patch['filename']}: a patch of {readable(patch['file_size'])}"
    else:
        arrow = "->" if page.ascii else "→"
        names = f"{source_name(old, 'base')} {arrow} {source_name(new, 'target')}"
    size = f"{readable(summary.size)} disk"
    page.line((page.fit(names, max(8, page.width - len(size) - 1)), "bold"), f" {size}")
    page.wrapped(
        (f"{readable(found.changed_bytes)} changed", "bold"),
        f" ({percent(found.changed_bytes, summary.size)}), "
        f"{readable(summary.unchanged_bytes)} unchanged, in clusters of "
        f"{readable(summary.granularity)}",
    )
    if resized := resize_text(summary):
        beyond = summary.new_zero_bytes
        zeros = f" ({readable(beyond)} of new zeros)" if beyond else ""
        page.wrapped((resized, "bold"), zeros)
    parts = []
    for kind, length in summary.length.items():
        name = kind.name.lower()
        shape = _LETTERS[name][-1] if page.ascii else _SHAPES[name][-1]
        parts.append(Text.assemble((f"{shape} {name} ", COLOURS[name]), readable(length)))
    page.flow(parts)


def _doubts(page: Page, found: Attribution, most: int) -> None:
    """Print what makes the figures doubtful, the last line saying how much more there is."""
    doubts = [page.text(_printable(doubt)) for doubt in found.doubts]
    if page.lines_of(doubts) <= most:
        page.points("! ", doubts, most, "bold")
    elif doubts:
        shown = page.points("! ", doubts, most - 1, "bold")
        page.line((f"! {len(doubts) - shown} more like this: --full has them", "bold"))


def _where_and_what(page: Page, found: Attribution, rows: int) -> None:
    from ..report.words import KIND_NAMES

    where, what = _shares(page, found, rows), _kinds(page, found, rows)
    if page.width < _NARROW:
        page.head("where")
        for row in where:
            page.line(*row(page.width))
        page.head("what")
        for row in what:
            page.line(*row(page.width))
        return
    # No name of a kind is cut: what is left of a partition's says more than that of a kind.
    right = max((page.width - 3) * 2 // 5, max(map(len, KIND_NAMES.values())) + _FIGURES)
    left = page.width - 3 - right
    blank = _blank
    page.head(set_cell_size("where", left + 2) + "what the space is")
    for index in range(max(len(where), len(what))):
        one = where[index] if index < len(where) else blank
        two = what[index] if index < len(what) else blank
        page.line(*one(left), "   ", *two(right))


Row = Callable[[int], list[str | tuple[str, str]]]
"""Gives a row's parts in a number of columns."""


def _blank(width: int) -> list[str | tuple[str, str]]:
    return [" " * width]


def _shares(page: Page, found: Attribution, rows: int) -> list[Row]:
    """Return a row for each partition; the least changed are summed up where there are many."""
    from ..report.words import partition_name, told_shares

    shares = told_shares(found)
    shown = set(range(len(shares)))
    if len(shares) > rows:
        by_worth = sorted(shown, key=lambda at: -shares[at].changed_bytes)
        shown = set(by_worth[: rows - 1])
    listed = [
        _row(page, partition_name(share.partition), share.changed_bytes, found.changed_bytes)
        for at, share in enumerate(shares)
        if at in shown
    ]
    left = len(shares) - len(shown)
    if left:
        rest = sum(share.changed_bytes for at, share in enumerate(shares) if at not in shown)
        listed.append(_row(page, f"{left} others", rest, found.changed_bytes))
    return listed


def _row(page: Page, name: str, count: int, whole: int) -> Row:
    def parts(width: int) -> list[str | tuple[str, str]]:
        room = max(4, width - _FIGURES)
        return [page.fit(name, room), (f"{readable(count):>{_SIZE}}", "bold"), _share(count, whole)]

    return parts


def _kinds(page: Page, found: Attribution, rows: int = 100) -> list[Row]:
    """Return a row for each kind of space that changed; the least are summed up."""
    from ..report.words import KIND_NAMES, inner_space

    kinds = [(KIND_NAMES[kind], count) for kind, count in inner_space(found)]
    if len(kinds) > rows:
        rest = kinds[rows - 1 :]
        kinds = [*kinds[: rows - 1], (f"{len(rest)} others", sum(count for _, count in rest))]

    def row(name: str, count: int) -> Row:
        return lambda width: [
            page.fit(name, max(4, width - _FIGURES)),
            (f"{readable(count):>{_SIZE}}", "bold"),
            _share(count, found.changed_bytes),
        ]

    return [row(name, count) for name, count in kinds]


def _map(page: Page, found: Attribution, rows: int) -> None:
    from ..report.cells import cell_rows, coarser, partition_marks

    cells = coarser(found.cells, rows * page.width)
    marks = partition_marks(found, cells)
    numbers = ", a number begins a partition" if marks else ""
    page.head(f"the disk, {readable(cells.size)} a cell{numbers}")
    line: list[str | tuple[str, str]] = []
    for index, (changed, kind, length) in enumerate(cell_rows(found, cells)):
        if index in marks:
            line.append((str(marks[index])[-1], "reverse" if not page.ascii else ""))
        else:
            line.append(_cell(page, kind.name.lower(), changed, length))
        if len(line) == page.width:
            page.line(*line)
            line = []
    if line:
        page.line(*line)


def _cell(page: Page, name: str, changed: int, length: int) -> tuple[str, str]:
    if not changed:
        return ("." if page.ascii else "·", "dim")
    step = min(3, 4 * changed // max(1, length))
    return ((_LETTERS if page.ascii else _SHAPES)[name][step], COLOURS[name])


def _files(page: Page, found: Attribution, rows: int, *, cut: bool = True) -> None:
    from ..attribution.figures import FileStatus
    from ..report.words import file_path, files_text

    changed = [file for file in found.files if file.status is not FileStatus.UNCHANGED]
    beside = [file for file in found.files if file.status is FileStatus.UNCHANGED]
    shown = changed[:rows] if cut else [*changed, *beside]
    title = files_text(found)
    page.head(title if len(shown) >= len(changed) else f"{title}, the largest changes")
    for file in shown:
        path = _place(found, file) + file_path(file)
        page.line(*_file(page, file, path, cut=cut))


def _place(found: Attribution, file: FileChange) -> str:
    """Return the number of a file's partition, to stand before its path; empty where it is one."""
    if len(found.partitions) < 2:
        return ""
    partition = found.partitions[file.partition]
    number = str(partition.number) if partition.number else "disk"
    return f"{number}, gone: " if partition.gone else f"{number}: "


def _file(page: Page, file: FileChange, path: str, *, cut: bool) -> Iterator[str | tuple[str, str]]:
    from ..errors import printable

    status = file.status.value
    yield (f"{_STATUS[status]} {status:<9}", COLOURS[status])
    count = f"{readable(file.changed_bytes):>{_SIZE}}" if file.changed_bytes else " " * _SIZE
    yield (count, "bold")
    freed = f"{'-' + readable(file.freed_bytes):>{_SIZE + 2}}" if file.freed_bytes else " " * 11
    used = 11 + _SIZE + 2
    if not cut or page.width >= 100:
        yield (freed, "dim")
        used += 11
    yield "  "
    if not cut and file.old_path is not None and file.old_path != file.path:
        path = f"{path}  (was {printable(file.old_path)})"
    yield page.fit(path, max(8, page.width - used)) if cut else page.text(path)


def _points(found: Attribution) -> list[str]:
    """Return what explains the delta, with what helps, and what else is to be said."""
    from ..report.words import advice_text

    told = [(advice_text(each), each.remedy) for each in found.advice]
    points = [f"{text}: {remedy}" if remedy else text for text, remedy in told]
    return [_printable(point) for point in (*points, *found.notes)]


def _advice(page: Page, found: Attribution, most: int) -> None:
    points = [page.text(point) for point in _points(found)]
    if not points:
        return
    count = page.fitting(points, most)
    title = "why" if found.advice else "notes"
    left = f", {count} of {len(points)} points; --full has them all"
    page.head(title if count == len(points) else title + left)
    page.points("* " if page.ascii else "• ", points, most)


def _printable(text: str) -> str:
    from ..errors import printable

    return printable(text)


# What --full adds


def _sources(page: Page, found: Attribution) -> None:
    for side, source in zip(("OLD", "NEW"), found.sources, strict=True):
        if source is None:
            continue
        clusters = f", clusters of {readable(source.cluster_size)}" if source.cluster_size else ""
        page.line(
            (f"{side}  ", "bold"),
            page.text(_printable(source.path)),
            f": {source.format}{clusters}, {readable(source.file_size)} for a disk of "
            f"{readable(source.virtual_size)}; {readable(source.data_bytes)} plain, "
            f"{readable(source.compressed_bytes)} compressed",
        )


def _counts(page: Page, inspection: Inspection) -> None:
    from ..report.words import percent

    summary = inspection.summary
    page.head("clusters")
    rows = [
        (kind.name.lower(), summary.count[kind], summary.length[kind]) for kind in summary.count
    ]
    others = {"unchanged": summary.unchanged_bytes, "new zeros": summary.new_zero_bytes}
    for name, length in others.items():
        if length or name == "unchanged":
            rows.append((name, ceil_div(length, summary.granularity), length))
    for name, count, length in rows:
        page.line(
            (f"{name:<12}", COLOURS.get(name, "dim")),
            f"{count:>14,}",
            (f"{readable(length):>12}", "bold"),
            f"{percent(length, summary.size):>10}",
        )


def _partition(page: Page, found: Attribution, share: PartitionShare) -> None:
    from ..report.words import KIND_NAMES, partition_detail, partition_name

    page.line(
        (page.text(partition_name(share.partition)), "bold"),
        f"  {readable(share.changed_bytes)} changed",
        _share(share.changed_bytes, found.changed_bytes),
    )
    if share.partition is not None:
        for detail in partition_detail(share.partition):
            page.line((f"    {page.text(detail)}", "dim"))
    for kind, count in sorted(share.by_kind.items(), key=lambda item: -item[1]):
        page.line(f"    {KIND_NAMES[kind]:<24}{readable(count):>{_SIZE}}")


def _only(tree: list[Branch], below: list[int], index: int) -> int | None:
    """Return the one directory in which all is that changed in another, if there is one."""
    if index == 0 or len(below) != 1 or tree[below[0]].count != tree[index].count:
        return None
    return below[0]


def _branch(page: Page, branch: Branch, name: str, depth: int, root: Branch) -> None:
    indent = "  " * min(depth, max(0, page.width // 4 - 14))
    freed = f"-{readable(branch.freed_bytes)}" if branch.freed_bytes else ""
    name += "/" if depth else ""
    bar = page.bar(branch.changed_bytes, root.changed_bytes, 10)
    figures = _SIZE if page.width < _NARROW else 2 * _SIZE + 2
    parts: list[str | tuple[str, str]] = [(f"{readable(branch.changed_bytes):>{_SIZE}}", "bold")]
    if page.width >= _NARROW:
        parts.append((f"{freed:>{_SIZE + 2}}", "dim"))
    parts += [f"{branch.count:>8,}  ", (f"{bar:<10} ", COLOURS["added"])]
    page.line(*parts, page.fit(indent + name, max(8, page.width - figures - 21)))


def _share(count: int, whole: int) -> str:
    from ..report.words import percent

    return f"{percent(count, whole):>9}"
