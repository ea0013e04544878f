"""Image-text matching: does this text belong to this image? (UNITER, arXiv 1909.11740; ViLT, arXiv 2102.03334 section 3.2.)

Exactly half of the samples keep their pair; for the others the worker draws another image, another text or a minimal edit, or the device
one that is similar (``objectives/similar.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmpretrain.nn.dropout import dropout
from mmpretrain.nn.hidden import Fused
from mmpretrain.nn.misfit import Misfit
from mmpretrain.objectives import similar
from mmpretrain.objectives.base import Objective
from mmpretrain.objectives.mlm import MaskedTokens
from mmpretrain.objectives.precision import full_precision, scalar, wide
from mmpretrain.objectives.swaps import Swap, Swaps, collated, collated_beside, repeated, swapped
from mmpretrain.types import Batch, Collate, Draw, Example, Score, Spec, Tokens, Visual, Vocabulary

# codes of Swaps.kinds_B; the first is the only positive
KINDS = ("matched", "label", "image", "text", "edit", "hard", "similar_image", "similar_text")
SIMILAR: dict[str, Literal["image", "text"]] = {"similar_image": "image", "similar_text": "text"}
_TRIES = 64


class ITMPreparer(NamedTuple):
    """The worker's half of ITM.

    Positions 2i and 2i + 1 share one coin, so that exactly one of them keeps its pair: any stretch of the order that starts
    at an even position and has an even length is split exactly in halves.
    """

    kinds: tuple[str, ...]
    weights: tuple[float, ...]
    both: bool | Literal["each"] = False  # every sample draws a negative, or one of each kind, beside itself; no coin

    @property
    def wants(self) -> tuple[str, ...]:
        """Hard negatives are drawn from the texts that are alike."""
        return ("neighbours",) if "hard" in self.kinds else ()

    @property
    def shared_by(self) -> int:
        """Neighbouring positions that share a draw; the data module warns of micro-batches that part them."""
        return 2 if self.kinds and not self.both else 1

    def prepare(self, example: Example, draw: Draw) -> Swap | tuple[Swap, ...]:
        """Draw what replaces a part of this example; with ``both: each`` one of each kind. A sample that is known to be false stays as it
        is and is a negative; a statement labelled true stays too, because it may well hold of another picture ("there is a yellow
        square")."""
        if not example.matched:
            return Swap(KINDS.index("label"))
        if "statement_index" in example.meta:
            return Swap(0)
        if not self.kinds or (not self.both and draw.generator("itm", shared_by=2).integers(2) == draw.position % 2):
            return Swap(0)
        if self.both == "each":
            return tuple(self._negative(kind, example, draw, draw.generator(f"itm/negative/{kind}")) for kind in self.kinds)
        generator = draw.generator("itm/negative")
        return self._negative(self.kinds[int(generator.choice(len(self.kinds), p=self.weights))], example, draw, generator)

    def _negative(self, kind: str, example: Example, draw: Draw, generator: np.random.Generator) -> Swap:
        if kind in SIMILAR:
            return Swap(KINDS.index(kind), similar=SIMILAR[kind])
        if kind == "edit":
            edited = _edit(example, draw, generator.permutation)
            if edited is not None:
                return Swap(KINDS.index("edit"), text=edited)
            kind = "text"
        if kind == "hard":
            alike = _hard_text(example, draw)
            if alike is not None:
                return Swap(KINDS.index("hard"), text=alike)
            kind = "text"
        if kind == "image":
            other, text = _other_visual(example, draw), example.text
            if text is not None and text.second != other.tags:  # tags belong to the picture
                text = draw.tokenize(text.text, other.tags)
                return Swap(KINDS.index("image"), other.image, text, other.regions, codes=other.codes)
            return Swap(KINDS.index("image"), other.image, regions=other.regions, codes=other.codes)
        return Swap(KINDS.index("text"), text=_other_text(example, draw))

    def collate(self, values: Sequence[Swap | tuple[Swap, ...]], collate: Collate) -> Swaps:
        """Stack the replaced rows only."""
        found = [(value,) if isinstance(value, Swap) else value for value in values]
        return collated_beside(found, collate) if self.both else collated([swap for (swap,) in found], collate)


def _edit(example: Example, draw: Draw, permutation: Any) -> Tokens | None:
    """A minimal edit of the caption that was drawn, or None where the data has none that survives tokenisation."""
    per_caption, index = example.meta.get("edits"), example.meta.get("caption_index")
    if example.text is None or not per_caption or index is None or index >= len(per_caption):
        return None
    edits = per_caption[index]
    for i in permutation(len(edits)):
        tokens = draw.tokenize(edits[int(i)]["text"], example.text.second)
        if tokens.ids != example.text.ids:
            return tokens
    return None


def _other_visual(example: Example, draw: Draw) -> Visual:
    """What another sample shows: a picture, regions or both, as this sample."""
    if example.image is None and example.regions is None:
        raise Misfit(f"ITM: sample {example.key!r} has no image or regions to replace; name the sources that have them in `sources`")
    for k in range(_TRIES):
        key, other = draw.other_visual(k)
        if key != example.key and not _same(other, example.visual):
            return other
    raise Misfit(f"ITM: {_TRIES} draws gave no image that differs from that of {example.key!r}; the data need more images")


def _same(one: Visual, other: Visual) -> bool:
    """Whether two samples show the same: the same picture, or, where there are none, the same regions."""
    if one.image is not None:
        return torch.equal(one.image, other.image)
    return np.array_equal(one.regions.features, other.regions.features) and np.array_equal(one.regions.boxes, other.regions.boxes)


def _hard_text(example: Example, draw: Draw) -> Tokens | None:
    """A similar caption of another sample, or None where there is none that differs."""
    for k in range(_TRIES):
        found = None if example.text is None else draw.hard_text(k)
        if found is None:
            return None
        tokens = draw.tokenize(found[1].text, example.text.second) if example.text.second != found[1].second else found[1]
        if found[0] != example.key and tokens.ids != example.text.ids:
            return tokens
    return None


def _other_text(example: Example, draw: Draw) -> Tokens:
    if example.text is None:
        raise Misfit(f"ITM: sample {example.key!r} has no text to replace; name the sources with text in `sources`")
    for k in range(_TRIES):
        key, tokens = draw.other_text(k)
        if tokens.second != example.text.second:  # the other caption, with the tags of this picture
            tokens = draw.tokenize(tokens.text, example.text.second)
        if key != example.key and tokens.ids != example.text.ids:
            return tokens
    raise Misfit(f"ITM: {_TRIES} draws gave no text that differs from that of {example.key!r}; the data need more texts")


class MatchHead(nn.Linear):
    """Width -> logits (0: no match, 1: match). Weights from N(0, 0.02), bias 0, as in ViLT's code; ``dropout`` in front of them."""

    def __init__(self, width: int, std: float = 0.02, dropout: float = 0.0, classes: int = 2) -> None:
        self.std, self.dropout = std, dropout
        super().__init__(width, classes)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(dropout(input, self.dropout, self.training) if self.dropout else input)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.std)
        nn.init.zeros_(self.bias)


