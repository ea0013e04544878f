"""Masked language modelling with the image in sight (BERT, arXiv 1810.04805 section 3.1; ViLT, arXiv 2102.03334 section 3.2).

15 % of the tokens are chosen; of these 80 % become [MASK], 10 % a random ordinary token and 10 % stay.
The decoder sees only the chosen rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmpretrain import random
from mmpretrain.nn.heads import VocabularyHead
from mmpretrain.nn.hidden import Fused
from mmpretrain.nn.ragged import Layout
from mmpretrain.objectives.base import Objective
from mmpretrain.objectives.precision import full_precision, scalar, wide
from mmpretrain.types import Batch, Score, Spec, Text, Vocabulary


class MaskedTokens(NamedTuple):
    """What ``MLM.corrupt`` leaves in ``batch.targets``. R: chosen tokens, in the order of samples and slots."""

    rows_R: Tensor  # int64, packed row of each chosen token (see Layout)
    labels_R: Tensor  # int64, the token that stood there
    maskable: Tensor  # float scalar: tokens that could have been chosen


class Guess(NamedTuple):
    """Predictions for one chosen token, best first."""

    slot: int  # position in the text
    label: int  # the true token
    ids: tuple[int, ...]
    probabilities: tuple[float, ...]


class MLM(Objective):
    """Predict the chosen tokens from text and image.

    Args:
        prob: chance that a token (or a word) is chosen, each independently. A text without any chosen token is allowed.
        mask: share of the chosen tokens that become the mask token.
        random: share that becomes a token drawn uniformly from the ordinary vocabulary; the rest stays as it is.
        whole_word: choose words, needs ``Text.words_BT``; mask, random and stay are drawn for each token of a chosen word, as in BERT.
        at_least_one: choose one token (or word) in a text in which none was chosen; not in the papers.
        tied: the decoder is the token table itself (the same Parameter). ViLT's released code does not tie, transformers' ViLT does.
        content: never choose function words and punctuation, of which a picture says nothing (Bitton et al. 2021, arXiv 2109.02040):
            what is learned from a sample is what can be seen. English; not in ViLT's paper.
        weight, view, after, sources: see ``Objective``.
        only_if_matched: mask nothing in a text that is not true of its image.
    """

    kind: ClassVar[str] = "fused"

    def __init__(
        self,
        prob: float = 0.15,
        mask: float = 0.8,
        random: float = 0.1,
        whole_word: bool = False,
        at_least_one: bool = False,
        tied: bool = True,
        content: bool = False,
        *,
        weight: float = 1.0,
        view: str = "main",
        after: str | None = None,
        sources: tuple[str, ...] | None = None,
        only_if_matched: bool = True,
    ) -> None:
        super().__init__(weight=weight, view=view, after=after, sources=sources, only_if_matched=only_if_matched)
        if not 0 < prob <= 1:
            raise ValueError(f"MLM: prob={prob} must be in (0, 1]")
        if mask < 0 or random < 0 or mask + random > 1:
            raise ValueError(f"MLM: mask={mask} and random={random} must be shares with a sum of at most 1")
        self.prob, self.mask, self.random = prob, mask, random
        self.whole_word, self.at_least_one, self.tied, self.content = whole_word, at_least_one, tied, content
        self.head: VocabularyHead | None = None
        self.vocabulary: Vocabulary | None = None
        self._content: Tensor | None = None

    def bind(self, spec: Spec, vocabulary: Vocabulary | None) -> None:
        """Build the head once. Later calls may only bring the vocabulary."""
        if self.kind not in spec.kinds:
            raise ValueError(f"{self.name}: needs a model with the kind {self.kind!r}, this one has {', '.join(spec.kinds)}")
        if self.tied and spec.token_table is None:
            raise ValueError(f"{self.name}: tied=true needs a model with a token table; set tied: false")
        if vocabulary is not None:
            if vocabulary.mask is None and self.mask > 0:
                raise ValueError(f"{self.name}: the tokenizer has no mask token; use a tokenizer that has one, or mask: 0")
            if vocabulary.size > spec.vocab_size:
                raise ValueError(f"{self.name}: the tokenizer has {vocabulary.size} tokens, the model only {spec.vocab_size}")
            self.vocabulary = vocabulary
        if self.head is None:
            self.head = VocabularyHead(spec.width, spec.vocab_size, spec.token_table if self.tied else None, spec.norm_eps)

    def corrupt(self, batch: Batch, outputs: Mapping[str, Any]) -> Batch:
        """The batch with masked text. One device synchronisation (the list of chosen tokens)."""
        text, vocabulary = batch.text, self.vocabulary
        if text is None:
            raise ValueError(f"{self.name}: the batch has no text; name the sources that have text in `sources`")
        if vocabulary is None:
            raise ValueError(f"{self.name}: corrupt needs the vocabulary; call bind(spec, vocabulary) first")
        layout = Layout(text.lengths)
        maskable_BT = self._maskable(text, layout, batch.matched_B, vocabulary)
        chosen_BT = self._chosen(text, maskable_BT, batch.draw_keys_B)
        ids_BT = self._replaced(text.ids_BT, chosen_BT, batch.draw_keys_B, vocabulary)
        rows_R = layout.pack(chosen_BT).nonzero().squeeze(1)
        labels_R = layout.pack(text.ids_BT).index_select(0, rows_R)
        target = MaskedTokens(rows_R, labels_R, maskable_BT.sum().float())
        return batch._replace(text=text._replace(ids_BT=ids_BT), targets={**batch.targets, self.name: target})

    def _maskable(self, text: Text, layout: Layout, matched_B: Tensor | None, vocabulary: Vocabulary) -> Tensor:
        ids_BT = text.ids_BT
        valid_BT = F.pad(layout.mask_BL(ids_BT.device), (0, ids_BT.shape[1] - layout.max_len))
        for token in vocabulary.special:  # a handful, and comparing with a Python number copies nothing to the device
            valid_BT = valid_BT & (ids_BT != token)
        if self.content:
            valid_BT = valid_BT & self._has_content(vocabulary, ids_BT.device)[ids_BT]
        if self.only_if_matched and matched_B is not None:
            valid_BT = valid_BT & matched_B[:, None]
        return valid_BT

    def _has_content(self, vocabulary: Vocabulary, device: torch.device) -> Tensor:
        """Whether a token is no function word, bool (vocabulary,)."""
        if self._content is None or self._content.device != device:
            table = torch.ones(vocabulary.size, dtype=torch.bool)
            table[list(vocabulary.function)] = False
            self._content = table.to(device)
        return self._content

    def _chosen(self, text: Text, maskable_BT: Tensor, keys_B: Tensor) -> Tensor:
        draw_BT = random.uniform(keys_B, random.stream(f"{self.name}/choose"), maskable_BT.shape[1])
        if self.whole_word:
            if text.words_BT is None:
                raise ValueError(f"{self.name}: whole_word=true needs word indices (Text.words_BT); the data module did not give them")
            new_word_BT = F.pad(text.words_BT[:, 1:] != text.words_BT[:, :-1], (1, 0))
            draw_BT = draw_BT.gather(1, new_word_BT.long().cumsum(1))  # one draw for each run of equal word indices
        chosen_BT = maskable_BT & (draw_BT < self.prob)
        if self.at_least_one:
            draw_BT = draw_BT.masked_fill(~maskable_BT, 2.0)
            lowest_BT = maskable_BT & (draw_BT == draw_BT.amin(1, keepdim=True))
            chosen_BT = chosen_BT | (lowest_BT & ~chosen_BT.any(1, keepdim=True))
        return chosen_BT

    def _replaced(self, ids_BT: Tensor, chosen_BT: Tensor, keys_B: Tensor, vocabulary: Vocabulary) -> Tensor:
        columns = ids_BT.shape[1]
        action_BT = random.uniform(keys_B, random.stream(f"{self.name}/action"), columns)
        special = sorted({token for token in vocabulary.special if 0 <= token < vocabulary.size})
        drawn_BT = random.integers(keys_B, random.stream(f"{self.name}/token"), columns, vocabulary.size - len(special))
        for token in special:  # the k-th ordinary token: step over the special ones in ascending order
            drawn_BT = drawn_BT + (drawn_BT >= token)
        ids_BT = torch.where(chosen_BT & (action_BT >= self.mask) & (action_BT < self.mask + self.random), drawn_BT, ids_BT)
        if self.mask > 0:
            ids_BT = ids_BT.masked_fill(chosen_BT & (action_BT < self.mask), vocabulary.mask)
        return ids_BT

    def _target(self, batch: Batch) -> MaskedTokens:
        target = batch.targets.get(self.name)
        if not isinstance(target, MaskedTokens):
            raise ValueError(f"{self.name}: the batch was not corrupted; call corrupt(batch, outputs) first")
        return target

    def count(self, batch: Batch) -> Tensor:
        """Number of chosen tokens; may be 0."""
        target = self._target(batch)
        return scalar(target.rows_R.shape[0], target.rows_R.device)

    def logits(self, hidden: Fused, batch: Batch) -> Tensor:
        """(R, vocabulary), a row for each chosen token."""
        if hidden.text is None or batch.text is None or hidden.text.layout.lengths != batch.text.lengths:
            raise ValueError(f"{self.name}: the model must return one state for every text token of the batch")
        if self.head is None:
            raise ValueError(f"{self.name}: there is no head yet; call bind(spec, vocabulary) first")
        return self.head(hidden.text.x_ND.index_select(0, self._target(batch).rows_R))

    def forward(self, hidden: Fused, batch: Batch) -> Score:
        """Summed cross-entropy over the chosen tokens. Stats: ``accuracy`` and ``masked_share`` (chosen / maskable tokens)."""
        target, count = self._target(batch), self.count(batch)
        logits_RV = self.logits(hidden, batch)
        with full_precision(logits_RV.device):
            total = F.cross_entropy(wide(logits_RV), target.labels_R, reduction="sum")
        right = (logits_RV.detach().argmax(-1) == target.labels_R).sum().float()
        return Score(total, count, {"accuracy": (right, count), "masked_share": (count, target.maskable)})

    @torch.no_grad()
    def predict(self, hidden: Fused, batch: Batch, k: int = 5) -> list[list[Guess]]:
        """The k best tokens for every chosen slot, one list per sample (for panels; copies to the host)."""
        target = self._target(batch)
        probabilities_RV = wide(self.logits(hidden, batch)).softmax(-1)
        best = probabilities_RV.topk(min(k, probabilities_RV.shape[-1]), dim=-1)
        layout = Layout(batch.text.lengths)
        device = target.rows_R.device
        samples = layout.sample_N(device).index_select(0, target.rows_R).tolist()
        slots = layout.slot_N(device).index_select(0, target.rows_R).tolist()
        guesses: list[list[Guess]] = [[] for _ in batch.keys]
        rows = zip(samples, slots, target.labels_R.tolist(), best.indices.tolist(), best.values.tolist(), strict=True)
        for sample, slot, label, ids, values in rows:
            guesses[sample].append(Guess(slot, label, tuple(ids), tuple(values)))
        return guesses
