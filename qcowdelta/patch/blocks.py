"""What blocks are found by: a hash for equal ones, features for similar ones.

Neither proves anything; whoever finds a block by them compares content.
"""

from __future__ import annotations

import threading
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..units import KIB, MIB

BLOCK = 4 * KIB

Blocks: TypeAlias = npt.NDArray[np.uint8]
"""Content, shape (blocks, 4096), contiguous."""
Keys: TypeAlias = npt.NDArray[np.uint64]
Features: TypeAlias = npt.NDArray[np.uint32]

# Long calls: two threads with short ones would queue for the interpreter.
_CHUNK = MIB
_WORD = 4
_A, _B, _C, _D = (np.uint32(n) for n in (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F))


def _weights() -> Keys:
    """Return one odd multiplier for each word of a block, always the same ones."""
    state = np.arange(1, BLOCK // 8 + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    weights: Keys = (state ^ (state >> np.uint64(31))) | np.uint64(1)
    return weights


_WEIGHTS = _weights()


def block_keys(blocks: Blocks) -> Keys:
    """Return a 64-bit hash of each block; 0 is that of zeros."""
    keys: Keys = blocks.view(np.uint64) @ _WEIGHTS
    # The low bits of a sum of products see only the low bits of the words.
    keys ^= keys >> np.uint64(32)
    return keys


class _Scratch(threading.local):
    """Each thread's buffers: fresh ones would cost more in page faults than the work."""

    def __init__(self) -> None:
        self.words = np.zeros(_CHUNK // _WORD + 4, np.uint32)
        self.pairs = np.empty_like(self.words)
        self.mixed = np.empty_like(self.words)
        self.shifted = np.zeros(_CHUNK + 8 * _WORD, np.uint8)


_scratch = _Scratch()


def features(blocks: Blocks, per: int) -> Features:
    """Return the features of blocks: one for each ``per`` bytes, shape (blocks, 4096 / per).

    A feature is the largest hash of the windows of 16 bytes that begin in these bytes, at any
    offset: two blocks that share a longer stretch, however shifted, are likely to share one.
    """
    out = np.empty((blocks.shape[0], BLOCK // per), np.uint32)
    step = _CHUNK // BLOCK
    for i in range(0, blocks.shape[0], step):
        _features(blocks[i : i + step].reshape(-1), out[i : i + step].reshape(-1), per)
    return out


def _features(data: Blocks, out: Features, per: int) -> None:
    padded = _scratch.shifted
    padded[: data.size] = data
    padded[data.size : data.size + 8 * _WORD] = 0
    count = data.size // _WORD
    for shift in range(_WORD):
        words = np.frombuffer(padded.data, np.uint32, count + 3, shift)
        largest = _window_hashes(words).reshape(-1, per // _WORD).max(axis=1)
        if shift == 0:
            out[:] = largest
        else:
            np.maximum(out, largest, out=out)


def _window_hashes(words: Features) -> Features:
    """Return a hash of each four words in a row: twice two neighbours are mixed into one."""
    n = words.size
    one, two, tmp = _scratch.words[:n], _scratch.pairs[: n - 1], _scratch.mixed[:n]
    np.multiply(words, _A, out=one)
    np.right_shift(one, np.uint32(15), out=tmp)
    np.bitwise_xor(one, tmp, out=one)
    np.multiply(one[:-1], _B, out=two)
    np.add(two, one[1:], out=two)
    np.right_shift(two, np.uint32(13), out=tmp[: n - 1])
    np.bitwise_xor(two, tmp[: n - 1], out=two)
    four = tmp[: n - 3]
    np.multiply(two[:-2], _C, out=four)
    np.add(four, two[2:], out=four)
    return np.multiply(four, _D, out=four)
