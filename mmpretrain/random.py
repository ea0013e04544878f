"""Counter-based random numbers on any device.

``uniform(keys, stream, n)`` is a pure function of (key, stream, column): the same sample gets the same draws on whatever rank,
micro-batch or device it is processed. Keys come from the data plan (a hash of seed, epoch and global position); a stream is one
use of randomness (``stream("mlm/mask")``), so that two uses never share numbers. The mixer is SplitMix64 (Steele et al. 2014).
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX1 = 0xBF58476D1CE4E5B9
_MIX2 = 0x94D049BB133111EB


def _signed(value: int) -> int:
    value &= 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >= 1 << 63 else value


def stream(name: str) -> int:
    """A 63-bit number for a named use of randomness, the same in every process."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # logical, int64 shifts are arithmetic


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _signed(_MIX1)
    x = (x ^ _shift(x, 27)) * _signed(_MIX2)
    return x ^ _shift(x, 31)


def bits(keys_B: Tensor, stream: int, n: int) -> Tensor:
    """64 random bits: int64 (B, n)."""
    seed_B = _mix(keys_B ^ _signed(stream * _GOLDEN))
    steps_n = torch.arange(1, n + 1, device=keys_B.device, dtype=torch.int64) * _signed(_GOLDEN)
    return _mix(seed_B[:, None] + steps_n[None, :])


def uniform(keys_B: Tensor, stream: int, n: int) -> Tensor:
    """Uniform in [0, 1): float32 (B, n), 24 random bits each."""
    return _shift(bits(keys_B, stream, n), 40).to(torch.float32) * 2.0**-24


def integers(keys_B: Tensor, stream: int, n: int, high: int) -> Tensor:
    """Uniform in {0, ..., high - 1}: int64 (B, n). The bias is below high / 2^63."""
    return _shift(bits(keys_B, stream, n), 1) % high


def key_of(*values: int) -> int:
    """One signed 64-bit key of several integers (seed, epoch, position, ...), on the host."""
    state = 0
    for value in values:
        x = ((state ^ (value & _WORD)) + _GOLDEN) & _WORD
        x = ((x ^ (x >> 30)) * _MIX1) & _WORD
        x = ((x ^ (x >> 27)) * _MIX2) & _WORD
        state = x ^ (x >> 31)
    return _signed(state)
