"""Tokenizers: the same vocabulary in every process, words, truncation, round trips, and equality with open_clip and transformers."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import subprocess
import sys

import pytest
from helpers.shards import caption, write_shards

from mmpretrain.data import tokenizer_files, tokenizer_training
from mmpretrain.data.errors import DataError
from mmpretrain.data.function_words import FUNCTION_WORDS
from mmpretrain.data.reader import ShardReader
from mmpretrain.data.text import TextOptions, Tokenizer

CORPUS = [caption(n, v) for n in range(200) for v in range(2)] + [
    "Don't panic: the café's sign, naïve & big-boned, says 50%!",
    "黑猫 sits on a mat (twice)",
    "unbelievably unaffordable affordability",
]
TEXTS = [*CORPUS[:3], *CORPUS[-3:], "zzz qqq", "A  b\tc", "", "😀 smile"]
KINDS = ("wordpiece", "byte_bpe", "cased_bpe", "clip")


def made(kind: str, max_tokens: int = 24) -> Tokenizer:
    if kind == "clip":
        return tokenizer_files.clip(max_tokens)
    wanted = TextOptions(kind.replace("cased", "byte"), vocab_size=600, lowercase=kind != "cased_bpe")
    return tokenizer_training.train(lambda: CORPUS, wanted, max_tokens)


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request) -> Tokenizer:
    return made(request.param)


TRAIN = """
import hashlib, json, sys
from mmpretrain.data.text import TextOptions
from mmpretrain.data.tokenizer_training import train
corpus = json.load(open(sys.argv[1]))
for kind in ("wordpiece", "byte_bpe"):
    print(hashlib.sha256(train(lambda: corpus, TextOptions(kind, vocab_size=600), 24).to_json().encode()).hexdigest())
