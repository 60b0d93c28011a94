"""What explains a delta's size: measured facts, each with the bytes that it is worth."""

from __future__ import annotations

from .attribution import Advice, Attribution


def advise(found: Attribution) -> tuple[Advice, ...]:
    return ()
