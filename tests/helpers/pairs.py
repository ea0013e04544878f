"""Texts of words with captions and tags, and the draws of preparers over them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from helpers.objectives import CLS, SEP, Drawer, Stack, picture

from mmpretrain import random
from mmpretrain.types import Batch, Example, Tokens


def words(text: str, second: str | None = None, size: int = 400) -> Tokens:
    """[CLS] first [SEP], or [CLS] first [SEP] second [SEP]: one token for a word, two for one of more than six letters."""
    ids, index, offsets, segments, word = [CLS], [-1], [(0, 0)], [0], -1
    for number, part in enumerate([text] if second is None else [text, second]):
        for match in re.finditer(r"\S+", part):
            word += 1
            cuts = [match.start(), match.start() + 4, match.end()] if len(match[0]) > 6 else [match.start(), match.end()]
            for start, end in itertools.pairwise(cuts):
                ids.append(5 + random.stream(part[start:end]) % (size - 5))
                index.append(word)
                offsets.append((start, end))
                segments.append(number)
        ids.append(SEP)
        index.append(-1)
        offsets.append((0, 0))
        segments.append(number)
    return Tokens(tuple(ids), tuple(index), text, None if second is None else tuple(segments), second, tuple(offsets))


class Told(NamedTuple):
    """What is told of one picture."""

    captions: tuple[str, ...]
    tags: str | None = None


def example(i: int, told: Told, seed: int = 0, matched: bool = True, caption: int = 0, **meta) -> Example:
    about = {"caption_index": caption, "captions": told.captions, **meta}
    text = words(told.captions[caption], told.tags)
    return Example(f"k{i}", i, random.key_of(seed, 0, i), text, picture(i), matched, about)


class PairDrawer(Drawer):
    """What a preparer may draw from: others of a list."""

    def __init__(self, position: int, told: Sequence[Told], seed: int = 0, own: int | None = None) -> None:
        super().__init__(position, len(told), seed)
        self.told, self.own = told, position if own is None else own

    def other_text(self, k: int) -> tuple[str, Tokens]:
        rng = self.generator(f"text/{k}")
        j = int(rng.integers(self.n - 1))
        j += j >= self.own
        captions = self.told[j].captions
        return f"k{j}", words(captions[int(rng.integers(len(captions)))], self.told[j].tags)

    def tokenize(self, text: str, second: str | None = None) -> Tokens:
        return words(text, second)


class PairStack(Stack):
    """The collate of the tests, with segments."""

    def text(self, texts):
        made = super().text(texts)
        width = made.ids_BT.shape[1]
        rows = [[*(t.segments or [0] * len(t.ids)), *[0] * (width - len(t.ids))] for t in texts]
        return made._replace(segments_BT=torch.tensor(rows)) if any(t.segments for t in texts) else made


def batch_of(examples: Sequence[Example]) -> Batch:
    keys_B, matched_B = torch.tensor([e.draw_key for e in examples]), torch.tensor([e.matched for e in examples])
    return Batch(tuple(e.key for e in examples), keys_B, PairStack().text([e.text for e in examples]), matched_B=matched_B)
