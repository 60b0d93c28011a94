"""qcowdelta: the difference between two disk images.

The public names are loaded when they are first used, so that importing the package is cheap::

    from qcowdelta import AtomicOutput, BaseIdentity, ImageDelta, open_image
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "AtomicOutput": "output",
    "Backing": "qcow2.writer",
    "BaseIdentity": "identity",
    "ChangeKind": "delta",
    "Delta": "delta",
    "HostFile": "hostfile",
    "Image": "image",
    "ImageDelta": "diff",
    "OpenPolicy": "policy",
    "OverlayOptions": "overlay",
    "QcowDeltaError": "errors",
    "check_overlay": "verify",
    "describe": "info",
    "inspect_delta": "inspect",
    "open_image": "image",
    "write_overlay": "overlay",
}

if TYPE_CHECKING:
    from .delta import ChangeKind, Delta
    from .diff import ImageDelta
    from .errors import QcowDeltaError
    from .hostfile import HostFile
    from .identity import BaseIdentity
    from .image import Image, open_image
    from .info import describe
    from .inspect import inspect_delta
    from .output import AtomicOutput
    from .overlay import OverlayOptions, write_overlay
    from .policy import OpenPolicy
    from .qcow2.writer import Backing
    from .verify import check_overlay

__all__ = [
    "AtomicOutput",
    "Backing",
    "BaseIdentity",
    "ChangeKind",
    "Delta",
    "HostFile",
    "Image",
    "ImageDelta",
    "OpenPolicy",
    "OverlayOptions",
    "QcowDeltaError",
    "check_overlay",
    "describe",
    "inspect_delta",
    "open_image",
    "write_overlay",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
