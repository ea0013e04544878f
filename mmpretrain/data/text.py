"""Tokenizers: trained on the corpus, a transformers folder, or CLIP's; one class over the ``tokenizers`` library.

A tokenizer adds its special tokens, cuts texts that are too long in front of the final special token, and says to which word each token
belongs: ``##`` continues a word of WordPiece, a leading space (``Ġ``, ``▁``) starts one of byte-level BPE, ``</w>`` ends one of CLIP's.
Special tokens spelt out in a caption are ordinary text, so that no caption can smuggle in a mask or an end.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mmpretrain.data.bpe_dropout import DroppingBpe
from mmpretrain.data.errors import DataError
from mmpretrain.data.function_words import is_function_word
from mmpretrain.types import Tokens, Vocabulary

STYLES = ("wordpiece", "byte_bpe", "clip", "unigram")
ROLES = ("pad", "mask", "cls", "sep", "unk")


@dataclass(frozen=True)
class TextOptions:
    """Which tokenizer.

    Args:
        tokenizer: ``wordpiece`` or ``byte_bpe`` (trained on the training texts), ``clip`` (that of open_clip), or a folder with a
            transformers tokenizer.
        vocab_size: largest vocabulary when it is trained.
        lowercase: of the two that are trained here; texts and questions to the model are lower-cased with the tokenizer.
        min_frequency: a pair of pieces is merged only if it occurs so often.
        corpus: most samples that training reads, evenly spread over the set.
        dropout: in training every merge of byte-pair encoding is left out with this probability (BPE-dropout, arXiv 1910.13267; DALL-E:
            0.1), by the random numbers of the example; ids mean the same, evaluation has none.
        special: start and end tokens around each text; False: its own tokens alone (DALL-E, which has learned paddings behind them).

    Raises:
        DataError: an option out of its range.
    """

    tokenizer: str = "wordpiece"
    vocab_size: int = 30522
    lowercase: bool = True
    min_frequency: int = 2
    corpus: int = 1_000_000
    dropout: float = 0.0
    special: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise DataError(f"data.text.dropout={self.dropout} must be from 0 to 1, below 1")

    @property
    def vocabulary(self) -> dict[str, Any]:
        """The options that the ids of tokens hang on."""
        return {name: value for name, value in vars(self).items() if name not in ("dropout", "special")}


def same_ids(text: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> bool:
    """Whether two tables ``data.text`` of configurations, one maybe of an older version, ask for the same ids."""
    first, second = ({**vars(TextOptions()), **(one or {}), "dropout": None} for one in (text, other))
    return first == second


class Tokenizer:
    """Text to ids and back.

    Args:
        backend: JSON text of a ``tokenizers.Tokenizer`` with its post-processor.
        style: how words are marked, one of ``STYLES``.
        roles: role (``pad``, ``mask``, ``cls``, ``sep``, ``unk``) -> token; roles may be missing.
        max_tokens: texts are cut to so many ids, special tokens included.
        pad_id: the id of padding where no token has that role (CLIP pads with 0).
        clean: repair the text and unescape HTML first, as open_clip does.
        answers: what questions are answered with, kept with the tokenizer.

    Raises:
        DataError: a role names a token that the vocabulary lacks, or ``max_tokens`` leaves no room.
    """

    def __init__(
        self,
        backend: str,
        style: str,
        roles: dict[str, str],
        max_tokens: int,
        pad_id: int | None = None,
        clean: bool = False,
        answers: Sequence[str] = (),
    ) -> None:
        from tokenizers import Tokenizer as Backend

        if style not in STYLES:
            raise DataError(f"tokenizer: style {style!r} is not one of {', '.join(STYLES)}")
        self.style, self.roles, self.max_tokens, self.clean = style, dict(roles), max_tokens, clean
        self.answers = tuple(answers)
        self.backend = Backend.from_str(backend)
        self.backend.no_padding()
        self.backend.no_truncation()
        self.backend.encode_special_tokens = True
        for role, token in self.roles.items():
            if role not in ROLES or self.backend.token_to_id(token) is None:
                raise DataError(f"tokenizer: its {role} token {token!r} is not in its vocabulary")
        self.pad_id = self._id("pad") if pad_id is None else pad_id
        if self.pad_id is None:
            raise DataError("tokenizer: it has no padding token; add pad_token to its tokenizer_config.json")
        if max_tokens < self.backend.num_special_tokens_to_add(False) + 1:
            raise DataError(f"data.max_tokens={max_tokens} leaves no room for text beside the special tokens")
        self.backend.enable_truncation(max_tokens)

    def _id(self, role: str) -> int | None:
        return self.backend.token_to_id(self.roles[role]) if role in self.roles else None

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What objectives need to know of it."""
        special = {i for i, token in self.backend.get_added_tokens_decoder().items() if token.special}
        special |= {i for role in self.roles if (i := self._id(role)) is not None}
        roles = (self._id("mask"), self._id("cls"), self._id("sep"))
        return Vocabulary(self.size, self.pad_id, *roles, tuple(sorted(special)), self._function(special), self.answers)

    def _function(self, special: set[int]) -> tuple[int, ...]:
        """Ids of whole function words, however they are marked, and of punctuation."""
        whole = {"wordpiece": lambda token: not token.startswith("##"), "clip": lambda token: token.endswith("</w>")}
        is_whole = whole.get(self.style, lambda token: token.startswith(("Ġ", "▁")))
        found = []
        for token, number in self.backend.get_vocab(True).items():
            bare = token.removeprefix("##").removesuffix("</w>").lstrip("Ġ▁")
            if number not in special and bare and is_function_word(bare) and (is_whole(token) or not bare.isalnum()):
                found.append(number)
        return tuple(sorted(found))

    @cached_property
    def size(self) -> int:
        """One more than the largest id."""
        return max(self.backend.get_vocab(True).values()) + 1

    @cached_property
    def _marks(self) -> np.ndarray:
        """Per id: whether the token starts a word (for ``clip``: ends one)."""
        marks = np.zeros(self.size, dtype=bool)
        for token, number in self.backend.get_vocab(True).items():
            if self.style == "wordpiece":
                marks[number] = not token.startswith("##")
            elif self.style == "clip":
                marks[number] = token.endswith("</w>")
            else:
                marks[number] = token.startswith(("Ġ", "▁"))
        return marks

    @cached_property
    def dropping(self) -> DroppingBpe:
        """Its merges, to be left out at random.

        Raises:
            DataError: it is no plain byte-pair encoding.
        """
        return DroppingBpe(self.backend)

    def tokenize(self, text: str, second: str | None = None, dropout: float = 0.0, generator: np.random.Generator | None = None) -> Tokens:
        """Ids with special tokens, at most ``max_tokens``, and the word of each (-1 for special tokens).

        With ``second`` a pair, as the tokenizer joins two texts (BERT: [CLS] first [SEP] second [SEP]), whose ``segments`` say which of the
        two a token belongs to; words are counted on. A pair that is too long loses the last token of the longer text, of the second one
        where they are alike, until it fits (BERT's and Oscar's released code; transformers may favour the second text by one token).

        Args:
            dropout: probability that a merge of byte-pair encoding is left out, by random numbers of ``generator``.

        Raises:
            DataError: ``max_tokens`` leaves no room for a pair, or dropout of a tokenizer that has no merges.
        """
        found, offsets = self._encode(text, second, dropout, generator)
        ids, words, word, starts = found.ids, [], -1, True
        for number, special in zip(ids, found.special_tokens_mask, strict=True):
            if special:
                words.append(-1)
                starts = True  # whatever follows is a new word
                continue
            mark = bool(self._marks[number])
            if starts or (mark and self.style != "clip"):
                word += 1
            starts = mark and self.style == "clip"
            words.append(word)
        segments = _segments(found) if second is not None else None
        return Tokens(tuple(ids), tuple(words), text, segments, second, offsets if not self.clean else None)  # cleaning moves characters

    def _encode(
        self, text: str, second: str | None, dropout: float, generator: np.random.Generator | None
    ) -> tuple[Any, tuple[tuple[int, int], ...]]:
        """The encoding, and the characters of its tokens."""
        if self.clean:
            text, second = clean_text(text), None if second is None else clean_text(second)

        def encode(one: str, special: bool) -> Any:
            if not dropout or generator is None:
                return self.backend.encode(one, add_special_tokens=special)
            return self.backend.post_process(self.dropping.encoding(one, dropout, generator), add_special_tokens=special)

        if second is None:
            found = encode(text, True)
            return found, tuple(found.offsets)
        room = self.max_tokens - self.backend.num_special_tokens_to_add(True)
        if room < 2:
            raise DataError(f"data.max_tokens={self.max_tokens} leaves no room for two texts beside the special tokens")
        first, other = (encode(one, False) for one in (text, second))
        if len(first.ids) + len(other.ids) > room:
            kept = min(len(first.ids), max(-(-room // 2), room - len(other.ids)))
            first.truncate(kept)
            other.truncate(min(len(other.ids), room - kept))
        inside = iter([*first.offsets, *other.offsets])  # joining would trim spaces off those of byte-level BPE once more
        found = self.backend.post_process(first, other)
        return found, tuple((0, 0) if special else next(inside) for special in found.special_tokens_mask)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of ids; without special tokens and padding unless asked."""
        kept = [int(i) for i in ids if not (skip_special and int(i) in self.vocabulary.special)]
        text = self.backend.decode(kept, skip_special_tokens=False)
        return text.replace("</w>", " ").strip() if self.style == "clip" else text.strip()

    def token(self, number: int) -> str:
        """One id as people read it: no word marks."""
        text = self.backend.id_to_token(int(number))
        if text is None:
            return f"<{number}>"
        if self.style in ("byte_bpe", "clip") and number not in self.vocabulary.special:
            return self.decode([number]) or text.strip("Ġ")
        return text.removeprefix("##").removeprefix("▁")

    def with_max_tokens(self, max_tokens: int) -> Tokenizer:
        """The same tokenizer with another limit."""
        return Tokenizer(self._plain(), self.style, self.roles, max_tokens, self.pad_id, self.clean, self.answers)

    def with_answers(self, answers: Sequence[str]) -> Tokenizer:
        """The same tokenizer with these answers to questions."""
        return Tokenizer(self._plain(), self.style, self.roles, self.max_tokens, self.pad_id, self.clean, answers)

    def _plain(self) -> str:
        """The backend without truncation, as JSON text."""
        from tokenizers import Tokenizer as Backend

        copy = Backend.from_str(self.backend.to_str())
        copy.no_truncation()
        return copy.to_str()

    def to_json(self) -> str:
        """All of it as JSON text, for checkpoints."""
        facts = {name: getattr(self, name) for name in ("style", "roles", "max_tokens", "pad_id", "clean")}
        facts |= {"answers": self.answers} if self.answers else {}
        return json.dumps({"version": 1, **facts, "backend": self._plain()}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """Inverse of :meth:`to_json`.

        Raises:
            DataError: not such a text.
        """
        try:
            found = json.loads(text)
            if found.pop("version") != 1:
                raise DataError("tokenizer: written by a newer version of mmpretrain")
            return cls(**found)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"tokenizer: its saved text cannot be read ({error})") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer.from_json, (self.to_json(),)

    def save_transformers(self, folder: Path | str) -> None:
        """Write the files that transformers' ``AutoTokenizer`` opens: see :mod:`mmpretrain.data.tokenizer_files`."""
        from mmpretrain.data.tokenizer_files import save

        save(self, Path(folder))


def _segments(found: Any) -> tuple[int, ...]:
    """0 for the first text of a pair and its special tokens, 1 for the second; the tokens between the two belong to the first."""
    texts = [number for number, owner in enumerate(found.sequence_ids) if owner == 1]
    types = found.type_ids
    if any(types) or not texts:  # the template of the tokenizer says (BERT), or the second text is empty
        return tuple(types)
    return tuple(int(number >= texts[0]) for number in range(len(types)))


def clean_text(text: str) -> str:
    """open_clip's cleaning: mojibake repaired, HTML unescaped twice, white space collapsed, lower case."""
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()
