"""The cases of `bench fallback`: what only QEMU reads, read through it, against its own tool."""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchlib import reader
from benchlib.common import Setting
from benchlib.images import KIB, MIB, QEMU_IMG
from benchlib.measure import BenchError, Command, Contestant, call, compete, speedup
from benchlib.report import Result, at_most

SIZE, STRETCH, FILLED = 2048 * MIB, 128 * MIB, 96 * MIB
TARGET = 1.5
SECRET = "secret"

_TRIES = 10


@dataclass(frozen=True)
class Format:
    """How an image is made, and opened by qemu-img: its format, options, and options of its key."""

    format: str
    options: str = ""
    key: str = ""

    @property
    def opened(self) -> str:
        """As --image-opts, behind the file's name."""
        named = {"luks": "key-secret=s", "qcow2": "encrypt.format=luks,encrypt.key-secret=s"}
        return f"driver={self.format}" + (f",{named[self.format]}" if self.key else "")


FORMATS = {
    "vmdk": Format("vmdk"),
    "vmdk-flat": Format("vmdk", "subformat=monolithicFlat"),
    "vmdk-stream": Format("vmdk", "subformat=streamOptimized"),
    "vdi": Format("vdi"),
    "vhdx": Format("vhdx"),
    "vpc": Format("vpc", "force_size=on"),
    "luks": Format("luks", key="key-secret=s"),
    "qcow2-luks": Format("qcow2", "encrypt.format=luks", key="encrypt.key-secret=s"),
}


def content(folder: Path) -> Path:
    """The raw disk that all images hold: 1.5 of 2 GiB filled, half of that compressible."""
    path, part = folder / "fallback.raw", folder / "fallback.part"
    if path.exists():
        return path
    source = random.Random(path.name)
    text = (b"qcowdelta " * 3277)[: 32 * KIB]
    blocks = [source.randbytes(32 * KIB) + text for _ in range(64)]
    with part.open("wb") as file:
        file.truncate(SIZE)
        for start in range(0, SIZE, STRETCH):
            file.seek(start)
            for _ in range(FILLED // MIB):
                file.write(b"".join(source.choices(blocks, k=16)))
    return part.rename(path)


@contextmanager
def made(setting: Setting, how: Format) -> Iterator[tuple[Path, list[str | Path]]]:
    """An image of a format in a folder of its own, and the words that give its secret."""
    folder = setting.folder / "fallback"
    folder.mkdir(exist_ok=True)
    image, secret = folder / f"image.{how.format}", folder / SECRET
    secret.write_text("not easy to guess")
    words: list[str | Path] = ["--object", f"secret,id=s,file={secret}"] if how.key else []
    options = ",".join(filter(None, [how.options, how.key]))
    command: Command = [
        *[QEMU_IMG, "convert", "-q", *words, "-f", "raw", "-O", how.format],
        *(["-o", options] if options else []),
        *[content(setting.folder), image],
    ]
    try:
        _make(command, _TRIES if how.key else 1)
        yield image, words
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def _make(command: Command, tries: int) -> None:
    """Make an image; QEMU 7.2 fails at times to measure how long a LUKS key is to take."""
    for left in reversed(range(tries)):
        try:
            call(command)
            return
        except BenchError:
            if not left:
                raise


def ours(image: Path, how: Format, output: Path) -> Contestant:
    program: list[str | Path] = [sys.executable, Path(reader.__file__), image, how.format, output]
    command = [*program, image.with_name(SECRET)] if how.key else program
    return Contestant("qcowdelta, all data read", [command], output)


def qemu_img(image: Path, how: Format, output: Path, words: list[str | Path]) -> Contestant:
    source = f"{how.opened},file.filename={image}"
    command: Command = [QEMU_IMG, "convert", *words, "--image-opts", "-O", "raw", source, output]
    return Contestant("qemu-img convert -O raw", [command], output)


def must_be_read_right(image: Path, how: Format, raw: Path, output: Path) -> None:
    """A fast wrong answer is no answer."""
    digests = []
    for contestant in (ours(image, how, output), ours(raw, Format("raw"), output)):
        (command,) = contestant.commands
        environment = ["env", f"{reader.WANTS_DIGEST}=1"]
        call([*environment, *command])
        digests.append(output.read_text().split()[1])
    if digests[0] != digests[1]:
        raise BenchError(f"{image}: is read wrongly")


def fallback(name: str, setting: Setting) -> Result:
    """One format, read through QEMU."""
    how = FORMATS[name]
    told, copy = setting.folder / "fallback.txt", setting.folder / "fallback.copy"
    with made(setting, how) as (image, words):
        must_be_read_right(image, how, content(setting.folder), told)
        try:
            mine, peer = compete(
                [ours(image, how, told), qemu_img(image, how, copy, words)], setting.runs
            )
        finally:
            for path in (told, copy):
                path.unlink(missing_ok=True)
    return Result(name, [peer, mine], [at_most("of qemu-img's time", speedup(mine, peer), TARGET)])


CASES: dict[str, Callable[[Setting], Result]] = {name: partial(fallback, name) for name in FORMATS}
