"""Masked language modelling with the image in sight (BERT, arXiv 1810.04805 section 3.1; ViLT, arXiv 2102.03334 section 3.2).

15 % of the tokens are chosen; of these 80 % become [MASK], 10 % a random ordinary token and 10 % stay.
The decoder sees only the chosen rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmpretrain.nn.heads import VocabularyHead
from mmpretrain.nn.hidden import Fused
from mmpretrain.nn.misfit import Misfit
from mmpretrain.nn.ragged import Layout
from mmpretrain.objectives.base import Objective
from mmpretrain.objectives.precision import full_precision, scalar, wide
from mmpretrain.objectives.text_masking import UNITS, Spans, choose, first_if_none, maskable, replaced, word_indices
from mmpretrain.types import Batch, Score, Spec, Text, Vocabulary


class MaskedTokens(NamedTuple):
    """What ``corrupt`` leaves in ``batch.targets``. R: chosen tokens, in the order of samples and slots."""

    rows_R: Tensor  # int64, packed row of each chosen token (see Layout)
    labels_R: Tensor  # int64, the token that stood there
    maskable: Tensor  # float scalar: tokens that could have been chosen
    groups_R: Tensor | None = None  # int64, what the token was chosen as, where an objective tells several apart


class Guess(NamedTuple):
    """Predictions for one chosen token, best first."""

    slot: int  # position in the text
    label: int  # the true token
    ids: tuple[int, ...]
    probabilities: tuple[float, ...]


class MaskedText(Objective):
    """Base of the objectives that predict tokens which they mask: their head and loss.

    Args:
        mask: share of the chosen tokens that become the mask token.
        random: share that becomes a token drawn uniformly from the ordinary vocabulary; the rest stays as it is.
        tied: the decoder is the token table itself (the same Parameter).
        head_of: the objective of the recipe whose head is used; it must be of this kind too. None: a head of its own.
        weight, view, after, sources, only_if_matched: see ``Objective``.
    """

    kind: ClassVar[str] = "fused"
    action: str = "piece"  # what mask, random and stay are drawn for: each token, or a whole word
    random_from: int = 0  # the lowest id that is drawn as a random token

    def __init__(self, mask: float, random: float, tied: bool, head_of: str | None, **common: Any) -> None:
        super().__init__(**common)
        if mask < 0 or random < 0 or mask + random > 1:
            raise ValueError(f"{type(self).__name__}: mask={mask} and random={random} must be shares with a sum of at most 1")
        self.mask, self.random, self.tied, self.head_of = mask, random, tied, head_of
        self.head: VocabularyHead | None = None
        self.vocabulary: Vocabulary | None = None
        self._lender: tuple[MaskedText, ...] = ()  # a tuple, so that its head is not registered twice

    def bind(self, spec: Spec, vocabulary: Vocabulary | None) -> None:
        """Build the head once. Later calls may only bring the vocabulary."""
        if self.kind not in spec.kinds:
            raise ValueError(f"{self.name}: needs a model with the kind {self.kind!r}, this one has {', '.join(spec.kinds)}")
        if vocabulary is not None:
            if vocabulary.mask is None and self.mask > 0:
                raise ValueError(f"{self.name}: the tokenizer has no mask token; use a tokenizer that has one, or mask: 0")
            if vocabulary.size > spec.vocab_size:
                raise ValueError(f"{self.name}: the tokenizer has {vocabulary.size} tokens, the model only {spec.vocab_size}")
            if self.random_from and not set(range(self.random_from, vocabulary.size)) - set(vocabulary.special):
                raise ValueError(f"{self.name}: random_from={self.random_from} leaves none of the tokenizer's {vocabulary.size} tokens")
            self.vocabulary = vocabulary
        if self.head_of is not None:
            return
        if self.tied and spec.token_table is None:
            raise ValueError(f"{self.name}: tied=true needs a model with a token table; set tied: false")
        if self.head is None:
            self.head = VocabularyHead(spec.width, spec.vocab_size, spec.token_table if self.tied else None, spec.norm_eps)

    def connect(self, objectives: Mapping[str, nn.Module]) -> None:
        """Find the head of ``head_of``."""
        if self.head_of is None:
            return
        lender = objectives[self.head_of] if self.head_of in objectives else None
        if not isinstance(lender, MaskedText) or lender is self or lender.head_of is not None:
            raise ValueError(
                f"{self.name}: head_of={self.head_of!r} must name an objective of the recipe that masks text with its own head"
            )
        self._lender = (lender,)

    def _vocabulary(self, batch: Batch) -> tuple[Text, Vocabulary]:
        if batch.text is None:
            raise Misfit(f"{self.name}: the batch has no text; name the sources that have text in `sources`")
        if self.vocabulary is None:
            raise ValueError(f"{self.name}: corrupt needs the vocabulary; call bind(spec, vocabulary) first")
        return batch.text, self.vocabulary

    def _masked(
        self,
        batch: Batch,
        chosen_BT: Tensor,
        maskable_BT: Tensor,
        groups_BT: Tensor | None = None,
        counts_B1: Tensor | None = None,
        always_BT: Tensor | None = None,
    ) -> Batch:
        """The batch with the chosen tokens masked, those of ``always_BT`` whatever the draw says; those of texts that do not count are
        masked, but not to be predicted. One device synchronisation (the list of chosen tokens)."""
        text, vocabulary = self._vocabulary(batch)
        layout = Layout(text.lengths)
        words_BT = word_indices(text, self.name) if self.action == "word" else None
        ids_BT = replaced(
            text.ids_BT, chosen_BT, batch.draw_keys_B, vocabulary, self.mask, self.random, self.name, words_BT, self.random_from, always_BT
        )
        if counts_B1 is not None:
            chosen_BT, maskable_BT = chosen_BT & counts_B1, maskable_BT & counts_B1
        rows_R = layout.pack(chosen_BT).nonzero().squeeze(1)
        labels_R = layout.pack(text.ids_BT).index_select(0, rows_R)
        groups_R = None if groups_BT is None else layout.pack(groups_BT).index_select(0, rows_R)
        target = MaskedTokens(rows_R, labels_R, maskable_BT.sum().float(), groups_R)
        return batch._replace(text=text._replace(ids_BT=ids_BT), targets={**batch.targets, self.name: target})

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
        head = self._lender[0].head if self._lender else self.head
        if head is None:
            raise ValueError(f"{self.name}: there is no head yet; call bind(spec, vocabulary) first")
        return head(hidden.text.x_ND.index_select(0, self._target(batch).rows_R))

    def _cross_entropy(self, hidden: Fused, batch: Batch) -> tuple[Tensor, Tensor]:
        """The summed loss, and whether each guess is right: float (R,)."""
        labels_R, logits_RV = self._target(batch).labels_R, self.logits(hidden, batch)
        with full_precision(logits_RV.device):
            total = F.cross_entropy(wide(logits_RV), labels_R, reduction="sum")
        return total, (logits_RV.detach().argmax(-1) == labels_R).float()


class MLM(MaskedText):
    """Predict the chosen tokens from text and image.

    Args:
        prob: chance that a token (or a word) is chosen, each independently; of ``unit: span`` that a word is the anchor of a span; of
            ``unit: geometric`` the share of the words that spans cover. A text without any chosen token is allowed.
        mask: share of the chosen tokens that become the mask token.
        random: share that becomes a token drawn uniformly from the ordinary vocabulary; the rest stays as it is.
        whole_word: the same as ``unit: word``.
        at_least_one: choose one token (or word) in a text in which none was chosen; not in the papers. ``first``: the first token, always
            to be masked (UNITER's code).
        tied: the decoder is the token table itself (the same Parameter). ViLT's released code does not tie, transformers' ViLT does.
        content: never choose function words and punctuation, of which a picture says nothing (Bitton et al. 2021, arXiv 2109.02040):
            what is learned from a sample is what can be seen. English; not in ViLT's paper.
        unit: what is chosen. ``piece``; ``single_span``: one span of pieces of any length, whatever ``prob`` says (InterBERT's code); and,
            which need ``Text.words_BT``, ``word``; ``span``: words and a drawn number of words behind them (InterBERT, with ``prob: 0.1``);
            ``geometric``: spans of geometric length (SpanBERT, UNIMO).
        action: mask, random and stay are drawn for each token (``piece``, as in BERT) or for all tokens of a word at once (``word``:
            VL-BERT's code, where another token is still drawn for each).
        random_from: the lowest id that is drawn as a random token. UNITER's code draws from "!" on, behind the unused pieces: 106 of BERT's
            cased vocabulary.
        spans: shapes of ``span`` and ``geometric``.
        segment: of pairs, the text that is masked: 0 the first, 1 the second; None: both.
        head_of: the objective whose head is used; None: a head of its own.
        weight, view, after, sources: see ``Objective``.
        only_if_matched: tokens of texts that are not true of their image do not count. They are masked like the others: in a view with ITM
            the masks must not tell which pairs are true. ITM comes first in the recipe then, so that its texts are what is masked.
    """

    def __init__(
        self,
        prob: float = 0.15,
        mask: float = 0.8,
        random: float = 0.1,
        whole_word: bool = False,
        at_least_one: bool | Literal["first"] = False,
        tied: bool = True,
        content: bool = False,
        unit: Literal["piece", "word", "span", "geometric", "single_span"] = "piece",
        spans: Spans = Spans(),  # noqa: B008  (frozen)
        segment: Literal[0, 1] | None = None,
        head_of: str | None = None,
        action: Literal["piece", "word"] = "piece",
        random_from: int = 0,
        *,
        weight: float = 1.0,
        view: str = "main",
        after: str | None = None,
        sources: tuple[str, ...] | None = None,
        only_if_matched: bool = True,
    ) -> None:
        common = {"weight": weight, "view": view, "after": after, "sources": sources, "only_if_matched": only_if_matched}
        super().__init__(mask, random, tied, head_of, **common)
        if not 0 < prob <= 1:
            raise ValueError(f"MLM: prob={prob} must be in (0, 1]")
        if unit not in UNITS or segment not in (None, 0, 1):
            raise ValueError(f"MLM: unit={unit!r} must be one of {', '.join(UNITS)}, segment={segment} 0, 1 or null")
        if whole_word and unit not in ("piece", "word"):
            raise ValueError(f"MLM: whole_word=true is unit=word; leave it out beside unit={unit}")
        self.prob, self.at_least_one, self.content, self.spans, self.segment = prob, at_least_one, content, spans, segment
        self.unit = "word" if whole_word else unit
        if action not in ("piece", "word") or (action == "word" and self.unit in ("piece", "single_span")):
            raise ValueError(f"MLM: action={action!r} must be piece, or word where unit is not piece or single_span, got unit={self.unit}")
        if at_least_one not in (False, True, "first") or random_from < 0:
            raise ValueError(f"MLM: at_least_one={at_least_one!r} must be false, true or first, random_from={random_from} at least 0")
        self.action, self.random_from = action, random_from
        self.whole_word = self.unit == "word"
        self._content: Tensor | None = None

    def corrupt(self, batch: Batch, outputs: Mapping[str, Any]) -> Batch:
        """The batch with masked text. One device synchronisation (the list of chosen tokens)."""
        text, vocabulary = self._vocabulary(batch)
        free_BT = maskable(text, vocabulary, self.segment)
        if self.content:
            free_BT = free_BT & self._has_content(vocabulary, text.ids_BT.device)[text.ids_BT]
        counts_B1 = batch.matched_B[:, None] if self.only_if_matched and batch.matched_B is not None else None
        first = self.at_least_one == "first"
        drawn = bool(self.at_least_one) and not first
        chosen_BT = choose(text, free_BT, batch.draw_keys_B, self.prob, self.unit, self.spans, self.name, drawn)
        first_BT = first_if_none(chosen_BT, free_BT) if first else None
        if first_BT is not None:
            chosen_BT = chosen_BT | first_BT
        return self._masked(batch, chosen_BT, free_BT, counts_B1=counts_B1, always_BT=first_BT)

    def _has_content(self, vocabulary: Vocabulary, device: torch.device) -> Tensor:
        """Whether a token is no function word, bool (vocabulary,)."""
        if self._content is None or self._content.device != device:
            table = torch.ones(vocabulary.size, dtype=torch.bool)
            table[list(vocabulary.function)] = False
            self._content = table.to(device)
        return self._content

    def forward(self, hidden: Fused, batch: Batch) -> Score:
        """Summed cross-entropy over the chosen tokens. Stats: ``accuracy`` and ``masked_share`` (chosen / maskable tokens), of texts that
        count."""
        count = self.count(batch)
        total, right_R = self._cross_entropy(hidden, batch)
        return Score(total, count, {"accuracy": (right_R.sum(), count), "masked_share": (count, self._target(batch).maskable)})

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
