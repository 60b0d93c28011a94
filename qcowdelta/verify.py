"""Checking an overlay: its structure, and whether its base is the one it was made from."""

from __future__ import annotations

import os
from dataclasses import dataclass

from .errors import PathName
from .identity import BaseIdentity, Match
from .image import Image, open_image
from .policy import OpenPolicy
from .qcow2.check import CheckReport, check_refcounts
from .qcow2.header import read_header
from .qcow2.layout import ExtensionType


@dataclass(frozen=True)
class OverlayCheck:
    """What checking an image found.

    Attributes:
        structure: tables and refcounts.
        identity: what the image records of its base, or None where it records nothing.
        base: the base's path, or None where the image has no backing file.
        match: how the base compares with what is recorded; None where either is missing.
    """

    structure: CheckReport
    identity: BaseIdentity | None
    base: str | None
    match: Match | None

    @property
    def good(self) -> bool:
        """Whether nothing is wrong, as far as can be told."""
        return self.structure.clean and self.match is not Match.DIFFERENT


def check_overlay(path: PathName, *, policy: OpenPolicy | None = None) -> OverlayCheck:
    """Check a qcow2 image, and its base where it records one.

    Args:
        path: the image.
        policy: what may be opened, and how.

    Raises:
        FormatError, CorruptImageError: it is too damaged to be checked.
        PolicyError: its backing file was not opened.
    """
    policy = policy or OpenPolicy()
    file = policy.open_given(path)
    try:
        header = read_header(file)
        structure = check_refcounts(file, header)
        found = header.extension(ExtensionType.DELTA)
        identity = found and BaseIdentity.parse(found.data, file.path, found.offset)
    finally:
        file.close()
    if header.backing_file is None:
        return OverlayCheck(structure, identity or None, None, None)
    if header.crypt_method:  # QEMU reads it with all that lies below; ours are never encrypted
        return OverlayCheck(structure, identity or None, os.fsdecode(header.backing_file), None)
    with open_image(path, policy=policy) as image:
        base = Image(image.layers[1:])
        match = identity.match(base) if identity else None
        return OverlayCheck(structure, identity or None, base.path, match)
