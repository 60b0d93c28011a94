"""The test vectors of the cluster patch: formats/vectors/."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from qcowdelta.errors import (
    BaseMismatchError,
    CorruptImageError,
    FormatError,
    QcowDeltaError,
    UnsupportedFeatureError,
)

FOLDER = Path(__file__).resolve().parents[2] / "formats" / "vectors"

CLASSES: dict[str, type[QcowDeltaError]] = {
    "format": FormatError,
    "unsupported": UnsupportedFeatureError,
    "corrupt": CorruptImageError,
    "base": BaseMismatchError,
}


@dataclass(frozen=True)
class Vector:
    """A vector as its file has it.

    Attributes:
        name: the file's, without suffix.
        about, outcome, file: see formats/vectors/README.md.
        base: the content of the base.
        target: the size and BLAKE3 of the target, where the patch is valid.
        body: the patch, or sidecar.
    """

    name: str
    about: str
    outcome: str
    file: str
    base: bytes
    target: tuple[int, str] | None
    body: bytes

    def put(self, folder: Path) -> tuple[Path, Path]:
        """Write patch and base to a folder; return their paths."""
        patch, base = folder / "vector.qcpatch", folder / "base.raw"
        patch.write_bytes(self.body)
        base.write_bytes(self.base)
        return patch, base


def names(*, outcome: str | None = None, file: str = "patch") -> list[str]:
    """Return the names of the vectors of a kind."""
    found = []
    for path in sorted(FOLDER.glob("*.vector")):
        lines = fields(path)
        if lines["file"] == file and outcome in (None, lines["outcome"]):
            found.append(path.stem)
    return found


def fields(path: Path) -> dict[str, str]:
    """Return the lines at the beginning of a vector."""
    head = path.read_bytes().partition(b"\n\n")[0].decode()
    return dict(line.split(": ", 1) for line in head.splitlines())


def load(name: str) -> Vector:
    """Read a vector."""
    path = FOLDER / f"{name}.vector"
    lines = fields(path)
    size, seed = lines["base"].split(" ")
    base = bytearray(blake3(seed.encode()).digest(length=int(size)))
    if "flip" in lines:
        base[int(lines["flip"])] ^= 1
    target = None
    if "target" in lines:
        length, digest = lines["target"].split(" ")
        target = int(length), digest
    body = path.read_bytes().partition(b"\n\n")[2]
    return Vector(name, lines["about"], lines["outcome"], lines["file"], bytes(base), target, body)
