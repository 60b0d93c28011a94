"""Applying a patch: base and patch become the target, as a full image."""

from __future__ import annotations

import os
from dataclasses import dataclass

from blake3 import blake3

from ..delta import Progress
from ..errors import CorruptImageError, PathName
from ..fullimage import ImageOptions, write_image
from ..hashtree import content_digest
from ..identity import fingerprint
from ..image import Image, open_image
from ..policy import OpenPolicy
from ..resumable import ResumableOutput
from ..version import __version__
from .container import PatchFile
from .layer import PatchLayer
from .open import open_patched


@dataclass(frozen=True)
class ApplyReport:
    """What was done.

    Attributes:
        virtual_size: the target's, bytes.
        file_size: the new file's length, bytes.
        segments: how many segments the patch has.
        resumed: whether an earlier run's work was used.
    """

    virtual_size: int
    file_size: int
    segments: int
    resumed: bool


def apply_patch(
    patch: PatchFile,
    base: Image,
    path: PathName,
    options: ImageOptions | None = None,
    *,
    force: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> ApplyReport:
    """Write the target of a patch as a new image, which appears whole or not at all.

    Args:
        patch: the patch. It and the base are closed.
        base: what it was made from.
        path: the name of the new image.
        options: how it is written.
        force: replace what is there.
        resume: go on with what a killed run left, and leave it when this one fails.
        progress: called again and again.

    Raises:
        BaseMismatchError: the base is not the one that the patch was made from.
        CorruptImageError, FormatError: the patch or the base is damaged.
        OutputError: the output cannot be put there.
        OSError: reading or writing failed.
    """
    options = options or ImageOptions()
    folder = os.path.dirname(os.path.abspath(os.fspath(path)))
    with open_patched(patch, base, folder=folder) as image:
        # Steps are counted by what the base has where, not by what is written.
        what = f"{__version__} {options}".encode() + fingerprint(base)
        identity = blake3(patch.identity + what).digest()
        with ResumableOutput(path, identity, force=force, resume=resume) as output:
            size = write_image(image, output, options, output.journal, progress)
            layer = image.layers[0]
            if output.resumed:  # which proves all that decoding the other segments would
                _check_result(output.partial, patch, options)
            elif isinstance(layer, PatchLayer):
                layer.decoder.check_rest()
        return ApplyReport(image.size, size, patch.entries.size, output.resumed)


def _check_result(path: PathName, patch: PatchFile, options: ImageOptions) -> None:
    """Read back what several runs have written: a crash may have lost some of it."""
    with open_image(path, format=options.format, policy=OpenPolicy(force_share=True)) as image:
        if content_digest(image) != patch.header.target_digest:
            raise CorruptImageError(
                "what an earlier run left does not make up the result: it was damaged, or OLD was "
                "stored otherwise then; run again without --resume",
                path=path,
            )
