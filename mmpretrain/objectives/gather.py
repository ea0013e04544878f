"""Exchanging features between ranks, with gradients. The only user of ``torch.distributed`` among the objectives.

Every function is a plain copy when there is one rank. Every rank must bring the same number of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Peers:
    """The ranks that hold different samples of one step. Under tensor parallelism that is the data-parallel group, not the world.

    Args:
        group: a process group, or None for all ranks.
    """

    def __init__(self, group: Any | None = None) -> None:
        self.group = group

    def __deepcopy__(self, memo: dict[int, Any]) -> Peers:
        return self  # a process group cannot be copied, and copies of a module (EMA) talk to the same ranks

    @property
    def active(self) -> bool:
        return dist.is_available() and dist.is_initialized()

    @property
    def size(self) -> int:
        return dist.get_world_size(self.group) if self.active else 1

    @property
    def rank(self) -> int:
        return dist.get_rank(self.group) if self.active else 0

    def at(self, rank: int) -> int:
        """The global rank of a rank of the group."""
        return rank if self.group is None else dist.get_global_rank(self.group, rank)


class _Gather(torch.autograd.Function):
    """All-gather of rows; the backward sums the gradients of all ranks for the own rows (reduce-scatter)."""

    @staticmethod
    def forward(ctx: Any, x_BD: Tensor, peers: Peers) -> Tensor:
        ctx.peers, ctx.rows = peers, x_BD.shape[0]
        return all_rows(x_BD, peers)

    @staticmethod
    def backward(ctx: Any, grad_GD: Tensor) -> tuple[Tensor, None]:
        grad_BD = grad_GD.new_empty(ctx.rows, *grad_GD.shape[1:])
        dist.reduce_scatter_tensor(grad_BD, grad_GD.contiguous(), group=ctx.peers.group)
        return grad_BD, None


def all_rows(x_BD: Tensor, peers: Peers) -> Tensor:
    """The rows of all ranks in rank order, (W * B, D), without gradient."""
    if peers.size == 1:
        return x_BD.detach()
    x_GD = x_BD.new_empty(peers.size * x_BD.shape[0], *x_BD.shape[1:])
    dist.all_gather_into_tensor(x_GD, x_BD.detach().contiguous(), group=peers.group)
    return x_GD


def total(x: Tensor, peers: Peers) -> Tensor:
    """The sum over all ranks, without gradient."""
    x = x.detach().clone()
    if peers.size > 1:
        dist.all_reduce(x, group=peers.group)
    return x


def all_rows_with_grad(x_BD: Tensor, peers: Peers) -> Tensor:
    """The rows of all ranks in rank order, (W * B, D); gradients of all ranks flow back to their owner and are summed."""
    return x_BD if peers.size == 1 else _Gather.apply(x_BD, peers)


def _neighbours(sends: tuple[tuple[Tensor, int], ...], sources: tuple[int, ...], peers: Peers) -> tuple[Tensor, ...]:
    """Send each tensor to its rank and receive one tensor of the same shape from each source, all at once."""
    received = tuple(torch.empty_like(x) for x, _ in sends)
    operations = []
    for tag, ((x, target), y, source) in enumerate(zip(sends, received, sources, strict=True)):
        operations.append(dist.P2POp(dist.isend, x.contiguous(), peers.at(target), group=peers.group, tag=tag))
        operations.append(dist.P2POp(dist.irecv, y, peers.at(source), group=peers.group, tag=tag))
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    return received


class _Shift(torch.autograd.Function):
    """Pass ``x`` one rank to the right; gradients travel one rank to the left."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, peers: Peers) -> Tensor:
        ctx.peers = peers
        left, right = (peers.rank - 1) % peers.size, (peers.rank + 1) % peers.size
        return _neighbours(((x, right),), (left,), peers)[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        peers = ctx.peers
        left, right = (peers.rank - 1) % peers.size, (peers.rank + 1) % peers.size
        return _neighbours(((grad, left),), (right,), peers)[0], None


class _ShiftBoth(torch.autograd.Function):
    """Pass ``x`` to the right and ``y`` to the left in one exchange; gradients travel back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, peers: Peers) -> tuple[Tensor, Tensor]:
        ctx.peers = peers
        left, right = (peers.rank - 1) % peers.size, (peers.rank + 1) % peers.size
        from_left, from_right = _neighbours(((x, right), (y, left)), (left, right), peers)
        return from_left, from_right

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor, None]:
        peers = ctx.peers
        left, right = (peers.rank - 1) % peers.size, (peers.rank + 1) % peers.size
        from_right, from_left = _neighbours(((grad_x, left), (grad_y, right)), (right, left), peers)
        return from_right, from_left, None


def ring(x_BD: Tensor, peers: Peers) -> Iterator[Tensor]:
    """The rows of every other rank, one rank at a time, with gradient: W - 1 exchanges with the neighbours."""
    for _ in range(peers.size - 1):
        x_BD = _Shift.apply(x_BD, peers)
        yield x_BD


def ring_bidirectional(x_BD: Tensor, peers: Peers) -> Iterator[Tensor]:
    """As ``ring``, but both ways at once: about (W - 1) / 2 exchanges, each of twice the size."""
    steps, rest = divmod(peers.size - 1, 2)
    from_left = from_right = x_BD
    for _ in range(steps):
        from_left, from_right = _ShiftBoth.apply(from_left, from_right, peers)
        yield from_left
        yield from_right
    if rest:
        yield _Shift.apply(from_left, peers)
