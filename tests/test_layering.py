"""Imports go one way, and each side of the line between library and command line keeps to it.

A new module has to be given its place in :data:`LAYERS`.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "qcowdelta"

LAYERS: tuple[tuple[str, ...], ...] = (
    # What needs nothing of ours.
    (
        "disk.kinds",
        "disk.tsk_worker",
        "errors",
        "journal",
        "qemu.launch",
        "threads",
        "units",
        "version",
    ),
    ("declare", "extents"),
    ("hostfile", "inflated", "secret"),
    ("formats",),
    # QEMU's programs, and talking to them.
    ("qemu.nbd", "qemu.programs", "qemu.qmp"),
    ("qemu.daemon", "qemu.remote", "qemu.sockets", "qemu.vhdx", "qemu.vmdk"),
    ("qemu.headers",),
    # Formats of disk images.
    ("qcow2.layout", "qcow2.geometry"),
    ("qcow2.codec", "qcow2.header"),
    ("qcow2.snapshots", "qcow2.tables", "qcow2.writer"),
    ("qcow2.bitmaps",),
    ("layer", "qcow2.check"),
    ("qcow2.image", "raw"),
    ("qemu.export",),
    # Images: files and all that lies under them.
    ("policy", "reader"),
    ("qemu.graph",),
    ("qemu.convert", "qemu.placement"),
    ("qemu.image",),
    ("image", "ranges"),
    # Deltas, and what finds them.
    ("delta", "dirty"),
    ("hashtree", "pieces"),
    ("identity", "payloads", "spotcheck"),
    ("diff", "spliced"),
    # What a disk's content means, and whose the changes are.
    ("disk.records", "disk.space", "disk.volume"),
    ("disk.files", "disk.partitions", "disk.probe"),
    ("disk.compare", "disk.contents"),
    ("disk.ext.layout", "disk.tsk"),
    ("disk.ext.groups", "disk.told"),
    ("disk.ext.allocation", "disk.ext.inodes", "disk.ntfs"),
    ("disk.ext.directories", "disk.ext.mapping", "disk.fat"),
    ("disk.ext.read",),
    ("disk.diskmap",),
    ("disk.doubts",),
    ("disk.pairing",),
    ("attribution.figures", "dropfree"),
    ("attribution.advice", "attribution.cells", "attribution.files"),
    ("attribution.attribute",),
    # What takes a delta or an image.
    ("base", "naming", "output"),
    ("choosing", "copying", "resumable"),
    ("clusters",),
    ("fullimage", "inspect", "overlay", "verify"),
    # The cluster patch: the format, what is done to one segment, and to all of them.
    ("patch.layout", "patch.blocks"),
    ("patch.codec", "patch.header", "patch.table"),
    ("patch.effort", "patch.scan", "patch.segment"),
    ("patch.container", "patch.encode", "patch.spool"),
    ("patch.decode", "patch.describe", "patch.write"),
    ("patch.layer",),
    ("patch.open",),
    ("patch.apply", "patch.combine", "patch.verify"),
    # What tells of any of these files.
    ("info",),
    # What shows whose a delta is.
    ("report.words",),
    ("report.bare", "report.cells", "report.markup", "report.tree"),
    ("report.document", "report.sections"),
    ("report.page",),
    # A running VM.
    ("live.names", "live.scratch"),
    ("live.machine",),
    ("live.steps", "live.undo"),
    ("live.checkpoint",),
    ("live.dirty", "live.fleecing"),
    ("live.view",),
    ("live.cleanup", "live.status"),
    # The command line.
    ("cli.memory", "cli.options", "cli.show"),
    ("cli.info", "cli.overview", "cli.sinks"),
    (
        "cli.apply",
        "cli.check",
        "cli.combine",
        "cli.convert",
        "cli.diff",
        "cli.inspect",
        "cli.live",
        "cli.verify",
    ),
    ("cli.commands",),
    ("cli",),
)
RANK = {module: rank for rank, group in enumerate(LAYERS) for module in group}
NAMESPACES = {"", "attribution", "disk", "disk.ext", "live", "patch", "qcow2", "qemu", "report"}
"""Packages whose own ``__init__`` holds nothing that another module may use."""

FOR_PEOPLE = {"argparse", "click", "curses", "getpass", "logging", "rich", "rich_click"}
"""Modules that talk to people: none of the library's business."""
BYTES = {"blake3", "construct", "io", "isal", "lz4", "mmap", "numpy", "struct", "zlib", "zstandard"}
"""Modules that handle bytes: none of the command line's business."""
TALKING_CALLS = {"breakpoint", "exit", "input", "print", "quit", "sys.exit", "os._exit"}
OPENING_CALLS = {
    "open", "os.open", "os.fdopen", "os.read", "os.pread", "os.preadv", "os.write", "os.pwrite",
    "os.pwritev", "os.copy_file_range", "os.sendfile", "os.truncate", "os.ftruncate", "os.rename",
    "os.replace", "os.unlink", "os.remove", "os.link",
}  # fmt: skip
OPENING_METHODS = {"open", "read_bytes", "read_text", "write_bytes", "write_text", "unlink"}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its name without ``qcowdelta.``; the package is ``""``."""
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def is_package(module: str) -> bool:
    return modules()[module].name == "__init__.py" if module in modules() else False


def imports(module: str, source: str) -> Iterator[tuple[str, bool]]:
    """Every module that the source imports, anywhere in it, and whether it is one of ours."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                head, _, rest = alias.name.partition(".")
                yield (rest, True) if head == "qcowdelta" else (alias.name, False)
        elif isinstance(node, ast.ImportFrom):
            target = absolute(module, node.level, node.module or "")
            for alias in node.names:
                if target is None:
                    yield node.module or "", False
                else:
                    inner = f"{target}.{alias.name}".lstrip(".")
                    yield inner if inner in modules() else target, True


