"""Question answering as pre-training (LXMERT, arXiv 1908.07490 section 3.1.3): the text is a question about the picture, and the pooled
state is asked for one of a list of answers. Texts are questions, or captions and questions, by ``data.text_from``; the list is
``data.answers``.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmpretrain import random
from mmpretrain.nn.dropout import Dropout
from mmpretrain.nn.hidden import Fused
from mmpretrain.nn.layers import Init, LayerNorm, Linear
from mmpretrain.objectives.base import Objective
from mmpretrain.objectives.precision import full_precision, scalar, wide
from mmpretrain.types import Batch, Collate, Draw, Example, Score, Spec, Vocabulary


class Asked(NamedTuple):
    """The questions of a batch whose answer is known. R: such samples, K: answers of a question, those that it lacks with score 0."""

    rows: tuple[int, ...]  # those samples
    ids_RK: Tensor  # int64
    scores_RK: Tensor  # float32, from 0 to 1


class Answered(NamedTuple):
    """What is asked of the model, once it is known which texts belong to their picture."""

    rows_R: Tensor  # int64, samples
    ids_RK: Tensor
    scores_RK: Tensor
    targets_RK: Tensor  # float32: the share of each answer in the target, with the sum 1
    matched_B: Tensor | None  # as it was then


class QuestionPreparer(NamedTuple):
    """The worker's half: the known answers of a question with their scores."""

    def prepare(self, example: Example, draw: Draw) -> tuple[tuple[int, float], ...]:
        """(number, score) of each; () for captions, unknown answers, and texts that are false of their picture."""
        found = example.meta.get("answer_scores") or {}
        return tuple(found.items()) if example.matched else ()

    def collate(self, values: Sequence[tuple[tuple[int, float], ...]], collate: Collate) -> Asked:
        """The questions that have an answer, padded to the one with the most."""
        rows = tuple(row for row, found in enumerate(values) if found)
        most = max((len(found) for found in values), default=0)
        padded = [[*values[row], *[(0, 0.0)] * (most - len(values[row]))] for row in rows]
        table = torch.tensor(padded, dtype=torch.float64).view(len(rows), most, 2)
        return Asked(rows, table[..., 0].long(), table[..., 1].float())


