"""Oscar's contrast: are these the tags of this picture? (Oscar, arXiv 2004.06165 section 3; VinVL's Oscar+, arXiv 2101.00529 section 3.2.)

Texts are pairs of a caption and the tags of the picture (``data.tags``). The tags, and for three classes the caption, are exchanged as a
whole; picture and regions stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor

from mmpretrain.nn.hidden import Fused
from mmpretrain.nn.misfit import Misfit
from mmpretrain.objectives.precision import wide
from mmpretrain.objectives.swaps import Swap
from mmpretrain.objectives.text_contrast import LEFT_OUT, MATCHED, TRIES, Contrasted, TextContrast, contrasted
from mmpretrain.types import Collate, Draw, Example, Tokens

KINDS = ("tags", "matched", "caption")  # what is wrong, by class; two classes are the first two
TAGS, CAPTION = KINDS.index("tags"), KINDS.index("caption")
RELEASED = {2: (1, 0), 3: (1, 0, 2)}  # classes -> our row of each row of the heads that Oscar and Oscar+ released (0: intact)
PROBS = {2: (0.5, 0.5), 3: (0.5, 0.25, 0.25)}


class TagsPreparer(NamedTuple):
    """The worker's half: draws what is exchanged, with the chances ``probs`` of nothing, the tags and the caption."""

    probs: tuple[float, ...]
    negatives: str

    def prepare(self, example: Example, draw: Draw) -> Swap:
        """The text that replaces that of this example. A sample without tags, or whose text is known to be false, takes no part."""
        text = example.text
        if text is None:
            raise Misfit(f"TagContrast: sample {example.key!r} has no text; name the sources that have text in `sources`")
        if text.second is None or not example.matched:
            return Swap(LEFT_OUT)
        generator = draw.generator("tags")
        kind = (MATCHED, TAGS, CAPTION)[int(generator.choice(len(self.probs), p=self.probs))]
        if kind == MATCHED:
            return Swap(kind)
        for k in range(TRIES):
            key, other = draw.other_text(k)
            from_caption = self.negatives == "any" and bool(generator.integers(2))
            made = self._changed(text, other, kind, from_caption, draw) if key != example.key else None
            if made is not None and made.ids != text.ids:
                return Swap(kind, text=made)
        raise Misfit(
            f"TagContrast: {TRIES} draws gave no {KINDS[kind]} that differ from those of {example.key!r}; the data need more of them"
        )

    def _changed(self, text: Tokens, other: Tokens, kind: int, from_caption: bool, draw: Draw) -> Tokens | None:
        if kind == CAPTION:
            return draw.tokenize(other.text, text.second) if other.text != text.text else None
        if from_caption:
            return draw.tokenize(text.text, other.text)
        if other.second is None or sorted(other.second.split()) == sorted((text.second or "").split()):
            return None  # the same things in another order
        return draw.tokenize(text.text, other.second)

    def collate(self, values: Sequence[Swap], collate: Collate) -> Contrasted:
        return contrasted(values, collate)


class TagContrast(TextContrast):
    """Whether caption and tags are those of the picture, from the pooled state.

    Class 1 is an intact text, class 0 has wrong tags, class 2 a wrong caption. (Oscar's and Oscar+'s releases have 0 for intact and 1 for
    wrong tags: ``RELEASED`` permutes the rows of their heads.) ``matched_B`` says which texts are intact, so that masked language modelling
    in the same view, after it in the recipe, sees the exchanged text; the releases keep its loss there (``only_if_matched: false``).

    Args:
        classes: 2 (Oscar) or 3 (Oscar+: the caption is exchanged, too).
        probs: chances of an intact text, wrong tags and, for three classes, a wrong caption; None: 0.5 and 0.5, or 0.5, 0.25 and 0.25.
        negatives: wrong tags are ``tags``: those of another picture (papers); ``any``: those, or, as often, a caption (Oscar's release).
        head_std: of the head's normal initialisation.
        weight, view, after, sources: see ``Objective``.

    Another sample is drawn until its key and its tags differ, whatever their order. A sample without tags takes no part.
    """

    def __init__(
        self,
        classes: Literal[2, 3] = 2,
        probs: tuple[float, ...] | None = None,
        negatives: Literal["tags", "any"] = "tags",
        head_std: float = 0.02,
        *,
        weight: float = 1.0,
        view: str = "main",
        after: str | None = None,
        sources: tuple[str, ...] | None = None,
    ) -> None:
        if classes not in PROBS or negatives not in ("tags", "any"):
            raise ValueError(f"TagContrast: classes={classes} must be 2 or 3, negatives={negatives!r} tags or any")
        super().__init__(KINDS[:classes], head_std, weight=weight, view=view, after=after, sources=sources)
        given = PROBS[classes] if probs is None else tuple(probs)
        if len(given) != classes or min(given) < 0 or abs(sum(given) - 1) > 1e-6:
            raise ValueError(f"TagContrast: probs={list(given)} must be {classes} chances with the sum 1")
        self.probs, self.negatives = given, negatives

    def preparer(self) -> TagsPreparer:
        return TagsPreparer(self.probs, self.negatives)

    def score(self, hidden: Fused) -> Tensor:
        """Log-odds that the text is intact, (B,), fp32."""
        logits_BC = wide(self._class_logits(hidden))
        wrong = [number for number in range(len(self.kinds)) if number != MATCHED]
        return logits_BC[:, MATCHED] - logits_BC[:, wrong].logsumexp(1)
