"""Predict every token of a stream from those before it: words, then codes of the picture (DALL-E, arXiv 2102.12092, section 2.2).

The two losses are means over their own tokens, weighted 1/8 and 7/8; both read the same forward. Each owns the norm and the matrix that
turn a state into logits of its own vocabulary, so neither kind of token can be mistaken for the other.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmpretrain import random
from mmpretrain.nn.hidden import Causal
from mmpretrain.nn.layers import Init, LayerNorm, Linear
from mmpretrain.nn.misfit import Misfit
from mmpretrain.nn.ragged import Layout, Ragged
from mmpretrain.objectives.base import Objective
from mmpretrain.objectives.gather import Peers, total
from mmpretrain.objectives.precision import full_precision, wide
from mmpretrain.types import Batch, CodeBatch, Score, Spec, Text, Vocabulary

IGNORED = -100  # the label of what does not count


class Unembedding(nn.Module):
    """LayerNorm and a matrix without bias, which starts at zero (Child et al. 2019, arXiv 1904.10509, equation 11 and section 6): the first
    loss is the logarithm of the vocabulary. The product is taken in fp32 (appendix D of DALL-E's paper).

    Args:
        width: of the states.
        size: of the vocabulary.
        eps: of the LayerNorm.
    """

    def __init__(self, width: int, size: int, eps: float) -> None:
        super().__init__()
        self.norm = LayerNorm(width, eps=eps)
        self.out = Linear(width, size, bias=False, init=Init("zeros"))

    def forward(self, x_RD: Tensor) -> Tensor:
        """States (R, D) -> logits (R, size)."""
        with full_precision(x_RD.device):
            return F.linear(wide(self.norm(x_RD)), wide(self.out.weight))


class Surprisal(NamedTuple):
    """Of the tokens of a batch that count; scalars."""

    loss: Tensor  # summed cross-entropy, nats, with gradient
    count: Tensor  # type: ignore[assignment]  # of a tuple's methods; float
    right: Tensor  # float: how many were the most probable token


class NextToken(Objective):
    """Base of the two: head, loss and statistics.

    Statistics: ``accuracy`` of the most probable token, and ``perplexity``, exp of the mean loss of a whole step or evaluation.
    """

    kind: ClassVar[str] = "causal"
    perturbed: ClassVar[bool] = False
    predicts: ClassVar[str]  # text or codes

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        self.head: Unembedding | None = None
        self.peers = Peers()
        self._seen: Tensor | None = None  # summed loss and count since ``pooled`` was asked

    @abstractmethod
    def _labels(self, batch: Batch) -> Tensor:
        """The token of each place of the batch, int64 (B, S); ``IGNORED`` where none counts."""

    def _places(self, batch: Batch) -> Tensor | None:
        """The flat places of (B, S) that may count, int64 (R,), known without asking the device; None: all."""
        return None

    @abstractmethod
    def _states(self, hidden: Causal) -> Ragged | None:
        """The states that predict; None: the hidden states have none."""

    def _true_only(self, labels_BS: Tensor, batch: Batch) -> Tensor:
        if not self.only_if_matched or batch.matched_B is None:
            return labels_BS
        return torch.where(batch.matched_B[:, None], labels_BS, IGNORED)

    def count(self, batch: Batch) -> Tensor:
        """Tokens that count; may be 0."""
        return (self._labels(batch) != IGNORED).sum().float()

    def targets(self, batch: Batch) -> Tensor:
        """The tokens that count, int64 (n,)."""
        labels_BS = self._labels(batch)
        return labels_BS[labels_BS != IGNORED]

    def logits_of(self, state_BD: Tensor) -> Tensor:
        """Logits of the token behind each state: (B, vocabulary), fp32.

        Raises:
            ValueError: there is no head yet.
        """
        if self.head is None:
            raise ValueError(f"{self.name}: there is no head yet; call bind(spec, vocabulary) first")
        return self.head(state_BD)

    def logits(self, hidden: Causal, batch: Batch) -> Tensor:
        """(R, vocabulary), a row for each place that may count."""
        states, labels_BS, places = self._states(hidden), self._labels(batch), self._places(batch)
        if states is None or states.layout.lengths != (labels_BS.shape[1],) * batch.size:
            raise ValueError(f"{self.name}: the model must return one state for every token of the batch")
        return self.logits_of(states.x_ND if places is None else states.x_ND.index_select(0, places))

    def surprisal(self, hidden: Causal, batch: Batch) -> Surprisal:
        """What ``forward`` makes its score of, leaving no trace in ``pooled``."""
        labels_R, places = self._labels(batch).flatten(), self._places(batch)
        if places is not None:
            labels_R = labels_R.index_select(0, places)
        logits_RV = self.logits(hidden, batch)
        loss = F.cross_entropy(logits_RV, labels_R, ignore_index=IGNORED, reduction="sum")
        right_R = logits_RV.detach().argmax(-1) == labels_R
        return Surprisal(loss, (labels_R != IGNORED).sum().float(), right_R.sum().float())

    def forward(self, hidden: Causal, batch: Batch) -> Score:
        """Summed cross-entropy."""
        loss, count, right = self.surprisal(hidden, batch)
        seen = torch.stack([loss.detach().double(), count.double()])
        self._seen = seen if self._seen is None else self._seen + seen
        return Score(loss, count, {"accuracy": (right, count)})

    def pooled(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        """``perplexity`` of what was seen since the last call; none of a step that is not finite on some rank, which leaves no trace."""
        if self._seen is None:
            return {}
        (loss, count), self._seen = total(self._seen, self.peers).float(), None
        there = (count > 0) & torch.isfinite(loss)
        return {"perplexity": (torch.where(there, loss / count.clamp(min=1), 0.0).exp() * there, there.float())}


class NextText(NextToken):
    """Predict the words of a caption.

    A start token of the tokenizer (its ``cls``, where a text begins with it) is no target, an end token is one.

    Args:
        pads: the learned paddings behind a caption are targets too, a vocabulary entry for each position, where codes follow.
        dropout: probability that a caption is taken away in training, keyed by the sample: paddings stand in its place, and none of them
            counts. What is learned of pictures without captions is what classifier-free guidance needs.
        weight, view, after, sources: see ``Objective``.
        only_if_matched: captions that are not true of their picture do not count.

    Raises:
        ValueError: ``dropout`` is no probability below 1.
    """

    predicts: ClassVar[str] = "text"

    def __init__(
        self,
        pads: bool = False,
        dropout: float = 0.0,
        *,
        weight: float = 0.125,
        view: str = "main",
        after: str | None = None,
        sources: tuple[str, ...] | None = None,
        only_if_matched: bool = True,
    ) -> None:
        super().__init__(weight=weight, view=view, after=after, sources=sources, only_if_matched=only_if_matched)
        if not 0 <= dropout < 1:
            raise ValueError(f"NextText: dropout={dropout} must be from 0 to 1, below 1")
        self.pads, self.dropout = pads, dropout
        self._size = self._positions = 0
        self._cls: int | None = None

    def bind(self, spec: Spec, vocabulary: Vocabulary | None) -> None:
        """
        Raises:
            ValueError: the tokenizer has more tokens than the model.
        """
        if vocabulary is not None:
            if vocabulary.size > spec.vocab_size:
                raise ValueError(
                    f"{self.name}: the tokenizer has {vocabulary.size} tokens, the model only {spec.vocab_size}: set the model's vocab_size"
                )
            self._cls = vocabulary.cls
        self._size, self._positions = spec.vocab_size, spec.text_pads
        if self.head is None:
            self.head = Unembedding(spec.width, spec.vocab_size + (spec.text_pads if self.pads else 0), spec.norm_eps)

    def corrupt(self, batch: Batch, outputs: Mapping[str, Any]) -> Batch:
        """The batch without the captions that are dropped. With dropout, one device synchronisation (which they are)."""
        if not self.training or not self.dropout or batch.text is None:
            return batch
        drawn_B = random.uniform(batch.draw_keys_B, random.stream(f"{self.name}/dropout"), 1)[:, 0] < self.dropout
        kept = tuple(0 if gone else n for n, gone in zip(batch.text.lengths, drawn_B.tolist(), strict=True))
        return batch._replace(text=batch.text._replace(lengths=kept))

    def _text(self, batch: Batch) -> Text:
        if batch.text is None:
            raise Misfit(f"{self.name}: the batch has no text; name the sources that have text in `sources`")
        return batch.text

    def _width(self, batch: Batch) -> int:
        """Places of each text: all positions where codes follow."""
        return self._positions if batch.codes is not None else max(self._text(batch).lengths, default=0)

    def _lasting(self, batch: Batch) -> tuple[int, ...]:
        """Of each text the places that may count: its tokens, or all."""
        width, lengths = self._width(batch), self._text(batch).lengths
        return tuple(width if n else 0 for n in lengths) if self.pads and batch.codes is not None else lengths

    def _places(self, batch: Batch) -> Tensor:
        lasting, width = self._lasting(batch), self._width(batch)
        rows = [np.arange(n, dtype=np.int64) + i * width for i, n in enumerate(lasting)]
        return torch.from_numpy(np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)).to(self._text(batch).ids_BT.device)

    def _labels(self, batch: Batch) -> Tensor:
        text, width = self._text(batch), self._width(batch)
        device, layout = text.ids_BT.device, Layout(text.lengths)
        longest, size = layout.max_len, layout.size
        pads_S = torch.arange(self._size, self._size + width, device=device)
        padded_BS = torch.full((size, width), IGNORED, dtype=torch.int64, device=device)
        if longest == 0:
            return padded_BS
        ids_BT, tokens_BT = text.ids_BT[:, :longest], layout.mask_BL(device)
        if self._cls is not None:  # a start token tells nothing
            first_BT = torch.arange(longest, device=device)[None] == 0
            ids_BT = torch.where(first_BT & (ids_BT == self._cls), IGNORED, ids_BT)
        if self.pads and batch.codes is not None:
            padded_BS = torch.where(Layout(self._lasting(batch)).mask_BL(device), pads_S, padded_BS)
        padded_BS[:, :longest] = torch.where(tokens_BT, ids_BT, padded_BS[:, :longest])
        return self._true_only(padded_BS, batch)

    def _states(self, hidden: Causal) -> Ragged | None:
        return hidden.text


class NextCode(NextToken):
    """Predict the codes of a picture.

    Args:
        weight, view, after, sources: see ``Objective``.
        only_if_matched: pictures whose caption is not true of them do not count.
    """

    predicts: ClassVar[str] = "codes"

    def __init__(
        self,
        *,
        weight: float = 0.875,
        view: str = "main",
        after: str | None = None,
        sources: tuple[str, ...] | None = None,
        only_if_matched: bool = True,
    ) -> None:
        super().__init__(weight=weight, view=view, after=after, sources=sources, only_if_matched=only_if_matched)

    def bind(self, spec: Spec, vocabulary: Vocabulary | None) -> None:
        """
        Raises:
            ValueError: the model has no codes, or the data have another codebook.
        """
        if not spec.codes:
            raise ValueError(f"{self.name}: the model has no codes; it needs one over the tokens of a discrete autoencoder")
        if vocabulary is not None and vocabulary.codes not in (0, spec.codes):
            raise ValueError(f"{self.name}: the data have {vocabulary.codes} codes, the model {spec.codes}: set model.system's codes")
        if self.head is None:
            self.head = Unembedding(spec.width, spec.codes, spec.norm_eps)

    def _codes(self, batch: Batch) -> CodeBatch:
        if batch.codes is None:
            raise Misfit(f"{self.name}: the batch has no codes; set data.show=codes, or name the sources that have them in `sources`")
        return batch.codes

    def _labels(self, batch: Batch) -> Tensor:
        return self._true_only(self._codes(batch).dense().flatten(1), batch)

    def _states(self, hidden: Causal) -> Ragged | None:
        return hidden.image
