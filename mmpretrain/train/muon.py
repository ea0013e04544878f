"""Muon for the matrices of a model, AdamW for all else, as one optimiser (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).

torch has a Muon too. It takes matrices alone, always computes in bf16, which CPUs without such instructions do
slowly, and turns a query-key-value projection as if it were one matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

QUINTIC = (3.4445, -4.7750, 2.0315)  # the published coefficients: five rounds bring every singular value to about 1
ROUNDS = 5


def orthogonal(x_KMN: Tensor) -> Tensor:
    """For each matrix U S V' about U V': singular values between about 0.7 and 1.2. bf16 on CUDA, fp32 on the CPU.

    Args:
        x_KMN: matrices of one shape, (K, M, N).
    """
    a, b, c = QUINTIC
    tall = x_KMN.shape[1] > x_KMN.shape[2]
    y = (x_KMN.mT if tall else x_KMN).to(torch.bfloat16 if x_KMN.is_cuda else torch.float32)
    y = y / y.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(ROUNDS):
        gram = y @ y.mT
        y = torch.baddbmm(y, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    return (y.mT if tall else y).to(x_KMN.dtype)


class Muon(torch.optim.AdamW):
    """Groups with ``parts`` > 0 are stepped by Muon, the others by AdamW.

    A matrix (M, N, ...) is flattened to (M, N * ...) and cut into ``parts`` along its rows (3: query, key and value). Its momentum
    (Nesterov) is made orthogonal and scaled by sqrt(max(1, rows / columns)); weight decay is decoupled. Sharded parameters are gathered
    for this, one at a time; every rank computes the same.

    Args:
        params: parameter groups; ``parts``, ``momentum``, ``lr`` and ``weight_decay`` may differ from group to group.
        momentum: of the matrices.
        settings: of AdamW.
    """

    def __init__(self, params: Any, momentum: float = 0.95, **settings: Any) -> None:
        super().__init__(params, **settings)
        for group in self.param_groups:
            group.setdefault("parts", 0)
            if group["parts"]:
                group.setdefault("momentum", momentum)
                group["fused"] = False  # so that the guard reads the step's numbers before it
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; what ``closure`` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group["parts"]]
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if group["parts"]:
                self._turn(group)
        return loss

    def _turn(self, group: dict[str, Any]) -> None:
        """The step of one group of matrices; those of one shape are multiplied together."""
        momentum, by_shape = group["momentum"], dict[torch.Size, list[tuple[Tensor, Tensor]]]()
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
                state["step"] = torch.zeros(())  # AdamW looks for it when states are loaded
            state["step"] += 1
            state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
            ahead = parameter.grad.lerp(state["momentum_buffer"], momentum)
            ahead = ahead.full_tensor() if isinstance(ahead, DTensor) else ahead
            by_shape.setdefault(ahead.shape, []).append((parameter, ahead))
        for shape, pairs in by_shape.items():
            cut_KMN = torch.stack([ahead for _, ahead in pairs]).view(len(pairs) * group["parts"], shape[0] // group["parts"], -1)
            scale = max(1.0, cut_KMN.shape[1] / cut_KMN.shape[2]) ** 0.5
            updates = orthogonal(cut_KMN).view(len(pairs), *shape)
            for (parameter, _), update in zip(pairs, updates, strict=True):
                if isinstance(parameter, DTensor):
                    update = distribute_tensor(update, parameter.device_mesh, parameter.placements)
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * scale)
