"""qcowdelta: the difference between two disk images.

The public names are loaded when they are first used, so that importing the package is cheap::

    from qcowdelta import AtomicOutput, BaseIdentity, ImageDelta, open_image
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

_HOMES = {
    "AtomicOutput": "output",
    "Attribution": "attribution.figures",
    "Attributor": "attribution.attribute",
    "Backing": "qcow2.writer",
    "BaseIdentity": "identity",
    "ChangeKind": "delta",
    "Delta": "delta",
    "DiskView": "live.view",
    "HostFile": "hostfile",
    "Image": "image",
    "ImageDelta": "diff",
    "ImageOptions": "fullimage",
    "Machine": "live.machine",
    "OpenPolicy": "policy",
    "OverlayOptions": "overlay",
    "PatchFile": "patch.container",
    "PatchOptions": "patch.write",
    "QcowDeltaError": "errors",
    "QmpSession": "qemu.qmp",
    "Secret": "secret",
    "ViewOptions": "live.view",
    "apply_patch": "patch.apply",
    "check_overlay": "verify",
    "clean_up": "live.cleanup",
    "composed": "patch.combine",
    "describe": "info",
    "drop_free": "dropfree",
    "inspect_delta": "inspect",
    "inverted": "patch.combine",
    "open_bitmap": "dirty",
    "open_image": "image",
    "open_patched": "patch.open",
    "spot_check": "spotcheck",
    "verify_patch": "patch.verify",
    "write_image": "fullimage",
    "write_overlay": "overlay",
    "write_patch": "patch.write",
    "__version__": "version",
}

if TYPE_CHECKING:
    from .attribution.attribute import Attributor
    from .attribution.figures import Attribution
    from .delta import ChangeKind, Delta
    from .diff import ImageDelta
    from .dirty import open_bitmap
    from .dropfree import drop_free
    from .errors import QcowDeltaError
    from .fullimage import ImageOptions, write_image
    from .hostfile import HostFile
    from .identity import BaseIdentity
    from .image import Image, open_image
    from .info import describe
    from .inspect import inspect_delta
    from .live.cleanup import clean_up
    from .live.machine import Machine
    from .live.view import DiskView, ViewOptions
    from .output import AtomicOutput
    from .overlay import OverlayOptions, write_overlay
    from .patch.apply import apply_patch
    from .patch.combine import composed, inverted
    from .patch.container import PatchFile
    from .patch.open import open_patched
    from .patch.verify import verify_patch
    from .patch.write import PatchOptions, write_patch
    from .policy import OpenPolicy
    from .qcow2.writer import Backing
    from .qemu.qmp import QmpSession
    from .secret import Secret
    from .spotcheck import spot_check
    from .verify import check_overlay
    from .version import __version__ as __version__

__all__ = [
    "AtomicOutput",
    "Attribution",
    "Attributor",
    "Backing",
    "BaseIdentity",
    "ChangeKind",
    "Delta",
    "DiskView",
    "HostFile",
    "Image",
    "ImageDelta",
    "ImageOptions",
    "Machine",
    "OpenPolicy",
    "OverlayOptions",
    "PatchFile",
    "PatchOptions",
    "QcowDeltaError",
    "QmpSession",
    "Secret",
    "ViewOptions",
    "apply_patch",
    "check_overlay",
    "clean_up",
    "composed",
    "describe",
    "drop_free",
    "inspect_delta",
    "inverted",
    "open_bitmap",
    "open_image",
    "open_patched",
    "spot_check",
    "verify_patch",
    "write_image",
    "write_overlay",
    "write_patch",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