def absolute(module: str, level: int, name: str) -> str | None:
    """The module of ours that ``from <dots><name>`` means, or None for another's."""
    if not level:
        head, _, rest = name.partition(".")
        return rest if head == "qcowdelta" else None
    parts = module.split(".") if module else []
    parts = parts if is_package(module) else parts[:-1]
    parts = parts[: len(parts) - (level - 1)]
    return ".".join([*parts, *([name] if name else [])])


def backwards(module: str, source: str) -> list[str]:
    """What is wrong with the imports of a module, were this its source."""
    found = []
    for name, ours in imports(module, source):
        if ours and name in NAMESPACES:
            found.append(f"{module} imports the package {name or 'qcowdelta'}, not a module of it")
        elif ours and name not in RANK:
            found.append(f"{module} imports {name}, which has no place in LAYERS")
        elif ours and RANK[name] >= RANK[module]:
            found.append(f"{module} imports {name}, which is not below it")
    return found


def crossing(module: str, source: str) -> list[str]:
    """What a module does that belongs to the other side of the command line."""
    cli = module.split(".")[0] == "cli"
    foreign = BYTES if cli else FOR_PEOPLE
    found = [
        f"{module} imports {name}"
        for name, ours in imports(module, source)
        if not ours and name.split(".")[0] in foreign
    ]
    library = types_of_ours(module, source)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            head, _, method = call.rpartition(".")
            if cli and (
                call in OPENING_CALLS or (method in OPENING_METHODS and head not in library)
            ):
                wanted = node.args and ast.unparse(node.args[0]) == "os.devnull"
                found += [] if wanted else [f"{module} line {node.lineno} calls {call}"]
            elif not cli and call in TALKING_CALLS:
                found.append(f"{module} line {node.lineno} calls {call}")
    return found


def types_of_ours(module: str, source: str) -> set[str]:
    """Names of the library's types, whose ways of opening a file are the library's own."""
    return {
        alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom)
        and absolute(module, node.level, node.module or "") is not None
        for alias in node.names
        if alias.name[:1].isupper()
    }


def source_of(module: str) -> str:
    return modules()[module].read_text(encoding="utf-8")


def test_every_module_has_its_place() -> None:
    assert set(RANK) | NAMESPACES == set(modules())


@pytest.mark.parametrize("module", sorted(RANK))
def test_imports_go_one_way(module: str) -> None:
    assert backwards(module, source_of(module)) == []


@pytest.mark.parametrize("module", sorted(RANK))
def test_library_does_not_talk_and_command_line_does_not_touch_bytes(module: str) -> None:
    assert crossing(module, source_of(module)) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("errors", "from .units import KIB"),
        ("image", "from .diff import ImageDelta"),
        ("qcow2.header", "from ..image import Image"),
        ("qcow2.tables", "from . import image"),
        ("qcow2.layout", "def late():\n    from .header import Header"),
        ("delta", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import diff"),
        ("diff", "import qcowdelta.overlay"),
        ("overlay", "from qcowdelta.cli import show"),
        ("overlay", "from . import __version__"),
        ("verify", "from . import cli"),
        ("inspect", "from .cli.show import size"),
        ("cli.show", "from .diff import diff"),
        ("image", "from .notyet import thing"),
        ("diff", "from .patch.write import write_patch"),
        ("patch.container", "from .decode import SegmentDecoder"),
        ("patch.write", "from .. import __version__"),
    ],
)
def test_a_backwards_import_is_found(module: str, source: str) -> None:
    assert backwards(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("inspect", "import rich.table"),
        ("diff", "from click import echo"),
        ("diff", "print('done')"),
        ("image", "import sys\nsys.exit(1)"),
        ("policy", "answer = input()"),
        ("cli.info", "import numpy as np"),
        ("cli.info", "def run(path):\n    with open(path) as file:\n        pass"),
        ("cli.info", "from pathlib import Path\nPath('x').read_bytes()"),
        ("cli", "import os\nos.read(0, 1)"),
        ("cli.apply", "from ..image import Image\nPath('x').open()"),
    ],
)
def test_a_crossing_is_found(module: str, source: str) -> None:
    assert crossing(module, source)


def test_the_package_itself_imports_nothing_of_ours_when_it_is_imported() -> None:
    top = ast.parse(source_of("")).body
    assert not [n for n in top if isinstance(n, ast.ImportFrom) and n.level]


def loaded_by(code: str) -> set[str]:
    """The top-level modules that are there after running ``code`` in a fresh interpreter."""
    tail = "\nimport sys\nprint(*sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", code + tail], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


HEAVY = {"blake3", "construct", "isal", "lz4", "numpy", "qemu", "zstandard"}


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded_by("import qcowdelta") & (HEAVY | FOR_PEOPLE)


COMMANDS = (
    "apply", "check", "compose", "convert", "diff", "index", "info", "inspect", "invert", "verify",
)  # fmt: skip


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_loads_nothing_heavy(command: str) -> None:
    argv = ["qcowdelta", *([command] if command else []), "--help"]
    code = f"import sys\nsys.argv = {argv!r}\nfrom qcowdelta.cli import main\n"
    code += "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
    assert not loaded_by(code) & HEAVY


def test_every_public_name_can_be_had() -> None:
    import qcowdelta

    for name in qcowdelta.__all__:
        assert getattr(qcowdelta, name) is not None
    with pytest.raises(AttributeError):
        _ = qcowdelta.no_such_name
