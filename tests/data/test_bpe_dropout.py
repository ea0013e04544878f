"""BPE dropout: at rate 0 the library's encoding, else the distribution of the paper's algorithm, by random numbers of the example."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter

import numpy as np
import pytest
from helpers.batches import data
from helpers.shards import caption, write_shards
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpretrain.data import tokenizer_files, tokenizer_training
from mmpretrain.data.bpe_dropout import DroppingBpe, _Draws
from mmpretrain.data.errors import DataError
from mmpretrain.data.feed import Item
from mmpretrain.data.text import TextOptions, Tokenizer, same_ids

CORPUS = [caption(n, v) for n in range(60) for v in range(2)]
CORPUS += [
    "Don't panic: the café's sign, naïve & big-boned, says 50%!",
    "黑猫 sits on a mat (twice)",
    "unbelievably unaffordable affordability",
]
ODD = ("zzz qqq", "A  b\tc", "", " ", "😀 smile", "ABC É İ ß ﬁ", "a" * 300, "<s> </s> <mask>", "x<|endoftext|>y", "\u0301e\u0301")
KINDS = ("lower", "cased", "clip")


def trained(**options) -> Tokenizer:
    return tokenizer_training.train(lambda: CORPUS, TextOptions("byte_bpe", vocab_size=600, **options), 77)


TOKENIZERS = {"lower": trained(), "cased": trained(lowercase=False), "clip": tokenizer_files.clip(77)}


def rng(*key: int) -> np.random.Generator:
    return np.random.default_rng(list(key))


def same_as_the_library(tokenizer: Tokenizer, text: str) -> None:
    """Ids, offsets, words, masks, all of it, with special tokens and without."""
    for special in (True, False):
        wanted = tokenizer.backend.encode(text, add_special_tokens=special)
        found = tokenizer.backend.post_process(tokenizer.dropping.encoding(text, 0.0, None), add_special_tokens=special)
        for name in ("ids", "tokens", "offsets", "type_ids", "word_ids", "sequence_ids", "special_tokens_mask", "attention_mask"):
            assert getattr(found, name) == getattr(wanted, name), (name, text)


@pytest.mark.parametrize("kind", KINDS)
def test_without_dropout_it_is_the_library(kind):
    for text in [*CORPUS, *ODD]:
        same_as_the_library(TOKENIZERS[kind], text)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(st.one_of(st.sampled_from("abcdeinorstu  ADN'.,0😀é黑"), st.characters(exclude_categories=["Cs"])), max_size=60))
def test_any_text(text):
    for tokenizer in TOKENIZERS.values():
        same_as_the_library(tokenizer, text)


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_are_of_the_same_text(kind):
    tokenizer = TOKENIZERS[kind]
    for number, text in enumerate(CORPUS[-8:]):
        plain = tokenizer.tokenize(text)
        for rate in (0.1, 0.5, 0.99):
            found = tokenizer.tokenize(text, dropout=rate, generator=rng(number))
            assert tokenizer.decode(found.ids) == tokenizer.decode(plain.ids) or len(found.ids) == 77
            assert (found.ids[0], found.ids[-1]) == (plain.ids[0], plain.ids[-1]) and len(found.words) == len(found.ids)
            assert found.words[1:-1] == tuple(sorted(found.words[1:-1])) and (len(found.ids) == 77 or found.words[-2] == plain.words[-2])
        again = tokenizer.tokenize(text, dropout=0.5, generator=rng(7, number))
        assert again == tokenizer.tokenize(text, dropout=0.5, generator=rng(7, number))
    cut = tokenizer.tokenize(CORPUS[0] * 8, dropout=0.9, generator=rng(1))
    assert len(cut.ids) == 77 and cut.ids[-1] == tokenizer.vocabulary.sep
    pair = tokenizer.tokenize("a red circle", "number 3", dropout=0.9, generator=rng(2))
    assert set(pair.segments) == {0, 1} and len(pair.ids) > len(tokenizer.tokenize("a red circle", "number 3").ids)


def exact(tokenizer: Tokenizer, word: str, rate: float) -> dict[tuple[int, ...], float]:
    """The distribution over the cuts of a word by algorithm 1 of the paper, every subset of merges looked at."""
    model = json.loads(tokenizer.backend.to_str())["model"]
    ranks = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}
    found: Counter[tuple[int, ...]] = Counter()

    def go(parts: tuple[str, ...], share: float) -> None:
        able = [(ranks[pair], at) for at, pair in enumerate(itertools.pairwise(parts)) if pair in ranks]
        for kept in itertools.product((False, True), repeat=len(able)):
            part = share * rate ** kept.count(False) * (1 - rate) ** kept.count(True)
            if not any(kept):
                found[tuple(model["vocab"][piece] for piece in parts)] += part
                continue
            _, at = min(merge for merge, there in zip(able, kept, strict=True) if there)
            go((*parts[:at], parts[at] + parts[at + 1], *parts[at + 2 :]), part)

    go(tuple(word), 1.0)
    return dict(found)


@pytest.mark.parametrize("word", ["Ġred", "Ġblue", "Ġthat"])
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_distribution_is_that_of_the_paper(word, rate):
    tokenizer, count = TOKENIZERS["cased"], 20_000
    wanted, bpe = exact(tokenizer, word, rate), tokenizer.dropping
    assert abs(sum(wanted.values()) - 1) < 1e-9 and len(wanted) > 3
    draws = _Draws(rng(11))
    found = Counter(tuple(piece.id for piece in bpe.word(word, rate, draws)) for _ in range(count))
    assert set(found) <= set(wanted)
    for cut, share in wanted.items():
        assert abs(found[cut] - count * share) < 5 * (count * share * (1 - share)) ** 0.5 + 1, (cut, found[cut] / count, share)


def test_the_rate_is_that_of_a_single_merge():
    tokenizer = TOKENIZERS["cased"]
    left, right = json.loads(tokenizer.backend.to_str())["model"]["merges"][0]
    bpe, draws = tokenizer.dropping, _Draws(rng(5))
    for rate in (0.05, 0.1, 0.3):
        apart = sum(len(bpe.word(left + right, rate, draws)) == 2 for _ in range(20_000)) / 20_000
        assert abs(apart - rate) < 5 * (rate * (1 - rate) / 20_000) ** 0.5
    assert len(bpe.word(left + right, 0.0, draws)) == 1 and len(bpe.word(left + right, 1.0, draws)) == 2


def test_no_global_randomness(monkeypatch):
    states = random.getstate(), np.random.get_state()[1].tolist()
    TOKENIZERS["lower"].tokenize(CORPUS[0], dropout=0.5, generator=rng(1))
    assert states == (random.getstate(), np.random.get_state()[1].tolist())
    assert json.loads(TOKENIZERS["lower"].backend.to_str())["model"]["dropout"] is None


def test_a_folder_whose_tokenizer_would_draw_by_itself(tmp_path):
    TOKENIZERS["cased"].save_transformers(tmp_path)
    described = json.loads((tmp_path / "tokenizer.json").read_text())
    described["model"]["dropout"] = 0.9
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    found = tokenizer_files.folder(tmp_path, 77)
    assert [found.tokenize(text).ids for text in CORPUS] == [TOKENIZERS["cased"].tokenize(text).ids for text in CORPUS]
    assert found.tokenize(CORPUS[0], dropout=0.9, generator=rng(1)).ids != found.tokenize(CORPUS[0]).ids


def test_what_has_no_merges_is_refused(tmp_path):
    folder = write_shards(tmp_path, (12,))
    with pytest.raises(DataError, match=r"data\.text\.dropout needs byte-pair encoding: .*this tokenizer is WordPiece"):
        data(folder, text=TextOptions(vocab_size=300, dropout=0.1)).prepare_data()
    for rate in (-0.1, 1.0):
        with pytest.raises(DataError, match=rf"data\.text\.dropout={rate} must be from 0 to 1"):
            TextOptions("byte_bpe", dropout=rate)
    described = json.loads(TOKENIZERS["cased"].backend.to_str())
    backend = type(TOKENIZERS["cased"].backend)
    for change, message in (
        ({"model": {**described["model"], "ignore_merges": True}}, "BPE of another kind"),
        ({"model": {**described["model"], "byte_fallback": True}}, "BPE of another kind"),
        ({"added_tokens": [{**described["added_tokens"][0], "special": False}]}, "has added tokens"),
    ):
        with pytest.raises(DataError, match=message):
            DroppingBpe(backend.from_str(json.dumps({**described, **change})))


def ids(batches) -> list[list[int]]:
    return [row[:n].tolist() for (batch,) in batches for row, n in zip(batch.text.ids_BT, batch.text.lengths, strict=True)]


def test_training_drops_evaluation_does_not(tmp_path):
    folder = write_shards(tmp_path, (12,))
    options = {"val": {"v": str(folder)}, "max_tokens": 60, "batch_size": 6}
    plain, dropped = (data(folder, text=TextOptions("byte_bpe", vocab_size=300, dropout=rate), **options) for rate in (0.0, 0.5))
    first, second = ids(plain.train_dataloader()), ids(dropped.train_dataloader())
    assert dropped.tokenizer.to_json() == plain.tokenizer.to_json()  # the same ids, from the same file of the cache
    decode = plain.tokenizer.decode
    assert [decode(row) for row in first] == [decode(row) for row in second]
    assert sum(len(row) for row in second) > 1.3 * sum(len(row) for row in first)
    assert second == ids(data(folder, text=dropped.text, workers=2, **options).train_dataloader())  # whoever cuts them
    again = ids(dropped.train_dataloader().dataset[Item(0, 1, step)] for step in range(dropped.feed.steps))
    assert not {tuple(row) for row in again} <= {tuple(row) for row in second}  # another epoch, other cuts
    (own,), (other,) = plain.val_dataloader(), dropped.val_dataloader()
    assert [b.text.ids_BT.tolist() for b in own] == [b.text.ids_BT.tolist() for b in other]


def test_texts_of_other_samples_and_of_one_example(tmp_path):
    class Texts:
        def prepare(self, example, draw):
            again = draw.tokenize(example.text.text)
            assert again == example.text  # asked again, the same tokens
            return draw.other_text(0)[1], draw.tokenize("a red circle number 7")

        def collate(self, values, collate):
            return values

    folder = write_shards(tmp_path, (12,))
    made = data(folder, text=TextOptions("byte_bpe", vocab_size=300, dropout=0.5), max_tokens=60, preparers={"t": Texts()})
    whole = made.tokenizer
    values = [pair for (batch,) in made.train_dataloader() for pair in batch.targets["t"]]
    assert any(other.ids != whole.tokenize(other.text).ids for other, _ in values)
    assert len({fixed.ids for _, fixed in values}) > 3 and {whole.decode(fixed.ids) for _, fixed in values} == {"a red circle number 7"}


def test_tables_of_options_that_ask_for_the_same_ids():
    old = {"tokenizer": "byte_bpe", "vocab_size": 300, "lowercase": True, "min_frequency": 2, "corpus": 1_000_000}
    assert same_ids({**old, "dropout": 0.0}, old) and same_ids({**old, "dropout": 0.1}, {**old, "dropout": 0.2}) and same_ids(None, {})
    assert not same_ids({**old, "vocab_size": 400}, old) and not same_ids(old, None)


def test_lower_case_is_of_the_tokenizer():
    lower, cased = TOKENIZERS["lower"], TOKENIZERS["cased"]
    assert lower.tokenize("A Red CIRCLE").ids == lower.tokenize("a red circle").ids
    assert cased.tokenize("A Red CIRCLE").ids != cased.tokenize("a red circle").ids
    assert lower.decode(lower.tokenize("Don't PANIC").ids) == "don't panic"
    assert lower.tokenize("A Red").offsets == ((0, 0), (0, 1), (2, 5), (0, 0))  # of the text as it was given
    assert Tokenizer.from_json(lower.to_json()).tokenize("RED") == lower.tokenize("RED")
