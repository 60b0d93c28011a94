"""The committed images: what each shows, what it must read as, and where it is once unpacked.

fixtures/ holds every file zstd-compressed (git would store the holes), and manifest.json, both
written by scripts/make-fixtures. Unpacked they lie side by side, so relative names resolve.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import zstandard

FOLDER = Path(__file__).resolve().parents[2] / "fixtures"
MANIFEST = FOLDER / "manifest.json"
HOLE = 4096
ZEROS = bytes(HOLE)

CLUSTER_TAGS = tuple(f"cluster-{1 << bits}" for bits in range(9, 22))
REFCOUNT_TAGS = tuple(f"refcount-{1 << order}" for order in range(7))

DECLARED_FEATURES: tuple[str, ...] = (
    "v2",
    "v3",
    "header-104",
    *CLUSTER_TAGS,
    *REFCOUNT_TAGS,
    "size-zero",
    "size-partial-cluster",
    "size-grown",
    "size-shrunk",
    "zero-plain",
    "zero-preallocated",
    "preallocated-metadata",
    "compressed-zlib",
    "compressed-zstd",
    "compressed-shared-sector",
    "compressed-straddling",
    "compressed-partial-cluster",
    "extended-l2",
    "subcluster-allocated",
    "subcluster-zero",
    "subcluster-unallocated",
    "extended-l2-compressed",
    "snapshots",
    "snapshot-l1-differs",
    "snapshot-size-differs",
    "snapshot-vm-state",
    "data-file",
    "data-file-raw",
    "backing-qcow2",
    "backing-raw",
    "backing-chain",
    "backing-short",
    "backing-long",
    "backing-no-format",
    "backing-json",
    "bitmaps",
    "bitmap-enabled",
    "bitmap-disabled",
    "bitmap-all-ones",
    "bitmap-in-use",
    "bitmap-autoclear-off",
    "lazy-refcounts",
    "dirty",
    "corrupt",
    "feature-names",
    "encrypted-luks",
    "encrypted-aes",
    "unknown-extension",
    "unknown-compatible",
    "unknown-autoclear",
    "unknown-incompatible",
    "raw",
    "raw-sparse",
    "raw-odd-length",
)


@dataclass(frozen=True)
class State:
    """What an image, or a snapshot once applied, must read as by `qemu-img convert -O raw`."""

    virtual_size: int
    sha256: str


@dataclass(frozen=True)
class Bitmap:
    """A persistent bitmap, with the ranges qemu-nbd exports as dirty."""

    name: str
    granularity: int
    enabled: bool
    in_use: bool
    dirty: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Fixture:
    """One case: its main image and the files that one needs beside it, itself included."""

    name: str
    file: str
    format: str
    features: tuple[str, ...]
    files: tuple[str, ...]
    commands: tuple[str, ...]
    state: State | None
    refused: str | None
    snapshots: dict[str, State]
    bitmaps: tuple[Bitmap, ...]

    @property
    def path(self) -> Path:
        """The main image, unpacked."""
        return fixture(self.name)


@cache
def manifest() -> dict[str, Any]:
    """The manifest as it is in the repository."""
    loaded: dict[str, Any] = json.loads(MANIFEST.read_text())
    return loaded


@cache
def all_fixtures() -> tuple[Fixture, ...]:
    """Every fixture, in the manifest's order."""
    return tuple(_fixture(entry) for entry in manifest()["fixtures"])


def fixtures_with(feature: str) -> tuple[Fixture, ...]:
    """The fixtures that show a declared feature; a name not declared is an error."""
    if feature not in DECLARED_FEATURES:
        raise ValueError(f"{feature!r} is not in DECLARED_FEATURES")
    return tuple(each for each in all_fixtures() if feature in each.features)


def by_name(name: str) -> Fixture:
    """The fixture called `name`."""
    return next(each for each in all_fixtures() if each.name == name)


def fixture(name: str) -> Path:
    """The main image of fixture `name`, unpacked with its neighbours; shared, so never write it."""
    wanted = by_name(name)
    for file in wanted.files:
        _unpacked(file)
    return unpack_folder() / wanted.file


def unpack(name: str, folder: Path) -> Path:
    """The fixture's files in a folder of the caller's own; returns the main image."""
    wanted = by_name(name)
    for file in wanted.files:
        unpack_file(FOLDER / f"{file}.zst", folder / file)
    return folder / wanted.file


@cache
def unpack_folder() -> Path:
    """The one folder of this process for unpacked fixtures, gone when it ends."""
    folder = tempfile.mkdtemp(prefix="qcowdelta-fixtures-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@cache
def _unpacked(file: str) -> None:
    unpack_file(FOLDER / f"{file}.zst", unpack_folder() / file)


def unpack_file(packed: Path, target: Path) -> None:
    """Decompress, leaving holes where whole 4 KiB blocks are zero."""
    data = zstandard.ZstdDecompressor().decompress(packed.read_bytes())
    with target.open("wb") as out:
        for offset in range(0, len(data), HOLE):
            block = data[offset : offset + HOLE]
            if block != ZEROS[: len(block)]:
                out.seek(offset)
                out.write(block)
        out.truncate(len(data))


def pack(data: bytes) -> bytes:
    """The bytes to commit for a file's content."""
    return zstandard.ZstdCompressor(level=19).compress(data)


def verify() -> Iterator[str]:
    """Compare fixtures/ with the manifest; yields what is wrong, a line each."""
    listed = manifest()["files"]
    present = {path.name.removesuffix(".zst") for path in FOLDER.glob("*.zst")}
    for file in sorted(listed.keys() ^ present):
        yield f"{file}: {'not in fixtures/' if file in listed else 'not in the manifest'}"
    for file in sorted(listed.keys() & present):
        packed = (FOLDER / f"{file}.zst").read_bytes()
        data = zstandard.ZstdDecompressor().decompress(packed)
        if hashlib.sha256(data).hexdigest() != listed[file]["sha256"]:
            yield f"{file}: its SHA-256 is not the manifest's"
    covered = {feature for each in all_fixtures() for feature in each.features}
    for feature in sorted(covered ^ set(DECLARED_FEATURES)):
        yield f"{feature}: {'not declared' if feature in covered else 'no fixture'}"


def _fixture(entry: dict[str, Any]) -> Fixture:
    expected = entry["expected"]
    return Fixture(
        name=entry["name"],
        file=entry["file"],
        format=entry["format"],
        features=tuple(entry["features"]),
        files=tuple(entry["files"]),
        commands=tuple(entry["commands"]),
        state=_state(expected) if "sha256" in expected else None,
        refused=expected.get("refused"),
        snapshots={each["name"]: _state(each) for each in expected.get("snapshots", ())},
        bitmaps=tuple(_bitmap(each) for each in expected.get("bitmaps", ())),
    )


def _state(entry: dict[str, Any]) -> State:
    return State(entry["virtual_size"], entry["sha256"])


def _bitmap(entry: dict[str, Any]) -> Bitmap:
    dirty = tuple((start, length) for start, length in entry["dirty"])
    return Bitmap(entry["name"], entry["granularity"], entry["enabled"], entry["in_use"], dirty)
