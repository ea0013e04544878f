"""What the losses of dual encoders share: which features they read, which rows count, and the bounds of the logit scale."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmpretrain.nn.hidden import Paired
from mmpretrain.nn.misfit import Misfit
from mmpretrain.objectives.base import Objective
from mmpretrain.objectives.gather import Peers
from mmpretrain.objectives.precision import scalar
from mmpretrain.types import Batch, Score, Spec, Vocabulary


class PairedObjective(Objective):
    """Base of the losses over pairs of one image vector and one text vector.

    Args:
        scale_bounds: the logarithm of the logit scale is clamped to this interval after every optimiser step; None: never.
        weight, view, after, sources: see ``Objective``.
        only_if_matched: a pair that is known to be false is never a positive: its row does not count. Its text
            remains a negative for the others, so does its image in the softmax, which has a column for it.

    In evaluation nothing is exchanged between ranks (they may hold different numbers of batches): the loss is that of the batch alone.
    """

    kind: ClassVar[str] = "paired"

    def __init__(
        self,
        scale_bounds: tuple[float, float] | None = (0.0, 4.6052),
        *,
        weight: float = 1.0,
        view: str = "main",
        after: str | None = None,
        sources: tuple[str, ...] | None = None,
        only_if_matched: bool = True,
    ) -> None:
        super().__init__(weight=weight, view=view, after=after, sources=sources, only_if_matched=only_if_matched)
        if scale_bounds is not None and scale_bounds[0] > scale_bounds[1]:
            raise ValueError(f"{type(self).__name__}: scale_bounds={scale_bounds} must be (low, high)")
        self.scale_bounds = None if scale_bounds is None else (float(scale_bounds[0]), float(scale_bounds[1]))
        self.peers = Peers()

    def use_group(self, group: Any | None) -> None:
        """Exchange features within this process group only: the data-parallel group under tensor parallelism."""
        self.peers = Peers(group)

    def bind(self, spec: Spec, vocabulary: Vocabulary | None) -> None:
        if self.kind not in spec.kinds:
            raise ValueError(f"{self.name}: needs a model with the kind {self.kind!r}, this one has {', '.join(spec.kinds)}")

    def count(self, batch: Batch) -> Tensor:
        """Number of pairs of this rank that may be positives."""
        if self.only_if_matched and batch.matched_B is not None:
            return batch.matched_B.sum().float()
        return scalar(batch.size, batch.draw_keys_B.device)

    def features(self, hidden: Paired, batch: Batch | None = None) -> tuple[Tensor, ...]:
        """(image_BE, text_BE) and, where the batch says which pairs are true, counts_B: 1.0 for a true pair, 0.0 for a false one.

        Concatenate each of them over the micro-batches of a step and give them to ``loss_from_features``.
        """
        if hidden.image_BE is None or hidden.text_BE is None:
            raise Misfit(f"{self.name}: needs image and text features; name the sources that have both in `sources`")
        if not self.only_if_matched:
            return hidden.image_BE, hidden.text_BE
        if batch is None:
            raise ValueError(f"{self.name}: features(hidden, batch) needs the batch to know which pairs are true (only_if_matched)")
        if batch.matched_B is None:
            return hidden.image_BE, hidden.text_BE
        return hidden.image_BE, hidden.text_BE, batch.matched_B.to(hidden.image_BE.dtype)

    def forward(self, hidden: Paired, batch: Batch) -> Score:
        return self.loss_from_features(*self.features(hidden, batch), logit_scale=hidden.logit_scale, logit_bias=hidden.logit_bias)

    @abstractmethod
    def loss_from_features(
        self, image_BE: Tensor, text_BE: Tensor, counts_B: Tensor | None = None, *, logit_scale: Tensor, logit_bias: Tensor | None = None
    ) -> Score:
        """The loss of all pairs of this rank in the step. ``logit_scale``: (1,), a logarithm."""

    def after_step(self, model: nn.Module) -> None:
        """Clamp ``model.logit_scale`` in place; also where it is a DTensor."""
        if self.scale_bounds is None:
            return
        scale = getattr(model, "logit_scale", None)
        if not isinstance(scale, Tensor):
            raise ValueError(f"{self.name}: the model has no parameter `logit_scale` to clamp; set scale_bounds: null")
        with torch.no_grad():
            scale.clamp_(*self.scale_bounds)


def weighted(values_B: Tensor, counts_B: Tensor | None) -> Tensor:
    """Sum of the rows that count."""
    return values_B.sum() if counts_B is None else (values_B * counts_B).sum()


def add(scores: Iterable[Tensor]) -> Tensor:
    """Sum of scalars."""
    return torch.stack(list(scores)).sum()
