"""How much is done for a smaller patch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..units import MIB
from .codec import ZstdLevel

Effort: TypeAlias = Literal["fast", "default", "best"]


@dataclass(frozen=True)
class Settings:
    """The settings of an effort.

    Attributes:
        segment_bits: segments cover two to the power of this many bytes.
        level: how zstd codes; None means lz4, without dictionaries.
        per: one feature for so many bytes of a block; None looks for no similar blocks.
        partners: how many similar blocks are taken for each.
        neighbours: how many blocks on each side of a similar one are taken too.
        references: how many other segments a segment may need.
        dictionary: the most that a dictionary may hold, bytes.
    """

    segment_bits: int
    level: ZstdLevel | None
    per: int | None = None
    partners: int = 0
    neighbours: int = 0
    references: int = 32
    dictionary: int = 0


SETTINGS: dict[Effort, Settings] = {
    "fast": Settings(20, None),
    "default": Settings(
        20, ZstdLevel(6, 20, 20), per=1024, partners=2, neighbours=1, dictionary=6 * MIB
    ),
    "best": Settings(
        22,
        ZstdLevel(19, 20, 24),
        per=512,
        partners=4,
        neighbours=2,
        references=16,
        dictionary=10 * MIB,
    ),
}
