"""The backward plans of one optimiser step: its micro-batches in, accumulated gradients and exact sums out.

The loss of an objective is weight * sum / count with the count taken over all micro-batches of the step and all ranks, so that the
gradient does not depend on how a global batch is cut. Data-parallel wrappers average gradients over ranks, hence the factor
``world``. Counts are known before the forward (``Objective.count``), so one small collective per step suffices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mmpretrain.train import distributed
from mmpretrain.train.pretraining import Features, Pretraining, can_cache
from mmpretrain.types import Batch, Score

Backward = Callable[[Tensor, bool], None]  # (loss, whether it is the last backward of the step)


class StepResult(NamedTuple):
    """Sums of this rank, detached; means are exact after a sum over ranks."""

    loss: Tensor  # this rank's share: the mean over ranks is the loss of the step
    losses: dict[str, tuple[Tensor, Tensor]]  # objective -> (sum, count)
    stats: dict[str, tuple[Tensor, Tensor]]  # objective/stat -> (sum, count)
    finite_K: Tensor  # bool: whether the loss of each micro-batch is finite


class Sums:
    """Adds up scores of micro-batches without touching the host."""

    def __init__(self) -> None:
        self.losses: dict[str, tuple[Tensor, Tensor]] = {}
        self.stats: dict[str, tuple[Tensor, Tensor]] = {}

    @staticmethod
    def _add(table: dict[str, tuple[Tensor, Tensor]], name: str, total: Tensor, count: Tensor) -> None:
        pair = (total.detach().float(), torch.as_tensor(count, device=total.device).detach().float())
        table[name] = pair if name not in table else (table[name][0] + pair[0], table[name][1] + pair[1])

    def add(self, name: str, score: Score) -> None:
        self._add(self.losses, name, score.sum, score.count)
        for stat, (total, count) in score.stats.items():
            self.add_stat(f"{name}/{stat}", torch.as_tensor(total), count)

    def add_stat(self, name: str, total: Tensor, count: Tensor) -> None:
        self._add(self.stats, name, total, count)


def corrupted(root: Pretraining, batch: Batch, names: Sequence[str]) -> dict[str, Batch]:
    """The views of a micro-batch; through ``forward`` where that needs the model, so that sharded parameters are gathered."""
    if root.chained:
        with torch.no_grad():
            return root(batch, names, "corrupt")
    return root.corrupt(batch, names)


def loss_factors(
    root: Pretraining, views: Sequence[dict[str, Batch]], names: Sequence[str], reduction: Literal["global", "local"]
) -> list[dict[str, Tensor]]:
    """The factor of each objective's sum in the loss, for every micro-batch: weight * world / count of the step, or
    weight / (micro-batches * count of the micro-batch) for ``local``. An objective without a term has the factor ``weight``."""
    counts = [root.counts(v, names) for v in views]
    weights = {name: float(root.objectives[name].weight) for name in names}
    if reduction == "local":
        return [{n: weights[n] / _or_one(c[n]) / len(views) for n in names} for c in counts]
    total_O = torch.stack([torch.stack([c[n] for c in counts]).sum() for n in names])
    distributed.sum_(total_O)
    factors = {n: weights[n] * distributed.world_size() / total for n, total in zip(names, _or_one(total_O), strict=True)}
    return [factors] * len(views)


def _or_one(count: Tensor) -> Tensor:
    """Counts to divide by: 1 where there is no term."""
    return torch.where(count > 0, count, 1)


def plain(
    root: Pretraining, batches: Sequence[Batch], names: Sequence[str], backward: Backward, reduction: Literal["global", "local"] = "global"
) -> StepResult:
    """Forward and backward of each micro-batch in turn."""
    views = [corrupted(root, batch, names) for batch in batches]
    factors = loss_factors(root, views, names, reduction)
    sums, losses = Sums(), []
    for i in range(len(batches)):
        scores: dict[str, Score] = root(views[i], names)
        loss = weighted(scores, factors[i])
        backward(loss, i == len(batches) - 1)
        losses.append(loss.detach())
        for name, score in scores.items():
            sums.add(name, score)
        views[i] = {}  # free the corrupted copies
    return result_of(losses, sums)


def cached(
    root: Pretraining, batches: Sequence[Batch], names: Sequence[str], backward: Backward, reduction: Literal["global", "local"] = "global"
) -> StepResult:
    """Contrastive losses over all samples of the step with the memory of one micro-batch (Gao et al. 2021, arXiv:2101.06983).

    First features without gradients, then the loss and its gradient with respect to all features, then a second forward of each
    micro-batch with the same random state, whose backward starts from the saved feature gradients. Other objectives take part in
    the second forward as in ``plain``.

    Raises:
        ValueError: none of the objectives can be cached.
    """
    held = [name for name in names if can_cache(root.objectives[name])]
    if not held:
        if not any(can_cache(one) for one in root.objectives.values()):
            raise ValueError("backward='cached' needs a contrastive objective; use backward='plain'")
        return plain(root, batches, names, backward, reduction)  # a step whose source or task has none
    views = [corrupted(root, batch, names) for batch in batches]
    factors = loss_factors(root, views, names, reduction)
    states, parts = [], []
    for v in views:
        states.append(random_state())
        with torch.no_grad():
            parts.append(root(v, held, "features"))
    sums, head_loss = Sums(), torch.zeros((), device=batches[0].draw_keys_B.device)
    grads: dict[str, Features] = {}
    for name in held:
        loss, score, grads[name] = _feature_gradients(root, name, [p[name] for p in parts], factors[0][name], reduction)
        head_loss = head_loss + loss
        sums.add(name, score)
    del parts
    losses, start = [], 0
    for i, batch in enumerate(batches):
        restore_random_state(states[i])
        outputs = root(views[i], names, "features")
        scores = {name: value for name, value in outputs.items() if isinstance(value, Score)}
        loss = weighted(scores, factors[i])
        last = i == len(batches) - 1
        surrogate = sum((_surrogate(outputs[n], grads[n], start, last) for n in held), start=loss)
        backward(surrogate, last)
        losses.append(torch.as_tensor(loss).detach() + (head_loss if last else torch.zeros_like(head_loss)))  # 0 where there is no other
        for name, score in scores.items():
            sums.add(name, score)
        start += batch.size
        views[i] = {}
    return result_of(losses, sums)


def _feature_gradients(
    root: Pretraining, name: str, parts: Sequence[Features], factor: Tensor, reduction: str
) -> tuple[Tensor, Score, Features]:
    objective: Any = root.objectives[name]
    leaves = [torch.cat(columns).detach().requires_grad_() for columns in zip(*(p.values for p in parts), strict=True)]
    scale = parts[0].logit_scale.detach().clone().requires_grad_()
    bias = None if parts[0].logit_bias is None else parts[0].logit_bias.detach().clone().requires_grad_()
    score = objective.loss_from_features(*leaves, logit_scale=scale, logit_bias=bias)
    loss = score.sum * (objective.weight / _or_one(score.count) if reduction == "local" else factor)
    loss.backward()
    grads = Features(tuple(_grad(leaf) for leaf in leaves), _grad(scale), None if bias is None else _grad(bias))
    return loss.detach(), score, grads


def _grad(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _surrogate(features: Features, grads: Features, start: int, last: bool) -> Tensor:
    """A scalar whose gradient is that of the real loss: sum of features times their saved gradients. The scale and the bias of the
    logits enter once in the step, with the last micro-batch."""
    pairs = zip(features.values, grads.values, strict=True)
    total = sum((value.float() * grad[start : start + len(value)].float()).sum() for value, grad in pairs)
    share = 1.0 if last else 0.0
    total = total + share * (features.logit_scale * grads.logit_scale).sum()
    if features.logit_bias is not None and grads.logit_bias is not None:
        total = total + share * (features.logit_bias * grads.logit_bias).sum()
    return total


def weighted(scores: Mapping[str, Score], factors: Mapping[str, Tensor]) -> Any:
    """The loss of a micro-batch."""
    return sum(score.sum.float() * factors[name].to(score.sum.device) for name, score in scores.items())


def result_of(losses: Sequence[Tensor], sums: Sums) -> StepResult:
    """Of the losses of the micro-batches."""
    losses_K = torch.stack([torch.as_tensor(loss).float() for loss in losses])
    return StepResult(losses_K.sum(), sums.losses, sums.stats, torch.isfinite(losses_K))


def random_state() -> tuple[Tensor, Tensor | None]:
    """State of torch's generators: CPU, and the present CUDA device where there is one."""
    on_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    return torch.get_rng_state(), torch.cuda.get_rng_state() if on_cuda else None


def restore_random_state(state: tuple[Tensor, Tensor | None]) -> None:
    """Undo what was drawn since ``random_state``."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])


PLANS = {"plain": plain, "cached": cached}
