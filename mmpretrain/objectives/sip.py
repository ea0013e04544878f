"""Sentence-image prediction: does the second caption belong to the picture, too? (VisualBERT, arXiv 1908.03557 section 3.3.)

The text is [CLS] caption A [SEP] caption B [SEP]: A is a caption of the picture, B another one of it or one of another picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mmpretrain.nn.misfit import Misfit
from mmpretrain.objectives.swaps import Swap
from mmpretrain.objectives.text_contrast import LEFT_OUT, MATCHED, TRIES, Contrasted, TextContrast, contrasted
from mmpretrain.types import Collate, Draw, Example

KINDS = ("other", "matched")  # whose caption B is, by class


class SIPPreparer(NamedTuple):
    """The worker's half: draws caption B."""

    wants: tuple[str, ...] = ("captions", "pair")

    def prepare(self, example: Example, draw: Draw) -> Swap:
        """The pair of captions. A picture with one caption, a question or a statement takes no part: its text stays alone."""
        text, captions = example.text, example.meta.get("captions") or ()
        if text is None or text.second is not None:
            lack = "no text" if text is None else "a pair already; set data.tags: null"
            raise Misfit(f"SIP: sample {example.key!r} has {lack}")
        if not example.matched or "caption_index" not in example.meta:
            return Swap(LEFT_OUT)
        ids = [draw.tokenize(caption).ids for caption in captions]  # captions that read alike to the model are the same
        own = [caption for caption, found in zip(captions, ids, strict=True) if found != text.ids]
        if not own:
            return Swap(LEFT_OUT)
        generator = draw.generator("sip")
        if generator.integers(2):
            return Swap(MATCHED, text=draw.tokenize(text.text, own[int(generator.integers(len(own)))]))
        for k in range(TRIES):
            key, other = draw.other_text(k)
            if key != example.key and other.ids not in ids:
                return Swap(KINDS.index("other"), text=draw.tokenize(text.text, other.text))
        raise Misfit(f"SIP: {TRIES} draws gave no caption that {example.key!r} does not have; the data need more captions")

    def collate(self, values: Sequence[Swap], collate: Collate) -> Contrasted:
        return contrasted(values, collate)


class SIP(TextContrast):
    """Whether caption B is one of the picture, from the pooled state; class 1 means that it is (as in the released code, and the reverse of
    BERT's next-sentence head, which initialises it there).

    Name it before masked language modelling in the recipe, which then masks both captions; the released code keeps its loss where B is of
    another picture (``only_if_matched: false``). A picture with a single caption is shown with that one alone and takes no part here: a
    second text that is always wrong would give the answer away. Too long pairs are cut at the end of the longer caption (the released
    code cuts from the front).

    Args:
        head_std: of the head's normal initialisation.
        weight, view, after, sources: see ``Objective``.
    """

    def __init__(
        self,
        head_std: float = 0.02,
        *,
        weight: float = 1.0,
        view: str = "main",
        after: str | None = None,
        sources: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__(KINDS, head_std, weight=weight, view=view, after=after, sources=sources)

    def preparer(self) -> SIPPreparer:
        return SIPPreparer()
