"""Gradient norms and clipping that are right for plain tensors, for sharded ones and for mixtures of meshes.

torch's own clipper fails when plain tensors and DTensors, or DTensors of two meshes, meet, and returns a partial norm for sharded
gradients. Here the total is a plain tensor, equal on every rank, safe to log and to decide upon.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def _by_mesh(parameters: Iterable[Tensor]) -> list[list[Tensor]]:
    groups: dict[Any, list[Tensor]] = {}
    for parameter in parameters:
        grad = parameter.grad
        if grad is not None:
            key = (id(grad.device_mesh) if isinstance(grad, DTensor) else None, grad.device)
            groups.setdefault(key, []).append(parameter)
    return list(groups.values())


def _full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def total_norm(parameters: Iterable[Tensor]) -> Tensor:
    """The 2-norm of all gradients together, a plain scalar tensor; 0 when there is none."""
    parameters = list(parameters)
    norms = [_full(torch.nn.utils.get_total_norm([p.grad for p in group])) for group in _by_mesh(parameters)]
    if not norms:
        return torch.zeros((), device=parameters[0].device if parameters else None)
    return torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))


@torch.no_grad()
def each_norm(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The 2-norm of the gradient of each parameter, plain scalar tensors in their order, equal on every rank; every one has a gradient."""
    parameters = list(parameters)
    found: dict[int, Tensor] = {}
    for group in _by_mesh(parameters):
        norms_P = _full(torch.stack(torch._foreach_norm([p.grad for p in group])))
        found |= {id(p): norm for p, norm in zip(group, norms_P.unbind(), strict=True)}
    return [found[id(p)] for p in parameters]


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], limit: float, norm: Tensor, algorithm: Literal["norm", "value"] = "norm") -> None:
    """Scale gradients in place.

    Args:
        limit: largest norm, or largest absolute value.
        norm: the total norm, from ``total_norm``; used by ``norm``.
    """
    for group in _by_mesh(parameters):
        if algorithm == "norm":
            torch.nn.utils.clip_grads_with_norm_(group, limit, norm)
        else:
            for parameter in group:
                parameter.grad.clamp_(-limit, limit)
