"""Texts alone as chunks: what is joined, from whom, and in which batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.regions import write_regions
from helpers.shards import write_shards

from mmpretrain.data.buckets import Buckets, Ruler
from mmpretrain.data.errors import DataError
from mmpretrain.data.image import ImageTransform
from mmpretrain.data.joined import chunk
from mmpretrain.data.mixture import TrainSource
from mmpretrain.data.module import ShardData
from mmpretrain.data.reader import open_reader
from mmpretrain.data.text import TextOptions
from mmpretrain.data.units import Units
from mmpretrain.types import Tokens


def tokenize(text: str) -> Tokens:
    """Two tokens a word, between special ones."""
    ids = [int(number) for word in text.split() for number in (word, word)]
    return Tokens((1, *ids, 2), (-1, *(n // 2 for n in range(len(ids))), -1), text)


def test_a_chunk_is_full_and_counts_words_on():
    found = chunk("10 11", iter(["12", "13 14", "99"]), tokenize, 9)
    assert found.ids == (10, 10, 11, 11, 12, 12, 13, 13, 14) and found.words == (0, 0, 1, 1, 2, 2, 3, 3, 4)
    assert found.text == "10 11 12 13 14" and found.segments is None and found.offsets is None
    asked = iter(["12"])
    assert chunk("10 11", asked, tokenize, 4).ids == (10, 10, 11, 11) and next(asked) == "12"  # what is not needed is not read
    assert chunk("10", iter([]), tokenize, 9).ids == (10, 10)


def mixed(tmp_path: Path, **source) -> ShardData:
    pairs, books = write_regions(tmp_path / "pairs", (12,), image=False), write_shards(tmp_path / "books", (7, 5))
    train = {"pairs": TrainSource(str(pairs)), "books": TrainSource(str(books), reads="texts", **source)}
    made = ShardData(train, batch_size=4, text=TextOptions(vocab_size=300), max_tokens=24, workers=0, show="regions", mix="batch")
    made.setup("fit")
    return made


def test_batches_of_chunks(tmp_path):
    made = mixed(tmp_path, joined=True)
    special, reader = set(made.vocabulary.special), open_reader(str(tmp_path / "books"))
    captions = {reader.read(n).key: reader.read(n).captions for n in range(len(reader))}
    keys = list(captions)
    of = lambda text: [i for i in made.tokenizer.tokenize(text).ids if i not in special]
    seen = set()
    for (batch,) in made.train_dataloader():
        if batch.source != "books":
            assert batch.text.ids_BT[0, 0] == made.vocabulary.cls
            continue
        assert batch.text.lengths == (24,) * 4 and not special & set(batch.text.ids_BT.flatten().tolist())
        assert ((batch.text.words_BT.diff(dim=1) == 0) | (batch.text.words_BT.diff(dim=1) == 1)).all()
        for key, ids in zip(batch.keys, batch.text.ids_BT.tolist(), strict=True):
            seen.add(key)
            place = keys.index(key)
            behind = [token for step in range(1, 12) for token in of(captions[keys[(place + step) % 12]][0])]
            assert any(ids == [*of(own), *behind][:24] for own in captions[key])
    assert seen == set(keys)
    assert made.identity()["sources"]["books"]["as"].endswith("/joined")
    assert not mixed(tmp_path / "apart").identity()["sources"]["books"]["as"].endswith("/joined")


def test_a_chunk_costs_what_it_may_be(tmp_path):
    write_shards(tmp_path, (9,))
    units = Units(open_reader(str(tmp_path)), reads="texts")
    measure = lambda: Ruler(Buckets(), ImageTransform(), 24, [units]).measure(
        *(np.zeros(9, dtype=np.int64),) * 2, np.arange(9), np.arange(9).astype(np.uint64)
    )
    assert measure()[0].texts_P.max() < 24
    units.joined = True
    assert set(measure()[0].cost_P.tolist()) == {24}


def test_pairs_are_not_joined():
    with pytest.raises(DataError, match="joined of 'x' is for reads: texts"):
        TrainSource("x", joined=True)
