"""Texts alone as chunks: a text and those of the samples behind it, one after another, until ``data.max_tokens`` are full (VL-BERT,
arXiv 1908.08530, released code: lines of books and Wikipedia in chunks of 64 pieces without [CLS] and [SEP])."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

from mmpretrain.types import Tokens


def chunk(first: str, others: Iterator[str], tokenize: Callable[[str], Tokens], most: int) -> Tokens:
    """A chunk of ``most`` tokens without special tokens, fewer where the texts hold no more; words are counted on. It has no offsets.

    Args:
        first: its first text.
        others: those behind it, asked for one by one.
        tokenize: one text, with special tokens.
        most: tokens of the chunk.
    """
    ids: list[int] = []
    words: list[int] = []
    told: list[str] = []
    for text in chain([first], others):
        found, start = tokenize(text), words[-1] + 1 if words else 0
        kept = [(number, word + start) for number, word in zip(found.ids, found.words, strict=True) if word >= 0]
        ids += [number for number, _ in kept]
        words += [word for _, word in kept]
        told.append(text)
        if len(ids) >= most:
            break
    return Tokens(tuple(ids[:most]), tuple(words[:most]), " ".join(told))