class ITM(Objective):
    """Binary cross-entropy over two logits of the pooled state; index 1 means match.

    Args:
        negatives: kind -> weight of the draw. ``image``: another image, or its regions, or both, as samples have them, uniform over the
            whole set (ViLT); ``text``: another caption; ``edit``: a minimal edit of the caption (``meta["edits"]``), or another caption
            where there is none; ``hard``: one of the 30 captions most like this one among those with a TF-IDF cosine below 0.5
            (InterBERT: ``{"text": 0.8, "hard": 0.2}``), or another caption where there is none; the data module makes the table;
            ``similar_image`` and ``similar_text``: those of another sample of the micro-batch, drawn by the similarity that the view
            ``after`` sees (ALBEF, arXiv 2107.07651; needs a model that gives ``paired`` states too), or nothing where no other one has
            another key and text. Empty: only the labels of the data. None: ``{"image": 1.0}``.
        head_std: of the head's normal initialisation; as for ViLT's pooler, a narrow model wants about 1 / sqrt(width).
        both: every sample takes part as it is and once more with its negative, so that true and false differ in the replaced part alone, at
            twice the forward. ``each``: once more for each kind of negative, whatever the weights: with ``similar_image`` and
            ``similar_text`` the three pairs of ALBEF. Wants a view of its own, WPA aside.
        weight, view, after, sources: see ``Objective``. The view is its own by default, so that masked text is not matched.

    A sample whose text is known to be false (``matched=False``) is always a negative, unchanged, and labelled statements are never given
    another picture or text, whatever ``negatives`` says. Negatives always differ from the true part (other key and other content);
    ViLT's released code does not look.
    """

    kind: ClassVar[str] = "fused"
    exchanges: ClassVar[bool] = True

    def __init__(
        self,
        negatives: dict[str, float] | None = None,
        head_std: float = 0.02,
        both: bool | Literal["each"] = False,
        *,
        weight: float = 1.0,
        view: str = "itm",
        after: str | None = None,
        sources: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__(weight=weight, view=view, after=after, sources=sources)
        negatives = {"image": 1.0} if negatives is None else dict(negatives)
        unknown = sorted(set(negatives) - set(KINDS[2:]))
        if unknown:
            raise ValueError(f"ITM: unknown kind of negatives {', '.join(unknown)}; known are {', '.join(KINDS[2:])}")
        if any(value < 0 for value in negatives.values()) or (negatives and sum(negatives.values()) <= 0):
            raise ValueError(f"ITM: the weights of negatives must not be negative and not all zero, got {negatives}")
        if both not in (True, False, "each"):
            raise ValueError(f"ITM: both={both!r} must be true, false or each")
        total = sum(negatives.values())
        self.negatives = {kind: value / total for kind, value in negatives.items() if value > 0}
        if self._similar and after is None:
            raise ValueError("ITM: similar negatives are drawn by the states of an earlier view: set `after` to a contrastive one's")
        self.head_std, self.both = head_std, both
        self.head: MatchHead | None = None
        self.pad = 0

    def preparer(self) -> ITMPreparer:
        return ITMPreparer(tuple(self.negatives), tuple(self.negatives.values()), self.both)

    def bind(self, spec: Spec, vocabulary: Vocabulary | None) -> None:
        """Build the head once."""
        if self.kind not in spec.kinds:
            raise ValueError(f"{self.name}: needs a model with the kind {self.kind!r}, this one has {', '.join(spec.kinds)}")
        if self._similar and "paired" not in spec.kinds:
            gives = f"this one has {', '.join(spec.kinds)}; take other negatives"
            raise ValueError(f"{self.name}: similar negatives need a model with the kind 'paired' beside {self.kind!r}, {gives}")
        if vocabulary is not None:
            self.pad = vocabulary.pad
        if self.head is None:
            self.head = MatchHead(spec.pooled_width or spec.width, self.head_std, spec.pooled_dropout)

    @property
    def _similar(self) -> bool:
        return bool(set(self.negatives) & set(SIMILAR))

    def connect(self, objectives: Mapping[str, nn.Module]) -> None:
        """Look whether the view that similar negatives are drawn by gives paired states."""
        if self._similar:
            similar.check(self.name, objectives, self.after)

    def corrupt(self, batch: Batch, outputs: Mapping[str, Any]) -> Batch:
        """Put what was drawn into the batch, or into copies of its samples behind it (``both``), and set ``matched_B``."""
        swaps = batch.targets.get(self.name)
        if not isinstance(swaps, Swaps):
            raise ValueError(f"{self.name}: the batch has no negatives; its preparer must run in the loader under the name {self.name!r}")
        if any(isinstance(target, MaskedTokens) for target in batch.targets.values()):
            raise Misfit(f"{self.name}: the text is masked already; name it before the objectives of its view that mask text")
        made = swapped(repeated(batch, swaps.copies) if swaps.copies else batch, swaps, self.pad)
        if swaps.similar_images or swaps.similar_texts:
            alike = similar.filled(self.name, batch, swaps, outputs.get(self.after or ""))
            made, swaps = swapped(made, alike, self.pad), swaps._replace(kinds_B=alike.kinds_B)
        return made._replace(matched_B=swaps.kinds_B == 0, targets={**made.targets, self.name: swaps})

    def count(self, batch: Batch) -> Tensor:
        """Number of samples."""
        return scalar(batch.size, batch.draw_keys_B.device)

    def logits(self, hidden: Fused, batch: Batch | None = None) -> Tensor:
        """(B, 2); index 1 means match."""
        if hidden.pooled_BD is None:
            raise ValueError(f"{self.name}: the model gave no pooled state")
        if self.head is None:
            raise ValueError(f"{self.name}: there is no head yet; call bind(spec, vocabulary) first")
        return self.head(hidden.pooled_BD)

    def score(self, hidden: Fused) -> Tensor:
        """Log-odds that text and image match, (B,), fp32."""
        logits_B2 = wide(self.logits(hidden))
        return logits_B2[:, 1] - logits_B2[:, 0]

    def forward(self, hidden: Fused, batch: Batch) -> Score:
        """Summed cross-entropy over samples. Stats: ``accuracy`` and ``accuracy_<kind>`` for the positives and each kind of negative."""
        if batch.matched_B is None:
            raise ValueError(f"{self.name}: the batch has no matched_B; call corrupt(batch, outputs) first")
        logits_B2, count = self.logits(hidden, batch), self.count(batch)
        with full_precision(logits_B2.device):
            total = F.cross_entropy(wide(logits_B2), batch.matched_B.long(), reduction="sum")
        right_B = (logits_B2.detach().argmax(-1) == batch.matched_B.long()).float()
        stats = {"accuracy": (right_B.sum(), count)}
        swaps = batch.targets.get(self.name)
        if isinstance(swaps, Swaps):
            for code, kind in enumerate(KINDS):
                if kind in ("matched", "label") or kind in self.negatives or (kind == "text" and {"edit", "hard"} & set(self.negatives)):
                    of_kind_B = (swaps.kinds_B == code).float()
                    stats[f"accuracy_{kind}"] = ((right_B * of_kind_B).sum(), of_kind_B.sum())
        return Score(total, count, stats)
