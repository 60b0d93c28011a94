"""The floor: read the data of some files, write so many bytes to another, and nothing else.

python -I -S floor.py OUTPUT BYTES INPUT...
"""

import os
import sys

BUFFER = 1 << 20


def read_data(path: str, buffer: bytearray) -> None:
    """Read what is not a hole, in long reads into one buffer."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    size = os.fstat(file).st_size
    position = 0
    view = memoryview(buffer)
    while position < size:
        try:
            position = os.lseek(file, position, os.SEEK_DATA)
        except OSError:  # ENXIO: a hole to the end
            break
        end = os.lseek(file, position, os.SEEK_HOLE)
        while position < end:
            position += os.preadv(file, [view[: min(BUFFER, end - position)]], position)
    os.close(file)


def write_data(path: str, length: int, buffer: bytearray) -> None:
    """Write so many bytes from memory, and have them on the disk."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    view = memoryview(buffer)
    while length > 0:
        length -= os.write(file, view[: min(BUFFER, length)])
    os.fsync(file)
    os.close(file)


def main(output: str, length: str, *inputs: str) -> None:
    """Do both, one after the other."""
    buffer = bytearray(BUFFER)
    for path in inputs:
        read_data(path, buffer)
    write_data(output, int(length), buffer)


if __name__ == "__main__":
    main(*sys.argv[1:])
