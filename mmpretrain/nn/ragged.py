"""Packed batches: the valid tokens of all samples one after another, so that no linear layer ever sees padding.

A ``Layout`` is the table of lengths; a ``Ragged`` is a tensor of packed rows with its layout. Index tables are built on
the host from Python ints and cached per device, so that a layout shared by many layers costs one copy and no synchronisation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Layout:
    """Which packed row belongs to which sample and slot.

    Args:
        lengths: tokens of each sample, each at least 0.
    """

    def __init__(self, lengths: tuple[int, ...]) -> None:
        self.lengths = tuple(int(n) for n in lengths)
        self.total = sum(self.lengths)
        self.max_len = max(self.lengths, default=0)
        self.uniform = len(set(self.lengths)) <= 1
        self._host: dict[str, np.ndarray] = {}
        self._device: dict[tuple[str, torch.device], Tensor] = {}

    @property
    def size(self) -> int:
        """Number of samples."""
        return len(self.lengths)

    @property
    def starts(self) -> np.ndarray:
        """First packed row of each sample, and the total: int64 (B + 1,)."""
        if "starts" not in self._host:
            self._host["starts"] = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)]).astype(np.int64)
        return self._host["starts"]

    def _table(self, name: str, build: Callable[[], np.ndarray], device: torch.device) -> Tensor:
        key = (name, device)
        if key not in self._device:
            if name not in self._host:
                self._host[name] = build()
            self._device[key] = torch.from_numpy(self._host[name]).to(device, non_blocking=True)
        return self._device[key]

    def sample_N(self, device: torch.device) -> Tensor:
        """Sample of each packed row, int64 (N,)."""
        return self._table("sample", lambda: np.repeat(np.arange(self.size, dtype=np.int64), self.lengths), device)

    def slot_N(self, device: torch.device) -> Tensor:
        """Slot within its sample of each packed row, int64 (N,)."""
        build = lambda: np.arange(self.total, dtype=np.int64) - np.repeat(self.starts[:-1], self.lengths)
        return self._table("slot", build, device)

    def flat_N(self, device: torch.device) -> Tensor:
        """Row of each packed token in the padded (B * max_len) grid, int64 (N,)."""

        def build() -> np.ndarray:
            sample = np.repeat(np.arange(self.size, dtype=np.int64), self.lengths)
            return sample * self.max_len + (np.arange(self.total, dtype=np.int64) - np.repeat(self.starts[:-1], self.lengths))

        return self._table("flat", build, device)

    def first_B(self, device: torch.device) -> Tensor:
        """Packed row of the first token of each sample, int64 (B,)."""
        return self._table("first", lambda: self.starts[:-1].copy(), device)

    def last_B(self, device: torch.device) -> Tensor:
        """Packed row of the last token of each sample, int64 (B,)."""
        return self._table("last", lambda: self.starts[1:] - 1, device)

    def mask_BL(self, device: torch.device) -> Tensor:
        """True where a slot of the padded grid holds a token, bool (B, max_len)."""
        return self._table("mask", lambda: np.arange(self.max_len)[None, :] < np.asarray(self.lengths)[:, None], device)

    def cumulative_B1(self, device: torch.device) -> Tensor:
        """Cumulative lengths for variable-length kernels, int32 (B + 1,)."""
        return self._table("cumulative", lambda: self.starts.astype(np.int32), device)

    def pad(self, x_ND: Tensor, value: float = 0.0) -> Tensor:
        """Packed (N, ...) -> padded (B, max_len, ...)."""
        shape = (self.size, self.max_len, *x_ND.shape[1:])
        if self.uniform:
            return x_ND.reshape(shape)
        rows = (self.size * self.max_len, *x_ND.shape[1:])
        if value == 0 and x_ND.is_floating_point():  # the rows are distinct; adding to zeros is the faster kernel on the CPU
            return x_ND.new_zeros(rows).index_add_(0, self.flat_N(x_ND.device), x_ND).view(shape)
        return x_ND.new_full(rows, value).index_copy_(0, self.flat_N(x_ND.device), x_ND).view(shape)

    def pack(self, x_BLD: Tensor) -> Tensor:
        """Padded (B, max_len, ...) -> packed (N, ...). Slots beyond ``max_len`` are dropped."""
        x_BLD = x_BLD[:, : self.max_len]
        flat = x_BLD.reshape(self.size * self.max_len, *x_BLD.shape[2:])
        return flat if self.uniform else flat.index_select(0, self.flat_N(x_BLD.device))


class Ragged(NamedTuple):
    """Packed rows (N, D) with their layout."""

    x_ND: Tensor
    layout: Layout

    def pad(self) -> Tensor:
        """(B, max_len, D), zeros where there is no token."""
        return self.layout.pad(self.x_ND)


def interleave(first: Layout, second: Layout, device: torch.device) -> tuple[Layout, Tensor, Tensor]:
    """The layout of ``[first; second]`` per sample.

    Returns:
        the joint layout, and for the packed rows of ``first`` and of ``second`` their packed rows in the joint one.
    """
    joint = Layout(tuple(a + b for a, b in zip(first.lengths, second.lengths, strict=True)))
    shift_first = joint.starts[:-1] - first.starts[:-1]
    shift_second = joint.starts[:-1] + np.asarray(first.lengths, dtype=np.int64) - second.starts[:-1]
    rows_first = np.arange(first.total, dtype=np.int64) + np.repeat(shift_first, first.lengths)
    rows_second = np.arange(second.total, dtype=np.int64) + np.repeat(shift_second, second.lengths)
    return joint, torch.from_numpy(rows_first).to(device), torch.from_numpy(rows_second).to(device)


def join(first: Ragged, second: Ragged) -> tuple[Ragged, Tensor, Tensor]:
    """``[first; second]`` per sample, in the type of ``first``.

    Returns:
        the joint rows, and for the packed rows of ``first`` and of ``second`` their packed rows in them.
    """
    device, n = first.x_ND.device, first.layout.total
    joint, rows_first, rows_second = interleave(first.layout, second.layout, device)
    order_N = torch.empty(joint.total, dtype=torch.int64, device=device)
    order_N[rows_first] = torch.arange(n, device=device)
    order_N[rows_second] = torch.arange(n, joint.total, device=device)
    x_ND = torch.cat([first.x_ND, second.x_ND.to(first.x_ND.dtype)]).index_select(0, order_N)
    return Ragged(x_ND, joint), rows_first, rows_second
