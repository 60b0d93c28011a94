"""What a decoder keeps in its temporary file: content is right also where that file is not."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from qcowdelta import PatchFile, open_image, open_patched
from qcowdelta.patch import decode
from qcowdelta.patch.layer import PatchLayer
from qcowdelta.threads import in_order
from tests.support import patches
from tests.support.commandline import ok
from tests.support.killing import LIMIT

MIB = 1 << 20
HALF = 6 * MIB


@pytest.mark.parametrize("damage", ["nothing", "other bytes", "cut off"])
def test_segment_that_others_refer_to_is_read_back_or_decoded_again(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, path = (tmp_path / name for name in ("old", "new", "x.qcpatch"))
    old.write_bytes(bytes(2 * HALF))
    content = np.random.default_rng(1).bytes(HALF) * 2  # the second half copies the first
    new.write_bytes(content)
    ok("diff", old, new, "-o", path, "-q")
    decoded = patches.decoded(monkeypatch)
    monkeypatch.setattr(decode, "_CACHE", 0)
    with open_patched(PatchFile.open(path), open_image(old, format="raw")) as image:
        layer = image.layers[0]
        assert isinstance(layer, PatchLayer)
        assert image.reader().read(HALF, HALF) == content[HALF:]
        spool = layer.decoder._spool._fd
        if damage == "other bytes":
            os.pwrite(spool, bytes(MIB), 0)
        elif damage == "cut off":
            os.ftruncate(spool, MIB // 2)
        decoded.clear()
        assert image.reader().read(0, MIB) == content[:MIB]
        assert decoded == ([] if damage == "nothing" else [0])


def test_calls_that_have_not_begun_are_cancelled_when_an_argument_fails() -> None:
    begun: list[int] = []
    busy = threading.Event()

    def arguments() -> Iterator[int]:
        yield from range(8)
        raise ValueError("no more")

    with ThreadPoolExecutor(1) as pool:
        blocked = pool.submit(busy.wait, LIMIT)
        with pytest.raises(ValueError, match="no more"):
            in_order(pool, begun.append, arguments(), 20)
        busy.set()
        assert blocked.result()
    assert begun == []