"""


def test_training_gives_the_same_ids_in_every_process(tmp_path):
    (tmp_path / "corpus.json").write_text(json.dumps(CORPUS))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = [sys.executable, "-c", TRAIN, str(tmp_path / "corpus.json")]
    found = {subprocess.run(run, capture_output=True, text=True, env=environment, check=True).stdout for _ in range(3)}
    assert len(found) == 1


def test_texts_without_start_and_end_have_their_own_tokens_alone(tokenizer):
    bare = Tokenizer.from_json(tokenizer_files.without_special(tokenizer).to_json())
    assert bare.vocabulary == tokenizer.vocabulary
    for text in TEXTS:
        inner = tokenizer.with_max_tokens(60).tokenize(text)
        found = bare.with_max_tokens(58).tokenize(text)
        assert found.ids == inner.ids[1:-1] and found.words == inner.words[1:-1] and bare.decode(found.ids) == tokenizer.decode(inner.ids)
    assert bare.tokenize("") == bare.tokenize("")._replace(ids=(), words=())
    long = bare.tokenize(" ".join(TEXTS[:3] * 9))
    assert len(long.ids) == bare.max_tokens


def test_the_option_without_start_and_end_shares_the_trained_vocabulary(tmp_path, own_cache):
    reader = ShardReader(sorted(map(str, write_shards(tmp_path / "shards").glob("*.tar"))))
    options = TextOptions("byte_bpe", vocab_size=300)
    whole, bare = (tokenizer_training.make(one, 24, reader) for one in (options, TextOptions("byte_bpe", vocab_size=300, special=False)))
    assert len(list((own_cache / "tokenizers").glob("*.json"))) == 1
    assert bare.tokenize("a red cube").ids == whole.tokenize("a red cube").ids[1:-1]


def test_specials_words_and_lengths(tokenizer):
    vocabulary = tokenizer.vocabulary
    assert vocabulary.size == max(tokenizer.backend.get_vocab().values()) + 1
    for text in TEXTS:
        found = tokenizer.tokenize(text)
        assert len(found.ids) == len(found.words) <= 24 and found.text == text
        assert (found.ids[0], found.ids[-1]) == (vocabulary.cls, vocabulary.sep)
        assert found.words[0] == found.words[-1] == -1
        inner = found.words[1:-1]
        assert -1 not in inner and list(inner) == sorted(inner) and set(inner) == set(range(len(set(inner))))


def test_truncation_keeps_the_final_special_token(tokenizer):
    short = tokenizer.with_max_tokens(6)
    whole, cut = tokenizer.tokenize(CORPUS[-1]), short.tokenize(CORPUS[-1])
    assert len(cut.ids) == 6 and cut.ids[-1] == tokenizer.vocabulary.sep and cut.ids[:-1] == whole.ids[:5]
    with pytest.raises(DataError, match="leaves no room"):
        tokenizer.with_max_tokens(2)


def test_round_trips(tokenizer):
    for again in (Tokenizer.from_json(tokenizer.to_json()), pickle.loads(pickle.dumps(tokenizer))):  # noqa: S301  (our own bytes)
        assert again.vocabulary == tokenizer.vocabulary and again.max_tokens == 24
        assert [again.tokenize(text) for text in TEXTS] == [tokenizer.tokenize(text) for text in TEXTS]
    assert tokenizer.decode(tokenizer.tokenize("a red circle and a square").ids) == "a red circle and a square"
    assert all(isinstance(tokenizer.token(i), str) for i in tokenizer.tokenize(CORPUS[0]).ids)
    with pytest.raises(DataError, match="cannot be read"):
        Tokenizer.from_json("{}")


def test_a_caption_cannot_spell_special_tokens(tokenizer):
    vocabulary = tokenizer.vocabulary
    for role in tokenizer.roles.values():
        found = tokenizer.tokenize(f"a {role} b").ids
        assert not set(found[1:-1]) & (set(vocabulary.special) - {tokenizer.backend.token_to_id(tokenizer.roles.get("unk", ""))})


def test_words_of_each_kind():
    def groups(kind: str, text: str) -> list[str]:
        tokenizer = made(kind)
        found = tokenizer.tokenize(text)
        words: dict[int, str] = {}
        for number, word in zip(found.ids, found.words, strict=True):
            words[word] = words.get(word, "") + tokenizer.token(number).strip() if word >= 0 else ""
        return [words[word] for word in sorted(words) if word >= 0]

    assert groups("wordpiece", "unaffordable, quince!") == ["unaffordable", ",", "quince", "!"]
    assert groups("byte_bpe", "unaffordable, quince!") == ["unaffordable,", "quince!"]  # a leading space starts a word
    assert groups("clip", "unaffordable, quince!") == ["unaffordable", ",", "quince", "!"]


def test_clip_equals_open_clip():
    theirs = pytest.importorskip("open_clip").get_tokenizer("ViT-B-32")
    ours = tokenizer_files.clip(77)
    assert (ours.size, ours.vocabulary.cls, ours.vocabulary.sep, ours.pad_id) == (49408, 49406, 49407, 0)
    for text in [*TEXTS, "x &amp;amp; y &lt;b&gt;", "the cafÃ©", "I'll they've", "a" * 400, "１２３ ½ ﬁ", "ÀÉÎ ß"]:
        row = theirs([text])[0].tolist()
        ids = list(ours.tokenize(text).ids)
        assert ids + [0] * (77 - len(ids)) == row, text
    with pytest.raises(DataError, match="at most 77"):
        tokenizer_files.clip(78)


def test_transformers_opens_the_saved_folder_with_equal_ids(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save_transformers(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    lowers = tokenizer.style == "byte_bpe" and tokenizer.backend.normalizer is not None
    name = {"wordpiece": "BertTokenizer", "byte_bpe": "RobertaTokenizer", "clip": "CLIPTokenizer"}[tokenizer.style]
    assert lowers != (type(theirs).__name__.removesuffix("Fast") == name) and theirs.model_max_length == 24
    direct = getattr(transformers, "PreTrainedTokenizerFast" if lowers else name).from_pretrained(tmp_path)
    for text in TEXTS:
        for other in (theirs, direct):
            assert tuple(other(text, truncation=True)["input_ids"]) == tokenizer.tokenize(text).ids, text
    again = tokenizer_files.folder(tmp_path, 24)
    assert [again.tokenize(text).ids for text in TEXTS[:-1]] == [tokenizer.tokenize(text).ids for text in TEXTS[:-1]]
    assert again.style == tokenizer.style and again.vocabulary == tokenizer.vocabulary
    assert {path.name for path in tmp_path.iterdir()} >= {"tokenizer.json", "tokenizer_config.json"}


def test_folders_saved_by_transformers_are_read(tmp_path):
    transformers = pytest.importorskip("transformers")
    made("wordpiece").save_transformers(tmp_path / "a")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    ours = tokenizer_files.folder(tmp_path / "b", 24)
    assert [ours.tokenize(text) for text in TEXTS] == [made("wordpiece").tokenize(text) for text in TEXTS]
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "vocab.txt").write_text((tmp_path / "a" / "vocab.txt").read_text())
    assert tokenizer_files.folder(tmp_path / "c", 24).tokenize(TEXTS[0]) == ours.tokenize(TEXTS[0])


def test_what_is_wrong_with_a_folder_is_said(tmp_path):
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        tokenizer_files.folder(tmp_path, 24)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="the tokenizer cannot be read"):
        tokenizer_files.folder(tmp_path, 24)
    made("byte_bpe").save_transformers(tmp_path)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match="no padding token"):
        tokenizer_files.folder(tmp_path, 24)


def test_training_on_shards_is_cached_by_their_contents(tmp_path, own_cache, monkeypatch):
    reader = ShardReader(sorted(write_shards(tmp_path / "a", (6, 6)).glob("*.tar")))
    options = TextOptions(vocab_size=300)
    first = tokenizer_training.make(options, 16, reader)
    assert len(list((own_cache / "tokenizers").iterdir())) == 1
    monkeypatch.setattr(tokenizer_training, "train", lambda *a: pytest.fail("trained again"))
    again = tokenizer_training.make(options, 12, ShardReader(reader.paths))
    assert again.vocabulary == first.vocabulary and again.max_tokens == 12
    other = ShardReader(sorted(write_shards(tmp_path / "b", (6, 7)).glob("*.tar")))
    with pytest.raises(pytest.fail.Exception):
        tokenizer_training.make(options, 16, other)


def test_impossible_options_are_refused(tiny_shards):
    reader = ShardReader(sorted(tiny_shards.glob("*.tar")))
    for options, message in [
        (TextOptions(vocab_size=10), "vocab_size=10 is too small"),
        (TextOptions("byte_bpe", vocab_size=100), "vocab_size=100 is too small"),
        (TextOptions("bert-base-uncased"), "neither wordpiece, byte_bpe or clip, nor an existing folder"),
    ]:
        with pytest.raises(DataError, match=message):
            tokenizer_training.make(options, 16, reader)
    with pytest.raises(DataError, match="hold no text"):
        tokenizer_training.train(lambda: [], TextOptions(), 16)


@pytest.mark.parametrize("kind", KINDS)
def test_function_words_and_punctuation_are_known(kind):
    """Whole words alone: no piece of another word, no special token, and nothing that a picture shows."""
    tokenizer = made(kind)
    names = {tokenizer.token(number).strip() for number in tokenizer.vocabulary.function}
    assert names & FUNCTION_WORDS and "%" in names and not set(tokenizer.vocabulary.function) & set(tokenizer.vocabulary.special)
    assert not {"on", "50", "big", "##s", "cat"} & names
    assert all(name in FUNCTION_WORDS or not any(c.isalnum() for c in name) for name in (n.lower() for n in names))
    pieces = {"wordpiece": "##s"}  # "s" is a function word only where it stands alone
    assert tokenizer.backend.token_to_id(pieces.get(kind, "s")) not in tokenizer.vocabulary.function


def test_pairs(tokenizer):
    vocabulary, tokenizer = tokenizer.vocabulary, tokenizer.with_max_tokens(77)
    for first, second in ((TEXTS[0], TEXTS[1]), (TEXTS[1], TEXTS[5]), (TEXTS[0], "")):
        one, other, pair = tokenizer.tokenize(first), tokenizer.tokenize(second), tokenizer.tokenize(first, second)
        assert one.segments is None and pair.second == second and len(pair.segments) == len(pair.ids) == len(pair.words)
        assert pair.ids[: len(one.ids)] == one.ids and pair.words[: len(one.ids)] == one.words
        assert pair.ids[-1] == vocabulary.sep and list(pair.segments) == sorted(pair.segments)
        tail = len(other.ids) - 1  # without the first special token
        assert pair.ids[len(pair.ids) - tail :] == other.ids[1:]
        words = [word for word in pair.words if word >= 0]
        assert words == sorted(words) and len(set(words)) == len({*one.words} - {-1}) + len({*other.words} - {-1})
        assert not any(pair.segments[: len(one.ids)]) and (tail == 1 or set(pair.segments[len(pair.ids) - tail :]) == {1})
        if pair.offsets is not None:
            assert [x for x, word in zip(pair.offsets, pair.words) if word >= 0] == [
                x for text in (one, other) for x, word in zip(text.offsets, text.words) if word >= 0
            ]
    short = tokenizer.with_max_tokens(10)
    cut = short.tokenize(" ".join(CORPUS[:3]), "a red circle")
    assert len(cut.ids) == 10 and cut.ids[-1] == vocabulary.sep and sum(cut.segments) >= 2
    with pytest.raises(DataError, match="leaves no room for two texts"):
        tokenizer.with_max_tokens(4).tokenize("a", "b")


def test_too_long_pairs_lose_tokens_of_the_longer_text():
    """BERT's loop, token by token, over all lengths."""
    long = made("wordpiece", 77)
    for limit in range(5, 15):
        short = long.with_max_tokens(limit)
        for first, second in itertools.product(range(13), repeat=2):
            a, b = ["a"] * first, ["red"] * second
            found = short.tokenize(" ".join(a), " ".join(b))
            while len(a) + len(b) > limit - 3:
                (a if len(a) > len(b) else b).pop()
            expected = long.tokenize(" ".join(a), " ".join(b))
            assert found[:2] == expected[:2] and found.segments == expected.segments and found.offsets == expected.offsets


