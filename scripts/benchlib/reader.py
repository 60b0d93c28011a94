"""Read all of a disk's data as a comparison does, and nothing else: IMAGE FORMAT OUTPUT [SECRET].

OUTPUT gets the number of bytes that were read and, where the environment asks for it, a digest
of all that is no zeros.
"""

import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from blake3 import blake3

from qcowdelta import Image, OpenPolicy, open_image
from qcowdelta.extents import Extents, Kind, cut_at, multiples_inside
from qcowdelta.secret import Secret
from qcowdelta.threads import in_order
from qcowdelta.units import MIB, usable_cpus

WANTS_DIGEST = "QCOWDELTA_BENCH_DIGEST"
WINDOW, PIECE, AHEAD = 64 * MIB, MIB, 32


def pieces(image: Image) -> Iterator[Extents]:
    position = image.next_mapped(0)
    while position < image.size:
        stop = min(position - position % WINDOW + WINDOW, image.size)
        rows = image.extents(position, stop)
        rows = rows[rows["kind"] != Kind.ZERO]
        rows = cut_at(rows, multiples_inside(rows["start"], rows["length"], PIECE))
        number = rows["start"] // PIECE
        for _, group in ((n, rows[number == n]) for n in np.unique(number)):
            yield group
        position = image.next_mapped(stop) if stop < image.size else stop


def _nonzero(view: memoryview) -> bytes:
    sectors = np.frombuffer(view, np.uint64).reshape(-1, 64)
    return sectors[sectors.any(axis=1)].tobytes()


def main() -> None:
    path, fmt, output, *secret = sys.argv[1:]
    policy = OpenPolicy(secret=Secret.read(secret[0]) if secret else None)
    own = threading.local()
    digest = blake3() if os.environ.get(WANTS_DIGEST) else None
    with open_image(path, format=fmt, policy=policy) as image:

        def read(rows: Extents) -> tuple[int, bytes]:
            if not hasattr(own, "reader"):
                own.reader, own.buffer = image.reader(), memoryview(bytearray(PIECE))
            view = own.buffer[: int(rows["length"].sum())]
            own.reader.read_extents(rows, view)
            # Formats differ in what they know to be zeros: a digest is of sectors that are none.
            return len(view), _nonzero(view) if digest else b""

        total = 0
        with ThreadPoolExecutor(usable_cpus()) as pool:
            for length, content in in_order(pool, read, pieces(image), AHEAD):
                total += length
                if digest:
                    digest.update(content)
    Path(output).write_text(f"{total} {digest.hexdigest() if digest else ''}\n")


if __name__ == "__main__":
    main()
