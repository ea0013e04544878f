"""What objectives share that put another text to a sample and ask the pooled state whether it belongs to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmpretrain.nn.hidden import Fused
from mmpretrain.nn.misfit import Misfit
from mmpretrain.objectives.base import Objective
from mmpretrain.objectives.itm import MatchHead
from mmpretrain.objectives.mlm import MaskedTokens
from mmpretrain.objectives.precision import full_precision, scalar, wide
from mmpretrain.objectives.swaps import Swap, Swaps, collated, swapped
from mmpretrain.types import Batch, Collate, Score, Spec, Vocabulary

MATCHED = 1  # the class of texts that are left as they are, whatever the number of classes
LEFT_OUT = -1  # the code of samples that take no part
TRIES = 64


class Contrasted(NamedTuple):
    """The texts of a batch, and what was done to them. R: the samples that take part."""

    rows: tuple[int, ...]  # those samples
    classes_R: Tensor  # int64
    swaps: Swaps  # ``kinds_B`` are the classes, ``LEFT_OUT`` where a sample takes no part


def contrasted(values: Sequence[Swap], collate: Collate) -> Contrasted:
    """What the preparers of these objectives collate."""
    rows = tuple(row for row, swap in enumerate(values) if swap.kind != LEFT_OUT)
    return Contrasted(rows, torch.tensor([values[row].kind for row in rows], dtype=torch.int64), collated(values, collate))


class TextContrast(Objective):
    """Cross-entropy over classes of texts, read from the pooled state.

    Args:
        kinds: names of the classes, by number; class 1 are texts that are as they should be.
        head_std: of the head's normal initialisation.
        common: see ``Objective``.
    """

    kind: ClassVar[str] = "fused"
    exchanges: ClassVar[bool] = True

    def __init__(self, kinds: tuple[str, ...], head_std: float, **common: Any) -> None:
        super().__init__(**common)
        self.kinds, self.head_std = kinds, head_std
        self.head: MatchHead | None = None
        self.pad = 0

    def bind(self, spec: Spec, vocabulary: Vocabulary | None) -> None:
        """Build the head once."""
        if self.kind not in spec.kinds:
            raise ValueError(f"{self.name}: needs a model with the kind {self.kind!r}, this one has {', '.join(spec.kinds)}")
        if vocabulary is not None:
            self.pad = vocabulary.pad
        if self.head is None:
            self.head = MatchHead(spec.pooled_width or spec.width, self.head_std, spec.pooled_dropout, len(self.kinds))

    def _target(self, batch: Batch) -> Contrasted:
        target = batch.targets.get(self.name)
        if not isinstance(target, Contrasted):
            raise ValueError(f"{self.name}: the batch has no other texts; its preparer must run in the loader under the name {self.name!r}")
        return target

    def corrupt(self, batch: Batch, outputs: Mapping[str, Any]) -> Batch:
        """Put the drawn texts into the batch, and set ``matched_B`` to whether a text is as it should be."""
        swaps = self._target(batch).swaps
        if any(isinstance(target, MaskedTokens) for target in batch.targets.values()):
            raise Misfit(f"{self.name}: the text is masked already; name it before the objectives of its view that mask text")
        as_is_B = (swaps.kinds_B == MATCHED) | (swaps.kinds_B == LEFT_OUT)
        matched_B = as_is_B if batch.matched_B is None else batch.matched_B & as_is_B
        return swapped(batch, swaps, self.pad)._replace(matched_B=matched_B)

    def count(self, batch: Batch) -> Tensor:
        """Number of samples that take part."""
        return scalar(len(self._target(batch).rows), batch.draw_keys_B.device)

    def _class_logits(self, hidden: Fused) -> Tensor:
        if hidden.pooled_BD is None:
            raise ValueError(f"{self.name}: the model gave no pooled state")
        if self.head is None:
            raise ValueError(f"{self.name}: there is no head yet; call bind(spec, vocabulary) first")
        return self.head(hidden.pooled_BD)

    def logits(self, hidden: Fused, batch: Batch) -> Tensor:
        """(R, classes), a row for each sample that takes part."""
        rows = torch.tensor(self._target(batch).rows, dtype=torch.int64).to(batch.draw_keys_B.device, non_blocking=True)
        return self._class_logits(hidden).index_select(0, rows)

    def forward(self, hidden: Fused, batch: Batch) -> Score:
        """Summed cross-entropy. Stats: ``accuracy`` and ``accuracy_<kind>`` of each class."""
        classes_R, count, logits_RC = self._target(batch).classes_R, self.count(batch), self.logits(hidden, batch)
        with full_precision(logits_RC.device):
            total = F.cross_entropy(wide(logits_RC), classes_R, reduction="sum")
        right_R = (logits_RC.detach().argmax(-1) == classes_R).float()
        stats = {"accuracy": (right_R.sum(), count)}
        for number, kind in enumerate(self.kinds):
            of_kind_R = (classes_R == number).float()
            stats[f"accuracy_{kind}"] = ((right_R * of_kind_R).sum(), of_kind_R.sum())
        return Score(total, count, stats)