def test_pairs_equal_those_of_transformers(tmp_path):
    transformers, ours = pytest.importorskip("transformers"), made("wordpiece", 24)
    ours.save_transformers(tmp_path)
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path)
    different = 0
    for first, second in itertools.product([*TEXTS, *CORPUS[3:9]], repeat=2):
        if not second:  # for transformers that is no pair
            continue
        found = ours.tokenize(first, second)
        other = theirs(first, second, truncation=True, return_token_type_ids=True, return_offsets_mapping=True)
        same = (list(found.ids), list(found.segments)) == (other["input_ids"], other["token_type_ids"])
        if len(found.ids) < 24:
            assert same and list(map(tuple, other["offset_mapping"])) == list(found.offsets), (first, second)
        different += not same
        assert len(other["input_ids"]) == len(found.ids) and abs(sum(found.segments) - sum(other["token_type_ids"])) <= 1
    assert different  # transformers gives an odd place to the longer of two texts that are both too long, BERT's code to the first


def test_characters_of_tokens(tokenizer):
    text = "A red square's unbelievable sign, 50%"
    found = tokenizer.with_max_tokens(60).tokenize(text)
    if tokenizer.style == "clip":
        assert found.offsets is None
        return
    assert len(found.offsets) == len(found.ids) and found.offsets[0] == found.offsets[-1] == (0, 0)
    for number, (start, end), word in zip(found.ids, found.offsets, found.words):
        piece = tokenizer.token(number).removeprefix("##").strip()
        if word >= 0 and piece.isascii() and piece in text.lower():
            assert text[start:end].lower() == piece
    assert "".join(text[a:b] for a, b in found.offsets) == text.replace(" ", "")
