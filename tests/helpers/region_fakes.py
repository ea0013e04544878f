"""A fusion model over regions whose answers are known: it compares the colour words of a text with the colour that the regions have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from helpers.evaluation import COLOURS, Tokenizer
from torch import Tensor, nn

from mmpretrain.data.collate import Collator
from mmpretrain.data.regions import encode_regions
from mmpretrain.data.tags import Tagger, TagOptions
from mmpretrain.data.visual import Shown
from mmpretrain.evaluate.pretrained import Pretrained
from mmpretrain.evaluate.samples import EvalSet
from mmpretrain.nn.hidden import Fused
from mmpretrain.nn.ragged import Layout, Ragged
from mmpretrain.objectives.mlm import MaskedTokens
from mmpretrain.types import Batch, Regions, Sample, Score, Spec, Statement, Tokens, Vocabulary

MASKED = 15


class PairTokenizer(Tokenizer):
    """Second texts get segment 1."""

    def tokenize(self, text: str, second: str | None = None) -> Tokens:
        first = super().tokenize(text)
        if second is None:
            return first
        more = super().tokenize(second)
        segments = (0,) * len(first.ids) + (1,) * (len(more.ids) - 1)
        return Tokens(first.ids + more.ids[1:], first.words + more.words[1:], text, segments, second)


class Colours(nn.Module):
    """Pooled: agreement of the colour words of the text with the mean feature of the regions, or, with ``tags``, with the tags."""

    spec = Spec(width=3, kinds=("fused",), vocab_size=16, feature_width=3)

    def __init__(self, tags: bool) -> None:
        super().__init__()
        self.tags, self.weight = tags, nn.Parameter(torch.ones(1))

    def forward(self, batch: Batch, kind: str = "fused") -> Fused:
        size, counts_B3, seen_B3 = Layout((1,) * batch.size), None, torch.zeros(batch.size, 3)
        if batch.text is not None:
            ids_BT = batch.text.ids_BT
            segments_BT = torch.zeros_like(ids_BT) if batch.text.segments_BT is None else batch.text.segments_BT
            hits_BT3 = torch.stack([ids_BT == 3 + i for i in range(3)], -1)
            counts_B3, seen_B3 = ((hits_BT3 & (segments_BT == part)[..., None]).float().sum(1) for part in (0, 1))
        if batch.regions is not None and not self.tags:
            layout = Layout(batch.regions.lengths)
            total_B3 = torch.zeros(batch.size, 3).index_add(0, layout.sample_N(torch.device("cpu")), batch.regions.features_NF)
            seen_B3 = total_B3 / torch.tensor(layout.lengths)[:, None]
        pooled = None if counts_B3 is None else (nn.functional.normalize(counts_B3 + 1e-6) * nn.functional.normalize(seen_B3 + 1e-6)).sum(1)
        text = None if counts_B3 is None else Ragged(counts_B3, size)
        return Fused(text, Ragged(seen_B3, size), None if pooled is None else pooled[:, None] * self.weight)


class Matching(nn.Module):
    kind = "fused"

    def score(self, hidden: Fused) -> Tensor:
        return hidden.pooled_BD[:, 0] * 10 - 8


class ColourWords(nn.Module):
    """Hides the colour word of each text and guesses it from the regions: one token for each text."""

    kind, whole_word = "fused", True

    def predict(self, hidden: Fused, batch: Batch, k: int = 5) -> list[list[Any]]:
        return [[] for _ in batch.keys]

    def corrupt(self, batch: Batch, outputs: Any) -> Batch:
        ids_BT = batch.text.ids_BT
        colour_BT = (ids_BT >= 3) & (ids_BT < 6)
        labels_B = torch.where(colour_BT, ids_BT - 3, 99).amin(1)
        masked = batch.text._replace(ids_BT=torch.where(colour_BT, MASKED, ids_BT))
        target = MaskedTokens(torch.arange(batch.size), labels_B, torch.tensor(float(batch.size)))
        return batch._replace(text=masked, targets={"mlm": target})

    def forward(self, hidden: Fused, batch: Batch) -> Score:
        seen_B3 = hidden.image.x_ND
        right_B = (seen_B3.argmax(1) == batch.targets["mlm"].labels_R) & (seen_B3.amax(1) > 0)
        count = torch.tensor(float(batch.size))
        return Score(count, count, {"accuracy": (right_B.float().sum(), count)})


def pretrained(tags: bool = False) -> Pretrained:
    """``tags``: the colour is read from the tags of the regions' classes, not from their features."""
    vocabulary = Vocabulary(16, 0, MASKED, 1, 2, (0, 1, 2))
    tagger = Tagger(TagOptions("regions"), tuple(COLOURS)) if tags else None
    objectives = {"itm": Matching(), "mlm": ColourWords()}
    collate = Collator(0, (0.0,) * 3, (1.0,) * 3)
    return Pretrained(Colours(tags), objectives, PairTokenizer(), None, vocabulary, collate=collate, shown=Shown("regions"), tagger=tagger)


def _regions(colour: int, count: int) -> Regions:
    features = np.zeros((count, 3), dtype=np.float16)
    features[:, colour] = 1
    boxes = np.tile(np.array([[0, 0, 4, 4]], dtype=np.float32), (count, 1))
    return Regions(features, boxes, np.array([8, 8], dtype=np.int32), classes=np.full(count, colour, dtype=np.int16))


def coloured(rounds: int = 1) -> EvalSet:
    """One sample per colour and round, of one to three regions, with a caption, an edit and statements."""
    samples: list[Sample] = []
    for i in range(rounds):
        for place, colour in enumerate(COLOURS):
            other = "green" if colour == "red" else "red"
            told: Sequence[Statement] = (Statement(f"{colour} ball", True), Statement(f"{other} ball", False))
            meta = {"edits": [[{"text": f"{other} cube", "kind": "colour"}]], "colour": colour}
            data = encode_regions(_regions(place, 1 + (i + place) % 3))
            samples.append(Sample(f"{colour}{i}", (f"{colour} cube",), (), tuple(told), meta, data))
    return EvalSet("fake", samples, "f00")
