"""Training a tokenizer on the texts of the shards: the same texts give the same vocabulary, ids included, in every process."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from mmpretrain.data import tokenizer_files
from mmpretrain.data.cache import cache_root, locked, write_atomic
from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data.reader import ShardReader
from mmpretrain.data.text import TextOptions, Tokenizer
from mmpretrain.data.told import Told

TRAINED = ("wordpiece", "byte_bpe")
_VERSIONS = {"wordpiece": 1, "byte_bpe": 2}  # 2: lower-casing
_ALPHABET = 1000
_SHOW_PROGRESS = 50_000  # samples


def make(
    options: TextOptions,
    max_tokens: int,
    reader: ShardReader,
    progress: bool | None = None,
    told: Told = Told(),  # noqa: B008  (immutable)
) -> Tokenizer:
    """The tokenizer that the options ask for; one trained on this corpus before is taken from the cache.

    Args:
        progress: of reading the texts; None: where they are many.
        told: what is told of samples beside their captions and statements.

    Raises:
        DataError: an unknown name, a folder without a tokenizer, or a vocabulary too small for the letters of the corpus.
    """
    made = _made(options, max_tokens, reader, progress, told)
    return made if options.special else tokenizer_files.without_special(made)


def _made(options: TextOptions, max_tokens: int, reader: ShardReader, progress: bool | None, told: Told) -> Tokenizer:
    """With start and end tokens."""
    if options.tokenizer == "clip":
        return tokenizer_files.clip(max_tokens)
    if options.tokenizer not in TRAINED:
        path = Path(options.tokenizer).expanduser()
        if not path.is_dir():
            raise DataError(f"data.text.tokenizer={options.tokenizer}: neither wordpiece, byte_bpe or clip, nor an existing folder")
        return tokenizer_files.folder(path, max_tokens)
    import tokenizers

    facts = [_VERSIONS[options.tokenizer], tokenizers.__version__, reader.fingerprint, options.vocabulary, *told.facts]
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
    target = cache_root() / "tokenizers" / f"{name}.json"
    with locked(str(target)):
        if target.is_file():
            return Tokenizer.from_json(target.read_text(encoding="utf-8")).with_max_tokens(max_tokens)
        names = list(told.names(options.min_frequency))
        made = train(lambda: itertools.chain(texts(reader, options.corpus, progress, told), names), options, max_tokens)
        with contextlib.suppress(OSError):  # without a writable cache it is trained again next time
            write_atomic(target, made.to_json().encode("utf-8"))
    return made


def texts(
    reader: ShardReader,
    limit: int,
    progress: bool | None = None,
    told: Told = Told(),  # noqa: B008  (immutable)
) -> Iterator[str]:
    """All captions and statements, and what else is ``told``, of at most ``limit`` samples, evenly spread over the set. Samples that cannot
    be read have none; the first of them is named in a warning."""
    chosen = np.arange(min(limit, len(reader)), dtype=np.int64) * len(reader) // max(1, min(limit, len(reader)))
    rows: Iterable[int] = chosen.tolist()
    if progress or (progress is None and len(chosen) > _SHOW_PROGRESS):
        from rich.console import Console
        from rich.progress import track

        rows = track(rows, "Reading texts for the tokenizer", total=len(chosen), console=Console(stderr=True))
    damaged = 0
    for row in rows:
        shard, sample = reader.locate(row)
        index = reader.indexes[shard]
        if index.captions_S[sample] or index.statements_S[sample] or (told.questions and index.questions_S[sample]):
            try:
                found = reader.read_at(shard, sample, images=False)
            except BadSample as error:
                damaged += 1
                if damaged == 1:
                    print(f"mmpretrain: warning: {error}; its texts are left out of the tokenizer's corpus", file=sys.stderr)
                continue
            yield from found.captions
            yield from (statement.text for statement in found.statements)
            yield from told.of(found)
    if damaged > 1:
        print(f"mmpretrain: warning: texts of {damaged} damaged samples are left out of the tokenizer's corpus", file=sys.stderr)


def train(corpus: Callable[[], Iterable[str]], options: TextOptions, max_tokens: int) -> Tokenizer:
    """Train on a corpus that can be read several times.

    Raises:
        DataError: no text, or a vocabulary too small for the letters of the corpus.
    """
    if next(iter(corpus()), None) is None:
        raise DataError("data: the shards hold no text to train a tokenizer on; set data.text.tokenizer to a folder or to clip")
    with _one_thread():
        if options.tokenizer == "wordpiece":
            return _wordpiece(corpus, options, max_tokens)
        return _byte_bpe(corpus, options, max_tokens)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """The library's thread pool would not survive the fork of data workers."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def _wordpiece(corpus: Callable[[], Iterable[str]], options: TextOptions, max_tokens: int) -> Tokenizer:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    roles = tokenizer_files.BERT_ROLES
    backend = Backend(models.WordPiece(unk_token=roles["unk"]))
    backend.normalizer = normalizers.BertNormalizer(lowercase=options.lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in corpus():
        counts.update(backend.normalizer.normalize_str(text))
    letters = sorted(sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))[:_ALPHABET])
    # The library numbers "##x" pieces in the order of a randomised hash table, which then decides ties between merges. Numbered here, they
    # are the same in every process.
    first = [*roles.values(), *("##" + letter for letter in letters)]
    _check_size(options.vocab_size, len(first) + len(letters))
    trainer = trainers.WordPieceTrainer(
        vocab_size=options.vocab_size,
        min_frequency=options.min_frequency,
        special_tokens=first,
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        show_progress=False,
    )
    backend.train_from_iterator(corpus(), trainer)
    return Tokenizer(tokenizer_files.wordpiece(backend.get_vocab(), options.lowercase, roles), "wordpiece", roles, max_tokens)


def _byte_bpe(corpus: Callable[[], Iterable[str]], options: TextOptions, max_tokens: int) -> Tokenizer:
    from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from tokenizers import Tokenizer as Backend

    roles = tokenizer_files.ROBERTA_ROLES
    backend = Backend(models.BPE())
    if options.lowercase:
        backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    _check_size(options.vocab_size, len(roles) + len(letters))
    trainer = trainers.BpeTrainer(
        vocab_size=options.vocab_size,
        min_frequency=options.min_frequency,
        special_tokens=[AddedToken(token, special=True, lstrip=role == "mask", normalized=False) for role, token in roles.items()],
        initial_alphabet=letters,
        show_progress=False,
    )
    backend.train_from_iterator(corpus(), trainer)
    ids = {role: backend.token_to_id(roles[role]) for role in ("cls", "sep")}
    backend.post_processor = processors.RobertaProcessing(
        (roles["sep"], ids["sep"]), (roles["cls"], ids["cls"]), trim_offsets=True, add_prefix_space=False
    )
    return Tokenizer(backend.to_str(), "byte_bpe", roles, max_tokens)


def _check_size(vocab_size: int, needed: int) -> None:
    if needed > vocab_size:
        raise DataError(f"data.text.vocab_size={vocab_size} is too small: special tokens and letters of the corpus alone need {needed}")
