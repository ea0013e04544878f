"""The backward plan of adversarial training (VILLA, arXiv 2006.06195; "free" accumulation of its released code).

A micro-batch is corrupted once. After a clean forward come K forwards with a delta and as many backwards; the gradients of the
parameters add up, and that of the delta moves it for the next forward. The clean side of the divergence gets its gradient too. The
released code goes back through the clean graph in each of the K backwards; here gradients with respect to the clean logits are summed and
go back once, with the last backward: the same gradient for K - 1 backwards less.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mmpretrain.methods.adversarial import Adversarial, Delta, perturb, sample_norms, symmetric_kl
from mmpretrain.objectives.base import Objective, Scored
from mmpretrain.objectives.precision import wide
from mmpretrain.train import distributed
from mmpretrain.train.pretraining import Pretraining
from mmpretrain.train.step import PLANS, Backward, StepResult, Sums, corrupted, loss_factors, plain, result_of, weighted
from mmpretrain.types import Batch


def checked(method: Adversarial | None, backward: str, objectives: Mapping[str, Objective]) -> Adversarial | None:
    """Raise ValueError where a method does not go together with a backward plan or with the objectives."""
    if method is not None and backward != "plain":
        raise ValueError(f"model.adversarial goes with model.backward=plain, not {backward}: features of perturbed inputs are not cached")
    if method is not None:
        method.consistent(objectives, ())
    return method


def plan_of(backward: str, method: Adversarial | None, precision: Any) -> Callable[..., StepResult]:
    """The backward plan of a step. ``precision``: Lightning's plugin, whose loss scaler multiplies what ``backward`` is given."""
    if method is None or not method.enabled:
        return PLANS[backward]
    scaler = getattr(precision, "scaler", None)
    return partial(adversarial, method=method, scale=1.0 if scaler is None else scaler.get_scale())


class _Plan(NamedTuple):
    """What the micro-batches of a step have in common."""

    root: Pretraining
    method: Adversarial
    names: Sequence[str]
    aimed: tuple[str, ...]  # objectives that are scored on perturbed inputs
    consistent: tuple[str, ...]  # those whose predictions are held to the clean ones
    clean: tuple[str, ...]  # those with a clean term in the loss
    together: tuple[tuple[str, ...], ...]  # modalities that are perturbed in one forward
    scale: float  # of the loss, by fp16's scaler
    unit: float  # of the gradient of a delta: it does not depend on scaler and ranks once divided by it

    @property
    def passes(self) -> int:
        return self.method.steps * len(self.together)


def adversarial(
    root: Pretraining,
    batches: Sequence[Batch],
    names: Sequence[str],
    backward: Backward,
    reduction: Literal["global", "local"] = "global",
    *,
    method: Adversarial,
    scale: float = 1.0,
) -> StepResult:
    """Clean forward, K forwards and backwards with a delta for each micro-batch. A step without anything to perturb is a plain one.

    The losses of the result by objective are those of the clean forward; its total is what was minimised.

    Args:
        method: the settings.
        scale: factor that ``backward`` puts on the loss (fp16).

    Raises:
        ValueError: settings out of range, or the model does not read the delta.
    """
    method.check()
    aimed = tuple(name for name in names if root.objectives[name].perturbed)
    together = method.together(batches[0])
    if not aimed or not together:
        return plain(root, batches, names, backward, reduction)
    clean = tuple(names) if method.clean == "explicit" else tuple(name for name in names if name not in aimed)
    unit = scale * (distributed.world_size() if reduction == "global" else 1)
    plan = _Plan(root, method, names, aimed, method.consistent(root.objectives, names), clean, together, scale, unit)
    views = [corrupted(root, batch, names) for batch in batches]
    factors = loss_factors(root, views, names, reduction)
    sums, losses = Sums(), []
    for i in range(len(batches)):
        losses.append(_micro_batch(plan, views[i], factors[i], backward, i == len(batches) - 1, sums))
        views[i] = {}  # free the corrupted copies
    return result_of(losses, sums)


