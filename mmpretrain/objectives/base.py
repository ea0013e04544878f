"""The contract of an objective: it owns its worker preparation, corruption, head, loss and metrics, and nothing else knows them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from mmpretrain.types import Batch, Preparer, Score, Spec, Vocabulary


class Objective(nn.Module, ABC):
    """Base of every pre-training objective.

    One step, for the objectives of one view: ``corrupt`` in the order of the recipe, one forward of the model with ``kind``,
    then ``forward`` of each. The loss is weight * sum / count with the count taken over all ranks and micro-batches of the step.

    Args:
        weight: factor of this loss in the total; really multiplies.
        view: objectives with the same view share one corrupted batch and one forward of the model.
        after: the view whose output ``corrupt`` reads, or None.
        sources: names of the data sources it applies to; None for all.
        only_if_matched: leave out samples whose text is not true of their image.
    """

    kind: ClassVar[str]  # the kind of hidden states it reads
    perturbed: ClassVar[bool] = True  # adversarial training scores it on perturbed inputs; False: on clean ones alone
    exchanges: ClassVar[bool] = False  # puts other pictures or texts to samples, and labels them by that: once in a view

    def __init__(
        self,
        *,
        weight: float = 1.0,
        view: str = "main",
        after: str | None = None,
        sources: tuple[str, ...] | None = None,
        only_if_matched: bool = False,
    ) -> None:
        super().__init__()
        self.weight, self.view, self.after = weight, view, after
        self.sources, self.only_if_matched = sources, only_if_matched
        self.name = type(self).__name__.lower()  # the root sets the key of the recipe

    def preparer(self) -> Preparer | None:
        """The worker's half, or None. Never a bound method: it must pickle without the head."""
        return None

    def bind(self, spec: Spec, vocabulary: Vocabulary | None) -> None:
        """Build and tie the head. Raises ValueError where the model or the tokenizer lacks what the objective needs."""

    def connect(self, objectives: Mapping[str, nn.Module]) -> None:
        """Called once all objectives of a recipe are bound: take what another one lends, by its name there. Raises ValueError where it
        does not exist."""

    def corrupt(self, batch: Batch, outputs: Mapping[str, Any]) -> Batch:
        """The batch of this view. ``outputs``: hidden states of the views named by ``after``. Draws are keyed by ``batch.draw_keys_B``."""
        return batch

    @abstractmethod
    def count(self, batch: Batch) -> Tensor:
        """The denominator of the mean on the corrupted batch: a float scalar, known before the forward."""

    @abstractmethod
    def forward(self, hidden: Any, batch: Batch) -> Score: ...

    def after_step(self, model: nn.Module) -> None:
        """Called after each optimiser step under no_grad (clamps and the like)."""

    def pooled(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Statistics that are no means over samples, such as the perplexity of all codes of a step: of what ``forward`` saw since the last
        call, over all ranks, as (value, 1). Called on every rank after each optimiser step and after the last batch of a validation set."""
        return {}


@runtime_checkable
class GivesLogits(Protocol):
    """Objectives that predict a distribution have this method too."""

    def logits(self, hidden: Any, batch: Batch) -> Tensor:
        """(R, C): one row of logits for each term that ``forward`` scores, in a fixed order; the distribution is their softmax."""
        ...


class Scored(NamedTuple):
    """A score with the logits that it was computed from; None where the objective predicts no distribution."""

    score: Score
    logits_RC: Tensor | None


def scored(objective: Objective, hidden: Any, batch: Batch) -> Scored:
    """The score of an objective and the very logits that its ``forward`` read: a second call would pay the head twice, and draw the
    dropout of the head anew."""
    if not isinstance(objective, GivesLogits):
        return Scored(objective(hidden, batch), None)
    give, kept = objective.logits, []

    def keep(*args: Any, **kwargs: Any) -> Tensor:
        kept.append(give(*args, **kwargs))
        return kept[-1]

    object.__setattr__(objective, "logits", keep)  # in front of the method, for this call
    try:
        score = objective(hidden, batch)
    finally:
        object.__delattr__(objective, "logits")
    return Scored(score, kept[0] if kept else give(hidden, batch))
