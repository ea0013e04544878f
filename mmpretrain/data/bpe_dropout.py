"""Byte-pair encoding with dropout of merges (BPE-dropout, arXiv 1910.13267, section 3.2, algorithm 1).

At every step all merges that a word allows are looked at, each is left out with probability ``rate``, and the one of the lowest rank that
remains is done; a step without any ends the word. Rate 0 is plain byte-pair encoding, rate 1 leaves letters. The library's dropout draws
from a generator of the process, so that a text would be cut differently by another worker; here the caller gives the generator.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mmpretrain.data.errors import DataError

_KEPT = 1 << 16  # words whose plain pieces are remembered
_BLOCK = 64  # random numbers drawn at a time
_Merge = tuple[int, int, int]  # rank, id of what comes out, place in the word
NEEDS = "data.text.dropout needs byte-pair encoding: data.text.tokenizer=byte_bpe, clip, or a folder of such a one"


class Piece(NamedTuple):
    """A token of a word."""

    id: int
    start: int  # bytes of the word
    end: int


class _Plain(NamedTuple):
    """A word without dropout."""

    pieces: tuple[Piece, ...]
    merges: int  # that led there


class _Draws:
    """Uniform numbers of a generator, in its order, drawn in blocks."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator, self.values, self.at = generator, list[float](), 0

    def spared(self, count: int, rate: float) -> bool:
        """Whether the next ``count`` numbers spare their merges; they are taken only if they do."""
        while len(self.values) < self.at + count:
            self.values += self.generator.random(_BLOCK).tolist()
        spared = all(value >= rate for value in self.values[self.at : self.at + count])
        self.at += count if spared else 0
        return spared

    def first(self, merges: Sequence[_Merge], rate: float) -> _Merge | None:
        """The first merge that is not left out; one number for each that was looked at."""
        for one in merges:
            if self.spared(1, rate):
                return one
            self.at += 1
        return None


class DroppingBpe:
    """The merges of a tokenizer, done with dropout.

    Args:
        backend: a ``tokenizers.Tokenizer`` over a BPE model.

    Raises:
        DataError: another model, or one with features that change what a merge is (byte fallback, whole words first, added tokens).
    """

    def __init__(self, backend: Any) -> None:
        described = json.loads(backend.to_str())
        model = described["model"]
        if model.get("type") != "BPE" or model.get("byte_fallback") or model.get("ignore_merges"):
            raise DataError(f"{NEEDS}; this tokenizer is {model.get('type')}" + (" of another kind" if model.get("type") == "BPE" else ""))
        if added := [token["content"] for token in described.get("added_tokens", ()) if not token["special"]]:
            raise DataError(f"data.text.dropout: the tokenizer has added tokens ({added[0]!r}), which no merge leads to; take one without")
        self.backend, self.ids = backend, model["vocab"]
        self.prefix, self.suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
        self.unknown, self.fuses = self.ids.get(model.get("unk_token")), bool(model.get("fuse_unk"))
        self.names = {number: name for name, number in self.ids.items()}
        self.merges: dict[tuple[int, int], tuple[int, int]] = {}  # pair -> (rank, what it becomes)
        for rank, merge in enumerate(model["merges"]):
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            self.merges[self.ids[left], self.ids[right]] = rank, self.ids[left + right.removeprefix(self.prefix)]
        self._known: dict[str, _Plain] = {}

    def encoding(self, text: str, rate: float, generator: np.random.Generator | None) -> Any:
        """The ``tokenizers.Encoding`` of a text before truncation and special tokens, its words cut by :meth:`word`."""
        from tokenizers import PreTokenizedString, Token

        draws = _Draws(generator) if generator is not None else None

        def cut(word: str) -> list[Any]:
            return [Token(one.id, self.names[one.id], (one.start, one.end)) for one in self.word(word, rate, draws)]

        whole, backend = PreTokenizedString(text), self.backend
        if backend.normalizer is not None:
            whole.normalize(backend.normalizer.normalize)
        if backend.pre_tokenizer is not None:
            backend.pre_tokenizer.pre_tokenize(whole)
        whole.tokenize(cut)
        return whole.to_encoding()

    def word(self, word: str, rate: float, draws: _Draws | None) -> Sequence[Piece]:
        """The tokens of a word, as the pre-tokenizer gives it; without ``draws`` or at rate 0 the plain ones."""
        plain = self._known.get(word)
        if plain is None:
            if len(self._known) >= _KEPT:
                self._known.clear()
            plain = self._known[word] = self._merged(self._letters(word), 0.0, None)
        if draws is None or not rate or draws.spared(plain.merges, rate):  # nothing was left out, so nothing changes
            return plain.pieces
        return self._merged(self._letters(word), rate, draws).pieces

    def _letters(self, word: str) -> list[Piece]:
        found, at, last = list[Piece](), 0, len(word) - 1
        for place, letter in enumerate(word):
            end = at + len(letter.encode("utf-8"))
            number = self.ids.get((self.prefix if place else "") + letter + (self.suffix if place == last else ""), self.unknown)
            if number is not None and number == self.unknown and self.fuses and found and found[-1].id == number:
                found[-1] = found[-1]._replace(end=end)
            elif number is not None:
                found.append(Piece(number, at, end))
            at = end
        return found

    def _merged(self, parts: list[Piece], rate: float, draws: _Draws | None) -> _Plain:
        done = 0
        while True:
            pairs = ((self.merges.get((parts[at].id, parts[at + 1].id)), at) for at in range(len(parts) - 1))
            # the best first: those behind it need no draw unless it is left out
            able = sorted((*merge, at) for merge, at in pairs if merge is not None)
            chosen = next(iter(able), None) if draws is None else draws.first(able, rate)
            if chosen is None:
                return _Plain(tuple(parts), done)
            _, number, at = chosen
            parts[at : at + 2] = [Piece(number, parts[at].start, parts[at + 1].end)]
            done += 1
