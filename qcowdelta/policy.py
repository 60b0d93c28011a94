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
from .formats import FORMATS
from .hostfile import HostFile
from .qcow2.header import Header
from .secret import Secret

MAX_DEPTH = 256


@dataclass(frozen=True)
class OpenPolicy:
    """How images, and the files they name, are opened.

    Attributes:
        allow_paths: folders in which a named file may lie, besides that of the image naming it.
        force_share: read images that a writer has locked, without locking them.
        allow_protocols: protocols that a backing name may have, ``json`` for ``json:{…}``.
        secret: what opens the image, and what lies below it, where that is encrypted.
        through_qemu: let QEMU read what could be read without it, too.
    """

    allow_paths: tuple[Path, ...] = ()
    force_share: bool = False
    allow_protocols: tuple[str, ...] = ()
    secret: Secret | None = None
    through_qemu: bool = False

    def open_given(self, path: str | os.PathLike[str]) -> HostFile:
        """Open a file that the user named: anywhere, and a block device too."""
        return HostFile.open(path, lock=not self.force_share, device=True)

    def backing_path(self, name: bytes, *, by: HostFile) -> str | None:
        """Return the path that a backing name means, by QEMU's rules; None: no file's, but allowed.

        A relative name is relative to the folder of the image's path as it was given.

        Raises:
            PolicyError: it is a ``json:`` description or has a protocol, and that is not allowed.
        """
        text = os.fsdecode(name)
        protocol = _protocol(text)
        if protocol is None:
            return os.path.join(os.path.dirname(by.path), text)
        if protocol not in self.allow_protocols:
            raise PolicyError(
                f"names backing file {printable(text)!r}: json: and protocol names are not "
                "followed; give it a plain file name with 'qemu-img rebase -u', or allow this with "
                f"--allow-protocol {printable(protocol)}",
                path=by.path,
            )
        return None

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

    def open_data_file(self, name: bytes, *, by: HostFile) -> HostFile:
        """Open the data file that the image ``by`` names, relative to the folder of that.

        Raises:
            PolicyError: it is not a regular file in an allowed folder.
        """
        try:
            return self.open_named(data_file_path(name, by), by=by, what="data file")
        except PolicyError as error:
            text = os.fsdecode(name)
            missing = isinstance(error.__cause__, FileNotFoundError)
            if not missing or os.path.isabs(text) or not os.path.isfile(text):
                raise
            raise PolicyError(
                f"{error.message}; QEMU takes {printable(text)} relative to the current folder, "
                "where there is such a file, and qcowdelta relative to the image's: record its "
                "absolute name with 'qemu-img amend -o data_file=NAME IMAGE', or one relative to "
                "the image's folder and run QEMU there",
                path=by.path,
            ) from error


def _protocol(name: str) -> str | None:
    """Return a backing name's protocol, as ``nbd`` of ``nbd+unix://…``; None: it is a file's."""
    scheme, colon, _ = name.partition(":")
    return scheme.partition("+")[0] if colon and "/" not in scheme else None


def _inside(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip(os.sep) + os.sep)


def backing_format(header: Header, by: HostFile) -> str:
    """Return the format that a qcow2 image records of its backing file.

    Raises:
        PolicyError: it records none, or one that is not read here.
    """
    shown = printable(header.backing_file or b"")
    fmt = header.backing_format
    if fmt is None:
        raise PolicyError(
            f"names backing file {shown} without its format, which is not guessed; "
            "record it with 'qemu-img rebase -u -F FORMAT -b NAME IMAGE'",
            path=by.path,
        )
    if fmt not in FORMATS:
        raise PolicyError(
            f"names backing file {shown} of format {printable(fmt)!r}; "
            f"known are: {', '.join(FORMATS)}",
            path=by.path,
        )
    return fmt


def data_file_path(name: bytes, by: HostFile) -> str:
    """Return the path that a data-file name means: literal, never parsed as a protocol."""
    return os.path.join(os.path.dirname(by.path), os.fsdecode(name))
