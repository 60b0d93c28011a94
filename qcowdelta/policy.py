"""What may be opened because an image names it.

A backing name or data-file name inside an image is data from a stranger. It is followed only to
a regular file, of a recorded format, in the folder of the image that names it or in one that
the user allowed; the message of every refusal says what was asked for and what would allow it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .errors import PolicyError, printable
from .hostfile import HostFile

MAX_DEPTH = 256


@dataclass(frozen=True)
class OpenPolicy:
    """How images, and the files they name, are opened.

    Attributes:
        allow_paths: folders in which a named file may lie, besides that of the image naming it.
        force_share: read images that a writer has locked, without locking them.
    """

    allow_paths: tuple[Path, ...] = ()
    force_share: bool = False

    def open_given(self, path: str | os.PathLike[str]) -> HostFile:
        """Open a file that the user named: anywhere, and a block device too."""
        return HostFile.open(path, lock=not self.force_share, device=True)

    def open_named(self, path: str, *, by: HostFile, what: str) -> HostFile:
        """Open a file that the image ``by`` names, at a path already resolved by its rules.

        Raises:
            PolicyError: it is not a regular file in an allowed folder.
        """
        # What counts for permission is where the file really is; what it is opened by is its
        # name, since names inside of it are relative to the folder of that.
        real = os.path.realpath(path)
        folders = [os.path.dirname(by.path) or ".", *map(os.fspath, self.allow_paths)]
        if not any(_inside(real, os.path.realpath(folder)) for folder in folders):
            raise PolicyError(
                f"names {what} {printable(path)}, which is not in its own folder: not opened; "
                f"allow it with --allow-path {printable(os.path.dirname(real))}",
                path=by.path,
            )
        try:
            file = HostFile.open(path, lock=not self.force_share)
            if not os.path.samestat(os.fstat(file.fileno()), os.stat(real)):
                file.close()
                raise PolicyError("was replaced while it was opened", path=path)
            return file
        except PolicyError as error:
            raise PolicyError(
                f"names {what} {printable(path)}, which {error.message}", path=by.path
            ) from error
        except OSError as error:
            raise PolicyError(
                f"names {what} {printable(path)}, which cannot be opened: {error.strerror}",
                path=by.path,
            ) from error


def _inside(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip(os.sep) + os.sep)


def backing_path(name: bytes, by: HostFile) -> str:
    """Return the path that a backing name means, by QEMU's rules (block.c, path_combine).

    A relative name is relative to the folder of the image's path as it was given.

    Raises:
        PolicyError: the name is a ``json:`` description or has a protocol.
    """
    text = os.fsdecode(name)
    scheme, colon, _ = text.partition(":")
    if colon and "/" not in scheme:
        raise PolicyError(
            f"names backing file {printable(text)!r}: json: and protocol names are never followed; "
            "give it a plain file name with 'qemu-img rebase -u'",
            path=by.path,
        )
    return os.path.join(os.path.dirname(by.path), text)


def data_file_path(name: bytes, by: HostFile) -> str:
    """Return the path that a data-file name means: literal, never parsed as a protocol."""
    return os.path.join(os.path.dirname(by.path), os.fsdecode(name))
