"""``mmpretrain data tokenizer``: train a tokenizer on the texts of shards, or add words to one that exists.

New words get ids after all others, so that trained embeddings keep their rows: only rows are to be appended. WordPiece gets the word as one
piece. Byte-pair encodings get the merges that put the word together from its present pieces, after all others; the pieces in between get
ids too. Texts without a new word, and without a word that begins with one, keep their ids.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmpretrain.data import tokenizer_files, tokenizer_training
from mmpretrain.data.errors import DataError
from mmpretrain.data.reader import ShardReader
from mmpretrain.data.sources import expand
from mmpretrain.data.text import TextOptions, Tokenizer, clean_text
from mmpretrain.data_tools.common import table

_WORD = re.compile(r"[^\W\d_]+")
_MOST_TOKENS = 1 << 20  # texts are not cut while a tokenizer is measured


class Extended(NamedTuple):
    """A tokenizer with more words."""

    tokenizer: Tokenizer
    added: tuple[str, ...]  # words that are one token now
    known: tuple[str, ...]  # words that were one token before
    new_ids: int  # rows to append to an embedding


def extend(tokenizer: Tokenizer, words: Iterable[str]) -> Extended:
    """A tokenizer in which each word is one token.

    Args:
        words: without spaces; of a lower-casing tokenizer in any case.

    Raises:
        DataError: a word that the tokenizer cuts into several or cannot spell, or a kind of tokenizer that takes no words (unigram).
    """
    if tokenizer.style not in ("wordpiece", "byte_bpe", "clip"):
        raise DataError(f"a tokenizer of the style {tokenizer.style} cannot be extended; train a new one: mmpretrain data tokenizer train")
    backend = json.loads(tokenizer._plain())
    model, vocabulary = backend["model"], backend["model"]["vocab"]
    first = following = tokenizer.size
    added, known = [], []
    letters = {token.removeprefix("##") for token in vocabulary if len(token.removeprefix("##")) == 1}
    ranks = {_pair(merge): rank for rank, merge in enumerate(model.get("merges", ()))}
    for word in dict.fromkeys(words):
        text = _as_written(tokenizer, word)
        if not set(text.removesuffix("</w>")) <= letters:
            raise DataError(f"the word {word!r} has letters that the tokenizer does not know")
        pieces = [text] if tokenizer.style == "wordpiece" else _pieces(text, ranks)
        if len(pieces) == 1 and text in vocabulary:
            known.append(word)
            continue
        left = ""
        for piece in pieces:
            if left and (left, piece) not in ranks:
                ranks[left, piece] = len(ranks)
                model["merges"].append([left, piece])
            left += piece
            if left not in vocabulary:
                vocabulary[left] = following
                following += 1
        added.append(word)
    made = Tokenizer(json.dumps(backend), tokenizer.style, tokenizer.roles, tokenizer.max_tokens, tokenizer.pad_id, tokenizer.clean)
    return Extended(made, tuple(added), tuple(known), following - first)


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _as_written(tokenizer: Tokenizer, word: str) -> str:
    """A word as the model of the tokenizer sees it.

    Raises:
        DataError: it is not one word to the tokenizer.
    """
    backend = tokenizer.backend
    text = clean_text(word) if tokenizer.clean else word
    text = backend.normalizer.normalize_str(text) if backend.normalizer is not None else text
    lead = " " if tokenizer.style == "byte_bpe" else ""  # a word inside a sentence
    parts = [part for part, _ in backend.pre_tokenizer.pre_tokenize_str(lead + text)]
    if len(parts) != 1 or not text:
        raise DataError(f"the word {word!r} is {len(parts)} words to this tokenizer; add them one by one")
    return parts[0] + ("</w>" if tokenizer.style == "clip" else "")


def _pieces(text: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """The tokens of a word by byte-pair encoding: the pair of the lowest rank is merged, the first of equals, until there is none."""
    end = "</w>" if text.endswith("</w>") else ""
    parts = list(text.removesuffix("</w>"))
    parts[-1] += end
    while len(parts) > 1:
        rank, at = min((ranks.get(pair, len(ranks)), place) for place, pair in enumerate(itertools.pairwise(parts)))
        if rank == len(ranks):
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def split_words(tokenizer: Tokenizer, reader: ShardReader, corpus: int, least: int, most: int, progress: bool | None = None) -> list[str]:
    """The words of a set that the tokenizer cuts into several tokens, the most frequent first.

    Args:
        corpus: samples to read, evenly spread.
        least: how often a word must come.
        most: how many words at most.
        progress: of reading the texts; None: where they are many.
    """
    counts: Counter[str] = Counter()
    for text in tokenizer_training.texts(reader, corpus, progress):
        counts.update(_WORD.findall(text.lower()))
    special = tokenizer.backend.num_special_tokens_to_add(False)
    whole = tokenizer.with_max_tokens(_MOST_TOKENS)
    lead = " " if tokenizer.style == "byte_bpe" else ""
    found: list[str] = []
    for word, count in sorted(counts.items(), key=lambda one: (-one[1], one[0])):
        if count < least or len(found) == most:
            break
        if len(whole.tokenize(lead + word).ids) - special > 1:
            found.append(word)
    return found


def tokens_per_word(tokenizer: Tokenizer, texts: Sequence[str]) -> float:
    """Tokens (without special ones) for each word between spaces."""
    whole = tokenizer.with_max_tokens(_MOST_TOKENS)
    special = tokenizer.backend.num_special_tokens_to_add(False)
    tokens = sum(len(whole.tokenize(text).ids) - special for text in texts)
    return tokens / max(sum(len(text.split()) for text in texts), 1)


def main(args: list[str], parser_class: type[argparse.ArgumentParser] = argparse.ArgumentParser) -> int:
    """Train or extend a tokenizer; returns the exit code.

    Raises:
        DataError: arguments, words or shards that do not fit.
    """
    examples = (
        "mmpretrain data tokenizer train shards/ --out tokenizer/ --vocab-size 8000\n"
        "  mmpretrain data tokenizer extend tokenizer/ --out more/ --words new_words.txt"
    )
    parser = parser_class(
        prog="mmpretrain data tokenizer",
        description="Train a tokenizer, or extend one. The folder opens by data.text.tokenizer and by transformers' AutoTokenizer",
        epilog=f"examples:\n  {examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_subparsers(dest="what", required=True, metavar="train|extend", parser_class=parser_class)
    train = what.add_parser("train", help="on the texts of shards")
    train.add_argument("shards", nargs="+", help="folders, tar files or patterns")
    train.add_argument("--kind", choices=tokenizer_training.TRAINED, default="wordpiece")
    train.add_argument("--vocab-size", type=int, default=30522)
    train.add_argument("--cased", action="store_true", help="keep capital letters")
    train.add_argument("--min-frequency", type=int, default=2, help="pieces are merged only if they come so often (default 2)")
    more = what.add_parser("extend", help="with words of a list, or those of shards that are cut into pieces")
    more.add_argument("tokenizer", help="a folder with a tokenizer, or clip")
    source = more.add_mutually_exclusive_group(required=True)
    source.add_argument("--words", type=Path, help="a file with one word a line")
    source.add_argument("--shards", nargs="+", help="sets whose frequent words are to be whole")
    more.add_argument("--most", type=int, default=1000, help="words from --shards at most (default 1000)")
    more.add_argument("--least", type=int, default=20, help="how often a word of --shards must come (default 20)")
    for one in (train, more):
        one.add_argument("--out", type=Path, required=True, help="new folder")
        one.add_argument("--max-tokens", type=int, default=77 if one is more else 512, help="longest text that the folder states")
        one.add_argument("--quiet", action="store_true", help="no progress")
        one.add_argument("--corpus", type=int, default=1_000_000, help="samples to read at most, evenly spread")
    options = parser.parse_args(args)
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise DataError(f"{options.out} exists and is not an empty folder: choose another --out or remove it")
    return _train(options) if options.what == "train" else _extend(options)


def write(tokenizer: Tokenizer, out: Path) -> None:
    """The folder ``out``, whole or not at all: a kill leaves a hidden folder beside it, which the next call takes away."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for old in out.parent.glob(f".{out.name}.partial-*"):
        shutil.rmtree(old, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        tokenizer_files.save(tokenizer, partial)
        partial.chmod(0o755)
        os.replace(partial, out)  # over an empty folder too
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _train(options: argparse.Namespace) -> int:
    wanted = TextOptions(options.kind, options.vocab_size, not options.cased, options.min_frequency, options.corpus)
    reader = ShardReader(expand(options.shards))
    made = tokenizer_training.make(wanted, options.max_tokens, reader, not options.quiet)
    write(made, options.out)
    texts = list(tokenizer_training.texts(reader, min(options.corpus, 10_000), False))
    table(str(options.out), ("", "number"), [("ids", made.size), ("tokens per word, on its own texts", tokens_per_word(made, texts))])
    return 0


def _extend(options: argparse.Namespace) -> int:
    old = tokenizer_training.make(TextOptions(options.tokenizer), options.max_tokens, ShardReader([], []))
    texts: list[str] = []
    if options.words is not None:
        try:
            words = [line.strip() for line in options.words.read_text(encoding="utf-8").splitlines() if line.strip()]
        except UnicodeDecodeError:
            raise DataError(f"--words {options.words}: not UTF-8; write one word a line") from None
    else:
        reader = ShardReader(expand(options.shards))
        words = split_words(old, reader, options.corpus, options.least, options.most, not options.quiet)
        texts = list(tokenizer_training.texts(reader, min(options.corpus, 10_000), False))
    made = extend(old, words)
    write(made.tokenizer, options.out)
    rows: list[tuple[str, Any]] = [("words added", len(made.added)), ("words that were one token before", len(made.known))]
    rows += [("ids before", old.size), ("ids now: rows of the embedding", made.tokenizer.size)]
    if texts:
        rows += [(f"tokens per word {when}", tokens_per_word(one, texts)) for when, one in (("before", old), ("now", made.tokenizer))]
    table(str(options.out), ("", "number"), rows)
    return 0
