"""Hand-made batches, hidden states and draws for the tests of objectives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mmpretrain import random
from mmpretrain.nn.hidden import Fused
from mmpretrain.nn.ragged import Layout, Ragged
from mmpretrain.types import Batch, Example, Pixels, Spec, Text, Tokens, Visual, Vocabulary

PAD, UNK, CLS, SEP, MASK = range(5)


def vocabulary(size: int = 40, extra_special: tuple[int, ...] = ()) -> Vocabulary:
    return Vocabulary(size, PAD, MASK, CLS, SEP, (PAD, UNK, CLS, SEP, MASK, *extra_special))


def spec(width: int = 8, vocab: int = 40, kinds: tuple[str, ...] = ("fused", "paired"), table: bool = True) -> Spec:
    return Spec(width, kinds, vocab, nn.Embedding(vocab, width) if table else None, embed_dim=width)


def keys(n: int, seed: int = 0) -> Tensor:
    return torch.tensor([random.key_of(seed, 0, i) for i in range(n)])


def tokens(length: int, seed: int = 0, size: int = 40) -> Tokens:
    """[CLS] ordinary tokens [SEP]; words have one or two tokens, in turn."""
    ids = np.random.default_rng(seed).integers(5, size, length - 2)
    words = [word for word in range(length) for _ in range(1 + word % 2)][: length - 2]
    return Tokens((CLS, *map(int, ids), SEP), (-1, *words, -1), f"text {seed}")


class Stack:
    """The collate of the tests."""

    def text(self, texts: Sequence[Tokens]) -> Text:
        width = max(len(t.ids) for t in texts)
        pad = lambda values, fill: torch.tensor([[*v, *[fill] * (width - len(v))] for v in values])
        return Text(pad([t.ids for t in texts], PAD), tuple(len(t.ids) for t in texts), pad([t.words for t in texts], -1))

    def pixels(self, images: Sequence[Tensor]) -> Pixels:
        sizes = tuple((x.shape[1], x.shape[2]) for x in images)
        out = torch.zeros(len(images), 3, max(h for h, _ in sizes), max(w for _, w in sizes), dtype=torch.uint8)
        for row, x in enumerate(images):
            out[row, :, : x.shape[1], : x.shape[2]] = x
        return Pixels(out, sizes, (0.5,) * 3, (0.5,) * 3)


def picture(seed: int) -> Tensor:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 6, 2)
    return torch.from_numpy(rng.integers(1, 255, (3, height, width), dtype=np.uint8))


def example(i: int, matched: bool = True, **meta) -> Example:
    return Example(f"k{i}", i, random.key_of(0, 0, i), tokens(4 + i % 5, seed=i), picture(i), matched, meta)


class Drawer:
    """What a preparer may draw from, over a set of ``n`` examples."""

    def __init__(self, position: int, n: int, seed: int = 0) -> None:
        self.position, self.n, self.seed = position, n, seed

    def generator(self, stream: str, shared_by: int = 1) -> np.random.Generator:
        return np.random.default_rng(random.key_of(self.seed, random.stream(stream), self.position // shared_by) % 2**63)

    def other(self, k: int, stream: str) -> int:
        j = int(self.generator(f"{stream}/{k}").integers(self.n - 1))
        return j + (j >= self.position)

    def other_visual(self, k: int) -> tuple[str, Visual]:
        j = self.other(k, "image")
        return f"k{j}", Visual(picture(j))

    def other_text(self, k: int) -> tuple[str, Tokens]:
        j = self.other(k, "text")
        return f"k{j}", tokens(4 + j % 5, seed=j)

    def hard_text(self, k: int) -> tuple[str, Tokens] | None:
        """Of the three that follow; the last sample has none."""
        if self.position % self.n == self.n - 1:
            return None
        j = (self.position + 1 + int(self.generator(f"hard/{k}").integers(3))) % self.n
        return f"k{j}", tokens(4 + j % 5, seed=j)

    def tokenize(self, text: str, second: str | None = None) -> Tokens:
        return tokens(9, seed=random.stream(text if second is None else f"{text}\n{second}"))._replace(second=second)


def batch_of(examples: Sequence[Example]) -> Batch:
    stack = Stack()
    return Batch(
        tuple(e.key for e in examples),
        torch.tensor([e.draw_key for e in examples]),
        stack.text([e.text for e in examples]),
        stack.pixels([e.image for e in examples]),
        torch.tensor([e.matched for e in examples]),
    )


def ragged(lengths: tuple[int, ...], width: int = 8, seed: int = 0, dtype: torch.dtype = torch.float32) -> Ragged:
    layout = Layout(lengths)
    return Ragged(torch.randn(layout.total, width, generator=torch.Generator().manual_seed(seed), dtype=dtype), layout)


def fused(text: tuple[int, ...], image: tuple[int, ...], prefix: int = 1, dtype: torch.dtype = torch.float32) -> Fused:
    states = ragged(text, seed=1, dtype=dtype)
    return Fused(states, ragged(image, seed=2, dtype=dtype), states.x_ND[torch.from_numpy(states.layout.starts[:-1])], prefix)