class _Clean:
    """The clean forward of a micro-batch."""

    def __init__(self, plan: _Plan, views: Mapping[str, Batch], factors: Mapping[str, Tensor], sums: Sums) -> None:
        self.attached = bool(plan.consistent) and not plan.method.detach_clean
        with nullcontext() if self.attached or plan.clean else torch.no_grad():
            outputs: dict[str, Scored] = plan.root(views, plan.names, "logits")
        for name, one in outputs.items():
            sums.add(name, one.score)
        self.scale = plan.scale
        self.logits = {name: wide(outputs[name].logits_RC) for name in plan.consistent}
        self.leaves = {name: x_RC.detach().requires_grad_(self.attached) for name, x_RC in self.logits.items()}
        zero = torch.zeros((), device=next(iter(views.values())).draw_keys_B.device)
        self.term: Tensor = zero + weighted({name: outputs[name].score for name in plan.clean}, factors)

    def reference(self, name: str, final: bool) -> Tensor:
        """Logits to be held to: in the final pass those of the graph, before it leaves that collect the gradient."""
        return self.logits[name] if final and self.attached else self.leaves[name]

    def rest(self) -> Tensor:
        """What the final backward carries beside the loss of its pass: the clean terms of the loss, and a scalar whose gradient is that
        of the passes before with respect to the clean logits. (The scaler scales it anew.)"""
        total = self.term
        for name, leaf_RC in self.leaves.items():
            if leaf_RC.grad is not None:
                total = total + (self.logits[name] * (leaf_RC.grad / self.scale)).sum()
        return total


def _micro_batch(plan: _Plan, views: dict[str, Batch], factors: Mapping[str, Tensor], backward: Backward, last: bool, sums: Sums) -> Tensor:
    """All passes of one micro-batch. Returns its loss, detached."""
    method, root = plan.method, plan.root
    clean = _Clean(plan, views, factors, sums)
    groups, spec = root.shared(views, plan.aimed), root.model.spec
    deltas = {m: tuple(method.start(views[g[0]], m, g, spec) for g in groups) for together in plan.together for m in together}
    total = clean.term.detach()
    for k in range(method.steps):
        for together in plan.together:
            final = k == method.steps - 1 and together == plan.together[-1]
            loss = _pass(plan, perturb(views, [delta for m in together for delta in deltas[m]]), clean, factors, final, sums)
            total = total + loss.detach()
            backward(loss + clean.rest() if final else loss, last and final)
            del loss  # before the next forward, so that two graphs are alive at most
            for m in together:
                gradients = [_gradient(plan, delta) for delta in deltas[m]]
                if k < method.steps - 1:
                    deltas[m] = tuple(method.ascend(*pair) for pair in zip(deltas[m], gradients, strict=True))
    for m, ones in deltas.items():
        for delta in ones:
            norms_B = sample_norms(delta.x_NW.detach(), delta.layout, method.norm)
            sums.add_stat(f"adversarial/delta_{m}", norms_B.sum(), torch.full_like(norms_B[0], delta.layout.size))
    return total


def _pass(plan: _Plan, views: dict[str, Batch], clean: _Clean, factors: Mapping[str, Tensor], final: bool, sums: Sums) -> Tensor:
    """One forward with deltas: its share of the loss.

    The views go in a proxy, which pytree does not open: FSDP hooks inputs that require a gradient, and would reduce the gradients of the
    root once for this forward and once for the clean one.
    """
    outputs: dict[str, Scored] = plan.root(MappingProxyType(views), plan.aimed, "logits")
    loss = weighted({name: one.score for name, one in outputs.items()}, factors)
    for name, (score, logits_RC) in outputs.items():
        sums.add_stat(f"{name}/adversarial_loss", score.sum, score.count)
        if name in plan.consistent:
            kl = symmetric_kl(clean.reference(name, final), logits_RC)
            loss = loss + plan.method.kl_weight * factors[name].to(kl.device) * kl
            sums.add_stat(f"{name}/kl", kl, score.count)
    return loss / plan.passes


def _gradient(plan: _Plan, delta: Delta) -> Tensor:
    gradient_NW = delta.x_NW.grad
    if gradient_NW is None:
        who = f"{', '.join(plan.aimed)} of {type(plan.root.model).__name__}"
        raise ValueError(f"model.adversarial: the loss of {who} does not depend on the {delta.modality} delta; choose another modality")
    return gradient_NW / plan.unit
