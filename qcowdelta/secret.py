"""A secret that opens encrypted images: never shown, never on a command line."""

from __future__ import annotations

import base64

from .errors import OptionError, PathName, printable

_LONGEST = 64 << 10


class Secret:
    """What opens an encrypted image. Its content is in no text that the object gives."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    @classmethod
    def read(cls, path: PathName) -> Secret:
        """Take all of a file as the secret, a newline at its end too, as qemu-img does.

        The file may be a pipe.

        Raises:
            OptionError: it is empty, or too long to be a secret.
            OSError: it cannot be read.
        """
        with open(path, "rb") as file:
            content = file.read(_LONGEST + 1)
        if not content or len(content) > _LONGEST:
            raise OptionError(f"{printable(path)}: a secret has 1 to {_LONGEST} bytes")
        return cls(content)

    @property
    def base64(self) -> str:
        """The secret as QEMU takes it in a message."""
        return base64.b64encode(self._content).decode("ascii")

    @property
    def number(self) -> int:
        """A number that tells two secrets apart, in this process only."""
        return hash(self._content)

    def remark(self, said: str) -> str:
        """Return what to add to what QEMU said, where it may be a newline that it refused."""
        if "Invalid password" not in said or not self._content.endswith(b"\n"):
            return ""
        return (
            "; the secret ends in a newline, which is a part of it: where that is not meant, write "
            "its file by 'printf %s'"
        )

    def __repr__(self) -> str:
        return "Secret(...)"