class AnswerHead(nn.Module):
    """LXMERT's: Linear D -> 2D, GELU, LayerNorm, Linear 2D -> answers.

    Args:
        width: of the pooled state.
        answers: number of logits.
        std: of the normal initialisation.
        eps: of the LayerNorm.
        dropout: in front.
    """

    def __init__(self, width: int, answers: int, std: float = 0.02, eps: float = 1e-12, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.dense = Linear(width, 2 * width, init=Init("normal", std))
        self.norm = LayerNorm(2 * width, eps=eps)
        self.decoder = Linear(2 * width, answers, init=Init("normal", std))

    def forward(self, x_RD: Tensor) -> Tensor:
        return self.decoder(self.norm(F.gelu(self.dense(self.dropout(x_RD)))))


class VQA(Objective):
    """Cross-entropy over the answers, read from the pooled state of questions.

    Captions, questions whose answers the list lacks, and questions beside a picture that they do not belong to have no term. Name it behind
    image-text matching of the same view, which says which these are.

    Args:
        answers: number of logits; None: as many as ``data.answers`` lists. With a number the head can be sized without data; logits beyond
            the list are never an answer, and a run without a list warns and has no term.
        targets: of several answers with scores, ``draw``: one is drawn by its score each time (LXMERT's code); ``soft``: all have their
            shares.
        weight, view, after, sources: see ``Objective``.
    """

    kind: ClassVar[str] = "fused"

    def __init__(
        self,
        answers: int | None = None,
        targets: Literal["draw", "soft"] = "draw",
        *,
        weight: float = 1.0,
        view: str = "main",
        after: str | None = None,
        sources: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__(weight=weight, view=view, after=after, sources=sources)
        if targets not in ("draw", "soft") or (answers is not None and answers < 2):
            raise ValueError(f"VQA: targets={targets!r} must be draw or soft, answers={answers} at least 2")
        self.answers, self.targets = answers, targets
        self.head: AnswerHead | None = None
        self.names: tuple[str, ...] = ()

    def preparer(self) -> QuestionPreparer:
        return QuestionPreparer()

    def bind(self, spec: Spec, vocabulary: Vocabulary | None) -> None:
        """Build the head once."""
        if self.kind not in spec.kinds:
            raise ValueError(f"{self.name}: needs a model with the kind {self.kind!r}, this one has {', '.join(spec.kinds)}")
        if vocabulary is not None:
            if len(vocabulary.answers) < 2:
                lack = f"{self.name}: the run has no answers; set data.answers, and data.text_from to questions or captions+questions"
                if self.answers is None:
                    raise ValueError(lack)
                warnings.warn(f"{lack}; until then it has no term", stacklevel=2)
            if self.answers is not None and len(vocabulary.answers) > self.answers:
                raise ValueError(
                    f"{self.name}: answers={self.answers} is less than the {len(vocabulary.answers)} of data.answers; lower its most"
                )
            self.names = vocabulary.answers
        number = self.answers or len(self.names)
        if not number:
            raise ValueError(f"{self.name}: the number of answers is not known without data; set answers")
        if self.head is None:
            self.head = AnswerHead(spec.pooled_width or spec.width, number, spec.std, spec.norm_eps, spec.pooled_dropout)

    def corrupt(self, batch: Batch, outputs: Mapping[str, Any]) -> Batch:
        """The batch as it is, with the targets of the questions that belong to their picture. One device synchronisation."""
        asked = batch.targets.get(self.name)
        if not isinstance(asked, Asked):
            raise ValueError(f"{self.name}: the batch has no questions; its preparer must run in the loader under the name {self.name!r}")
        device = batch.draw_keys_B.device
        rows_R = torch.tensor(asked.rows, dtype=torch.int64).to(device, non_blocking=True)
        ids_RK, scores_RK = asked.ids_RK.to(device), asked.scores_RK.to(device)
        if batch.matched_B is not None:
            kept = batch.matched_B.index_select(0, rows_R).nonzero().squeeze(1)
            rows_R, ids_RK, scores_RK = (x.index_select(0, kept) for x in (rows_R, ids_RK, scores_RK))
        targets_RK = self._targets(scores_RK, batch.draw_keys_B.index_select(0, rows_R))
        made = Answered(rows_R, ids_RK, scores_RK, targets_RK, batch.matched_B)
        return batch._replace(targets={**batch.targets, self.name: made})

    def _targets(self, scores_RK: Tensor, keys_R: Tensor) -> Tensor:
        if self.targets == "soft":
            return scores_RK / scores_RK.sum(1, keepdim=True)
        upto_RK = scores_RK.cumsum(1)
        draw_R1 = random.uniform(keys_R, random.stream(f"{self.name}/answer"), 1) * upto_RK[:, -1:]
        number_R1 = (upto_RK <= draw_R1).sum(1, keepdim=True).minimum((scores_RK > 0).sum(1, keepdim=True) - 1)
        return torch.zeros_like(scores_RK).scatter(1, number_R1, 1.0)

    def _target(self, batch: Batch) -> Answered:
        target = batch.targets.get(self.name)
        if not isinstance(target, Answered):
            raise ValueError(f"{self.name}: the batch was not corrupted; call corrupt(batch, outputs) first")
        before, now = target.matched_B, batch.matched_B
        if before is not now and (before is None or now is None or not torch.equal(before, now)):
            raise ValueError(f"{self.name}: texts or pictures were exchanged after it; name it behind image-text matching in the recipe")
        return target

    def count(self, batch: Batch) -> Tensor:
        """Number of questions with a known answer beside their own picture; may be 0."""
        target = self._target(batch)
        return scalar(target.rows_R.shape[0], target.rows_R.device)

    def logits(self, hidden: Fused, batch: Batch) -> Tensor:
        """(R, answers), a row for each such question."""
        if hidden.pooled_BD is None:
            raise ValueError(f"{self.name}: the model gave no pooled state")
        if self.head is None:
            raise ValueError(f"{self.name}: there is no head yet; call bind(spec, vocabulary) first")
        return self.head(hidden.pooled_BD.index_select(0, self._target(batch).rows_R))

    def forward(self, hidden: Fused, batch: Batch) -> Score:
        """Summed cross-entropy. Stats: ``accuracy``, the score of the best answer (the measure of VQA), and ``asked``, the share of texts
        that are such questions."""
        target, count, logits_RA = self._target(batch), self.count(batch), self.logits(hidden, batch)
        with full_precision(logits_RA.device):
            likely_RK = wide(logits_RA).log_softmax(-1).gather(1, target.ids_RK)
            total = -(likely_RK * target.targets_RK).sum()
        best_R1 = logits_RA.detach().argmax(-1, keepdim=True)
        right = ((target.ids_RK == best_R1) * target.scores_RK).sum()
        return Score(total, count, {"accuracy": (right, count), "asked": (count, scalar(batch.size, count.device))})

    @torch.no_grad()
    def best(self, hidden: Fused, k: int = 5) -> list[list[tuple[str, float]]]:
        """The k best answers to every text with their probabilities, best first (copies to the host)."""
        if self.head is None or hidden.pooled_BD is None:
            raise ValueError(f"{self.name}: needs a head and the pooled state")
        logits_BA = wide(self.head(hidden.pooled_BD))[:, : len(self.names)]
        best = logits_BA.softmax(-1).topk(min(k, len(self.names)), dim=-1)
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [[(self.names[number], share) for number, share in zip(numbers, shares, strict=True)] for numbers, shares in rows]
