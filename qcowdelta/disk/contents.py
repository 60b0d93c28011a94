"""What a volume turned out to hold: the result of every reader of file systems."""

from __future__ import annotations

from dataclasses import dataclass, field

from .files import FileTable
from .kinds import SpaceKind, VolumeState
from .space import Spaces, nothing, tile


class UnreadableError(Exception):
    """A volume is not read: it says why, in words for a note."""


@dataclass
class Contents:
    """A volume, told apart.

    Attributes:
        spaces: records of :data:`.SPACE` that tile the volume; owners are rows of ``files``.
        files: its files.
        state: in what state it was left.
        read: whether it was read at all.
        notes: what is wrong with it, or why it was not read.
        sound: whether all that was looked at agrees, so that what counts as FREE surely is.
        label: what it is called, where the first bytes do not tell.
    """

    spaces: Spaces
    files: FileTable = field(default_factory=FileTable.empty)
    state: VolumeState = VolumeState.NOT_READ
    read: bool = False
    notes: list[str] = field(default_factory=list)
    sound: bool = False
    label: str = ""


def one_kind(length: int, kind: SpaceKind, *notes: str) -> Contents:
    """Return what a volume is of which all is of one kind."""
    return Contents(tile(nothing(), length, kind), notes=list(notes))
