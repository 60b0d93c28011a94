"""The command line, run in this process and asked for what it says."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qcowdelta.cli import main


@dataclass(frozen=True)
class Result:
    """What a command said, and its exit status."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Standard output as JSON."""
        value: dict[str, Any] = json.loads(self.out)
        return value


def run(*words: str | Path, cwd: Path | None = None) -> Result:
    """Run the command line here, with its output going to nothing that is a terminal."""
    out, err = io.StringIO(), io.StringIO()
    status = 0
    threshold = gc.get_threshold()  # what a command sets would outlive it here
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.chdir(cwd or Path.cwd()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        for name in ("FORCE_COLOR", "QCOWDELTA_TRACEBACK"):
            patch.delenv(name, raising=False)
        patch.setenv("COLUMNS", "100")
        patch.setattr(sys, "unraisablehook", sys.unraisablehook)  # put back afterwards
        patch.setattr(sys, "argv", ["qcowdelta", *map(str, words)])
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        finally:
            gc.set_threshold(*threshold)
    return Result(status, out.getvalue(), err.getvalue())


def ok(*words: str | Path, cwd: Path | None = None) -> Result:
    """Run what must succeed."""
    result = run(*words, cwd=cwd)
    assert result.status == 0, result.err
    return result


def refused(*words: str | Path, cwd: Path | None = None) -> str:
    """Run what must fail; return the one line that it says."""
    result = run(*words, cwd=cwd)
    assert result.status == 2, (result.out, result.err)
    assert result.out == ""
    assert result.err.startswith("qcowdelta: error: ")
    assert result.err.endswith("\n")
    assert result.err.count("\n") == 1
    assert "internal error" not in result.err
    return result.err


WAYS = ["itself", "symbolic link", "hard link", "other spelling"]


def other_name(path: Path, way: str) -> Path:
    """Return a name of a file, of one of the kinds in WAYS; what it takes is made beside it."""
    name = path.with_name("again")
    match way:
        case "itself":
            return path
        case "symbolic link":
            name.symlink_to(path)
        case "hard link":
            os.link(path, name)
        case _:
            folder = path.with_name("sub")
            folder.mkdir()
            return folder / ".." / path.name
    return name
