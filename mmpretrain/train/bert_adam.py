"""BertAdam: what BERT's first PyTorch release trained with (ViLBERT, LXMERT, VisualBERT, InterBERT).

Adam's moments without bias correction, so that the first steps are short; decoupled weight decay; and, where ``clip_each`` is set, the
gradient of every tensor scaled by itself to a norm of at most that much before it enters the moments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from mmpretrain.train import clip


class BertAdam(torch.optim.Optimizer):
    """m <- b1 m + (1 - b1) g, v <- b2 v + (1 - b2) g^2, p <- p - lr (m / (sqrt(v) + eps) + decay p).

    Args:
        params: parameters, or groups whose ``lr``, ``weight_decay`` and ``clip_each`` may differ.
        lr: rate.
        betas: b1 and b2.
        eps: added to the root of v.
        weight_decay: decay.
        clip_each: largest norm of the gradient of a tensor (sharded ones: of the whole tensor); None: no limit.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        clip_each: float | None = None,
    ) -> None:
        # fused=False: the guard reads the step's numbers before it
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "clip_each": clip_each, "fused": False}
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; what ``closure`` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._move(group, parameters)
        return loss

    def _move(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
        (beta1, beta2), lr = group["betas"], group["lr"]
        grads = [_local(p.grad) for p in parameters]
        if group["clip_each"] is not None:
            scales = [(group["clip_each"] / (norm + 1e-6)).clamp(max=1.0) for norm in clip.each_norm(parameters)]
            grads = [grad * scale for grad, scale in zip(grads, scales, strict=True)]
        means = [_local(self.state[p]["exp_avg"]) for p in parameters]
        squares = [_local(self.state[p]["exp_avg_sq"]) for p in parameters]
        torch._foreach_mul_(means, beta1)
        torch._foreach_add_(means, grads, alpha=1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, value=1 - beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_add_(roots, group["eps"])
        updates = torch._foreach_div(means, roots)
        own = [_local(p) for p in parameters]
        if group["weight_decay"]:
            torch._foreach_add_(updates, own, alpha=group["weight_decay"])
        torch._foreach_add_(own, updates, alpha=-lr)


def _local(tensor: Tensor | None) -> Any:
    """This rank's part of a sharded tensor, the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
