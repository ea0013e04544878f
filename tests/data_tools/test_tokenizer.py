"""``mmpretrain data tokenizer``: trained and extended folders; ids that existed stay."""

from __future__ import annotations

import os

import pytest
from helpers.shards import write_shards

from mmpretrain.cli.data import run as data
from mmpretrain.cli.errors import UserError
from mmpretrain.data import tokenizer_files
from mmpretrain.data.errors import DataError
from mmpretrain.data.reader import ShardReader
from mmpretrain.data.text import TextOptions
from mmpretrain.data.tokenizer_training import texts, train
from mmpretrain.data_tools.tokenizer import extend, write

TEXTS = ["a red cube above a green ball", "two blue balls and a small yellow cone", "the green cube is left of the red cube"] * 4
NEW = ["zebra", "giraffe", "cub"]


def made(kind: str):
    if kind == "clip":
        return tokenizer_files.clip(40)
    return train(lambda: TEXTS + ["zyxwvutsrqponmlkjihgfedcba z g ra ff e b"], TextOptions(kind, 400, min_frequency=1), 40)


@pytest.mark.parametrize("kind", ["wordpiece", "byte_bpe", "clip"])
def test_new_words_are_one_token_and_old_ids_stay(kind, tmp_path):
    old = made(kind)
    new = NEW if kind != "clip" else ["zebrafinch", "bluegiraffe"]
    found = extend(old, [*new, "cube" if kind != "byte_bpe" else "red"])
    assert found.added == tuple(new) and len(found.known) == 1
    now = found.tokenizer
    assert now.size == old.size + found.new_ids >= old.size + len(new)
    assert now.backend.get_vocab(True).items() >= old.backend.get_vocab(True).items()
    for text in TEXTS[:3]:
        assert now.tokenize(text) == old.tokenize(text)
    tokens = now.tokenize(f"a {new[0]} and {new[1]}s")
    special = now.backend.num_special_tokens_to_add(False)
    assert tokens.words[1:4] == (0, 1, 2) and max(tokens.words) == 3
    assert len(now.tokenize(f"a {new[0]}").ids) == 2 + special
    assert now.decode(tokens.ids) == f"a {new[0]} and {new[1]}s"
    now.save_transformers(tmp_path / "folder")
    assert (
        tokenizer_files.folder(tmp_path / "folder", 40).tokenize(f"a {new[0]} {new[1]}s").ids == now.tokenize(f"a {new[0]} {new[1]}s").ids
    )


def test_words_that_cannot_be_added():
    with pytest.raises(DataError, match="2 words to this tokenizer"):
        extend(made("wordpiece"), ["tennis racket"])
    with pytest.raises(DataError, match="letters that the tokenizer does not know"):
        extend(made("wordpiece"), ["œuvre"])


def test_commands(tmp_path, capsys, own_cache):
    shards = write_shards(tmp_path / "in", captions=2)
    folder = str(tmp_path / "wp")
    assert data(["data", "tokenizer", "train", str(shards), "--out", folder, "--vocab-size", "70", "--min-frequency", "1"]) == 0
    assert len((tmp_path / "wp" / "vocab.txt").read_text().splitlines()) <= 70
    command = ["data", "tokenizer", "extend", folder, "--max-tokens", "64", "--out"]
    assert data([*command, str(tmp_path / "more"), "--shards", str(shards), "--least", "2"]) == 0
    shown = capsys.readouterr().out
    assert "tokens per word before" in shown and "tokens per word now" in shown
    new = tokenizer_files.folder(tmp_path / "more", 64)
    assert len(new.tokenize("triangle number").ids) == 4
    (tmp_path / "words.txt").write_text("number\n\nœuvre\n")
    with pytest.raises(UserError, match="letters that the tokenizer does not know"):
        data([*command, str(tmp_path / "x"), "--words", str(tmp_path / "words.txt")])
    with pytest.raises(UserError, match="not an empty folder"):
        data([*command, folder, "--words", str(tmp_path / "words.txt")])


def test_progress_is_shown_unless_it_is_not_wanted(tmp_path, capsys, own_cache):
    shards = str(write_shards(tmp_path / "in"))
    for number, quiet in enumerate(([], ["--quiet"])):
        size = str(70 + number)  # so that nothing is taken from the cache
        assert data(["data", "tokenizer", "train", shards, "--out", str(tmp_path / size), "--vocab-size", size, *quiet]) == 0
        assert ("Reading texts" in capsys.readouterr().err) == (not quiet)


def test_words_that_are_no_text(tmp_path):
    (tmp_path / "words.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match=r"--words .*words\.txt: not UTF-8"):
        data(["data", "tokenizer", "extend", "clip", "--out", str(tmp_path / "out"), "--words", str(tmp_path / "words.txt")])


def test_a_folder_is_whole_or_not_there(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    out = tmp_path / "deep" / "out"
    stale = tmp_path / "deep" / ".out.partial-old"
    stale.mkdir(parents=True)
    with monkeypatch.context() as broken:
        broken.setattr(tokenizer_files, "save", full)
        with pytest.raises(OSError, match="No space"):
            write(made("wordpiece"), out)
    assert os.listdir(tmp_path / "deep") == []
    out.mkdir()
    write(made("wordpiece"), out)
    assert os.listdir(tmp_path / "deep") == ["out"] and tokenizer_files.folder(out, 40).size == made("wordpiece").size


def test_texts_damaged_since_they_were_indexed_are_left_out(tmp_path, capsys, own_cache):
    shards = write_shards(tmp_path / "in", sizes=(5,))
    reader = ShardReader([shards / "00000.tar"])
    whole = list(texts(reader, 100))
    shard, before = shards / "00000.tar", b'"captions": ["a blue triangle number 2"'
    shard.write_bytes(shard.read_bytes().replace(before, before.replace(b"um", b"XX")))
    left = list(texts(reader, 100))
    assert left == [text for text in whole if "number 2" not in text] and len(whole) - len(left) == 2
    assert "k00002" in (told := capsys.readouterr().err) and "left out of the tokenizer's corpus" in told
