"""Random draws of the data path on the host: every one is keyed by (seed, epoch, position) and the name of its use."""

from __future__ import annotations

import functools

import numpy as np

from mmpretrain.random import key_of, stream

_WORD = (1 << 64) - 1
_GOLDEN, _MIX1, _MIX2 = (np.uint64(value) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))

_stream = functools.lru_cache(1024)(stream)


def generator(*values: int, name: str) -> np.random.Generator:
    """A counter-based generator keyed by integers and the name of its use."""
    return np.random.Generator(np.random.Philox(key=np.array([key_of(*values) & _WORD, _stream(name)], dtype=np.uint64)))


def seed_of(seed: int, name: str) -> int:
    """The seed of a named part of a run: 62 bits."""
    return key_of(seed, _stream(name)) & ((1 << 62) - 1)


def keys(seed: int, epoch: int, positions: np.ndarray) -> np.ndarray:
    """``random.key_of(seed, epoch, position)`` of many positions at once: uint64."""
    state = np.zeros(1, dtype=np.uint64)
    for value in (seed, epoch):
        state = _absorb(state, np.asarray([value & _WORD], dtype=np.uint64))
    return _absorb(state, np.asarray(positions, dtype=np.int64).astype(np.uint64))


def drawn(keys: np.ndarray, below: np.ndarray, name: str) -> np.ndarray:
    """One draw per key, uniform in {0, ..., below - 1} (at least one choice each): int64."""
    mixed = _absorb(keys, np.asarray([_stream(name)], dtype=np.uint64)) >> np.uint64(1)
    return (mixed % np.maximum(below, 1).astype(np.uint64)).astype(np.int64)


def _absorb(state: np.ndarray, value: np.ndarray) -> np.ndarray:
    x = (state ^ value) + _GOLDEN  # arrays of uint64 wrap around
    x = (x ^ (x >> np.uint64(30))) * _MIX1
    x = (x ^ (x >> np.uint64(27))) * _MIX2
    return x ^ (x >> np.uint64(31))
