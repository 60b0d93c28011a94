"""What all suites use: where things are, the program under test, and the judge of its output."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from benchlib.images import QEMU_IMG
from benchlib.measure import BenchError, call


@dataclass(frozen=True)
class Setting:
    """Where images are kept, where the golden pair is, and how often each program runs."""

    folder: Path
    golden: Path
    runs: int


def qcowdelta() -> str:
    """The command of the Python that runs this, or the first on PATH."""
    beside = Path(sys.prefix, "bin", "qcowdelta")
    found = str(beside) if beside.exists() else shutil.which("qcowdelta")
    if found is None:
        raise BenchError("there is no qcowdelta command; install the project first")
    return found


def image_format(image: Path) -> str:
    """An image's format, by its name."""
    return "raw" if image.suffix == ".raw" else "qcow2"


def must_equal(image: Path, output: Path) -> None:
    """A fast wrong answer is no answer."""
    if image_format(output) == "qcow2":
        call([QEMU_IMG, "check", "-q", "-f", "qcow2", output])
    formats = ["-f", image_format(image), "-F", image_format(output)]
    call([QEMU_IMG, "compare", "-q", *formats, image, output])
