"""Every error the library raises on purpose.

::

    QcowDeltaError
    ├── ImageError              something about one image file
    │   ├── FormatError         not a valid image of its format: refused
    │   │   ├── UnsupportedFeatureError   valid, but needs something we do not read
    │   │   └── EncryptedImageError       valid, but only ciphertext can be read
    │   ├── CorruptImageError   tables or data that contradict each other or the file
    │   ├── UnusableBitmapError a dirty bitmap of it does not mark all that was written
    │   ├── PolicyError         opening it was not allowed
    │   └── ImageLockedError    another process is using it
    ├── QemuError               a program of QEMU's failed, hung, or is missing
    │   ├── NbdError            an NBD server refused, hung, or broke the protocol
    │   └── QmpError            a QEMU that runs refused a command
    │       ├── QmpBusyError    another client holds its monitor
    │       ├── QmpTimeoutError it did not answer in time
    │       └── QmpLostError    it has gone
    ├── LiveError               a running VM is not in the state that is needed
    ├── BaseMismatchError       a base is not the one the delta was made from
    ├── BitmapMismatchError     two images differ where a dirty bitmap marks nothing
    ├── FreeSpaceError          what is free on a disk cannot be told
    ├── OutputError             the output cannot be put where it was asked for
    └── OptionError             options that do not make sense, alone or together

Operating-system errors (missing file, no space, I/O error) stay :class:`OSError`.
"""

from __future__ import annotations

import os
from typing import TypeAlias

PathName: TypeAlias = str | os.PathLike[str]


def printable(name: str | bytes | os.PathLike[str]) -> str:
    """Return a name as text that is safe on a terminal.

    Names come from image files, so from strangers: control characters, escape sequences and
    bytes that are not UTF-8 are shown escaped, never sent as they are.
    """
    text = os.fsdecode(name)
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class QcowDeltaError(Exception):
    """The root of all errors raised on purpose by this package."""


class ImageError(QcowDeltaError):
    """Something is wrong with one image file.

    Args:
        message: what is wrong, and where it helps, what to do.
        path: the file.
        offset: where in the file, in bytes, when known.
        field: the name of the field or table, when known.
    """

    def __init__(
        self,
        message: str,
        *,
        path: PathName,
        offset: int | None = None,
        field: str | None = None,
    ) -> None:
        self.message = message
        self.path = os.fspath(path)
        self.offset = offset
        self.field = field
        super().__init__(self._text())

    def _text(self) -> str:
        where = ""
        if self.field is not None:
            where += f" in {self.field}"
        if self.offset is not None:
            where += f" at offset {self.offset:#x}"
        return f"{printable(self.path)}: {self.message}{where and f' ({where.strip()})'}"


class FormatError(ImageError):
    """The file is not a valid image of its format, or goes beyond a limit."""


class UnsupportedFeatureError(FormatError):
    """The image is valid but uses a feature that is not read here."""


class EncryptedImageError(FormatError):
    """The image's clusters are encrypted, so their bytes cannot be compared."""


class CorruptImageError(ImageError):
    """The image's tables or data contradict each other or the file's length."""


class UnusableBitmapError(ImageError):
    """A dirty bitmap of the image does not mark all that was written."""


class PolicyError(ImageError):
    """A file was not opened, because the policy does not allow it."""


class ImageLockedError(ImageError):
    """Another process holds a lock on the image that excludes reading it."""


class QemuError(QcowDeltaError):
    """A program of QEMU's failed, did not answer in time, or is missing."""


class NbdError(QemuError):
    """An NBD server refused an export or a request, did not answer, or broke the protocol."""


class QmpError(QemuError):
    """A QEMU that runs refused a command, or could not be asked.

    Args:
        message: where, what was asked, and what it said; never what the command was given.
        command: the command's name.
        error_class: QEMU's class of the error; None where the answer was none of QEMU's.
        desc: QEMU's own words.
    """

    def __init__(
        self,
        message: str,
        *,
        command: str | None = None,
        error_class: str | None = None,
        desc: str = "",
    ) -> None:
        self.command = command
        self.error_class = error_class
        self.desc = desc
        super().__init__(message)


class QmpBusyError(QmpError):
    """Another client holds the monitor, which serves one at a time."""


class QmpTimeoutError(QmpError):
    """QEMU did not answer in time; whether it did what was asked is not known."""


class QmpLostError(QmpError):
    """The connection to QEMU was lost, or is none of QMP."""


class LiveError(QcowDeltaError):
    """A running VM has not what is needed, or something of ours is in its way."""


class BaseMismatchError(QcowDeltaError):
    """A base is not the one a delta was made from."""


class BitmapMismatchError(QcowDeltaError):
    """Two images differ where a dirty bitmap marks nothing: it began from another state."""


class FreeSpaceError(QcowDeltaError):
    """What is free on a disk cannot be told, or not be relied on."""


class OutputError(QcowDeltaError):
    """The output cannot be put where it was asked for."""


class OptionError(QcowDeltaError):
    """Options that make no sense, alone or together."""
