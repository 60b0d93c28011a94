"""Opening what a patch leads to: the base with the patch over it, as an image."""

from __future__ import annotations

from blake3 import blake3

from ..errors import BaseMismatchError, CorruptImageError, PathName, printable
from ..hashtree import LEAF, TreeHasher, leaf_digests, leaf_length, zero_leaf
from ..image import Image
from ..layer import keep_inflated
from ..qcow2.image import Qcow2Layer
from ..units import SECTOR, align_up, ceil_div
from .container import PatchFile
from .layer import PatchLayer


def open_patched(
    patch: PatchFile,
    base: Image,
    *,
    check: bool = True,
    folder: PathName | None = None,
    side: str = "base",
) -> Image:
    """Return the target of a patch as an image, of which any range can be read.

    The image owns the patch and the base, and closes both.

    Args:
        patch: the patch.
        base: the image it was made from.
        check: read all of the base first, so that any other one is refused. Without that, what
            segments give and what they take from the base is checked when it is read, but what
            the patch does not touch is not.
        folder: where a temporary file is put, if one is needed.
        side: what the options about the base are called in messages: ``--SIDE-format``.

    Raises:
        BaseMismatchError: the base is not the one that the patch was made from.
        CorruptImageError: base or patch is damaged.
    """
    if base.size != patch.header.base_size:
        raise BaseMismatchError(
            f"{printable(base.path)}: {size_of(base)}, and the base of {printable(patch.path)} was "
            f"{patch.header.base_size}{other_readings(base, patch.header.base_size, side)}"
        )
    if folder is not None:
        keep_inflated(base.sources, folder)
    if check:
        check_base(patch, base, side)
    return Image([PatchLayer(patch, base, folder), *base.layers])


def size_of(image: Image) -> str:
    """Return, for a message, an image's size, and by what format it has that."""
    return f"is {image.size} bytes large, read as {image.format}"


def other_readings(image: Image, size: int, side: str, *, snapshots: bool = True) -> str:
    """Return, for the end of a message on a wrong image, how else it may be meant; maybe empty.

    Args:
        image: the image, as it was read.
        size: the virtual size that it should have, bytes.
        side: what its options begin with.
        snapshots: whether there is an option that names an internal snapshot of it.
    """
    top, told = image.layers[0], ""
    if image.format != "raw" and align_up(top.file.size, SECTOR) == size:
        told += f"; as a raw disk it has that size: if it is one, give --{side}-format raw"
    count = len(top.snapshots) if isinstance(top, Qcow2Layer) and top.snapshot is None else 0
    if snapshots and count:
        has = (
            "an internal snapshot: if that" if count == 1 else f"{count} internal snapshots: if one"
        )
        told += f"; it has {has} is meant, name it with --{side}-snapshot"
    return told


def check_base(patch: PatchFile, base: Image, side: str = "base") -> None:
    """Hold all of a base's content, and what the patch makes of it, against the patch.

    Args:
        patch: the patch.
        base: the image, of the right size.
        side: what the options about the base are called in messages.

    Raises:
        BaseMismatchError: the base is not the one that the patch was made from.
        CorruptImageError: base or patch is damaged.
    """
    of_base, of_target = roots(patch, base)
    if of_base != patch.header.base_digest:
        raise BaseMismatchError(
            f"{printable(base.path)}: is not the base that {printable(patch.path)} was made from: "
            f"its content is different{other_readings(base, patch.header.base_size, side)}"
        )
    if of_target != patch.header.target_digest:
        raise CorruptImageError(
            "its segments do not make up the target that its header names", path=patch.path
        )


def roots(patch: PatchFile, base: Image) -> tuple[bytes, bytes]:
    """Read all of a base, and return the roots of its hash tree and of the target's.

    The target's is what follows from the base's leaves and those that the patch tells.

    Raises:
        CorruptImageError: base or patch is damaged.
    """
    of_base, of_target = TreeHasher(base.size), _TargetTree(patch, base)
    for index, digest in leaf_digests(base):
        of_base.add(index, digest)
        of_target.take(index, digest)
    return of_base.root(), of_target.root()


class _TargetTree:
    """The target's hash tree, from the leaves of segments and, between them, of the base."""

    def __init__(self, patch: PatchFile, base: Image) -> None:
        self._patch, self._base = patch, base
        self._size = patch.header.target_size
        self._last = ceil_div(self._size, LEAF) - 1
        self._tree = TreeHasher(self._size)
        self._at = 0
        self._shift = patch.header.segment_bits - LEAF.bit_length() + 1

    def take(self, index: int, digest: bytes) -> None:
        """Take a leaf of the base, which come in order."""
        self._add_stored(index >> self._shift)
        if index > self._last or self._is_stored(index):
            return
        if leaf_length(self._size, index) != leaf_length(self._base.size, index):
            digest = self._reread(index)
        self._tree.add(index, digest)

    def _is_stored(self, index: int) -> bool:
        return self._patch.find(index >> self._shift) is not None

    def _reread(self, index: int) -> bytes:
        """Hash a leaf that is longer or shorter in the target."""
        return blake3(self._base.reader().read(index * LEAF, self._length(index))).digest()

    def _length(self, index: int) -> int:
        return leaf_length(self._size, index)

    def _add_stored(self, until: int | None) -> None:
        """Add the leaves of the stored segments up to and including one."""
        numbers = self._patch.entries["number"]
        while self._at < numbers.size and (until is None or int(numbers[self._at]) <= until):
            segment = self._patch.segment(self._at)
            first = segment.number << self._shift
            for index, digest in enumerate(segment.leaf_digests, first):
                if digest != zero_leaf(self._length(index)):
                    self._tree.add(index, digest)
            self._at += 1

    def root(self) -> bytes:
        """Return the root."""
        self._add_stored(None)
        return self._tree.root()
