"""Tables of similar texts against NumPy; what is drawn of them, and by whom."""

from __future__ import annotations

import json
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from helpers.batches import data
from helpers.shards import picture, write_tar

from mmpretrain.data import neighbours
from mmpretrain.data.errors import DataError
from mmpretrain.data.function_words import is_function_word
from mmpretrain.data.neighbours import NeighbourOptions, TextPlace, similar
from mmpretrain.data.reader import open_reader
from mmpretrain.objectives.itm import ITM, KINDS

WORDS = ("dog", "cat", "tree", "river", "red", "blue", "old", "runs", "sleeps", "jumps", "bench", "street", "small", "house", "kite")


def caption(rng: np.random.Generator) -> str:
    return "the " + " ".join(WORDS[i] for i in rng.integers(len(WORDS), size=rng.integers(2, 6))) + " of a"


def write(folder, sizes=(30, 25), seed: int = 0):
    rng, number = np.random.default_rng(seed), 0
    for shard, size in enumerate(sizes):
        members = []
        for i in range(number, number + size):
            meta = {"captions": [caption(rng) for _ in range(1 + i % 3)]}
            members += [(f"k{i:03d}.png", picture(i)), (f"k{i:03d}.json", json.dumps(meta).encode())]
        write_tar(folder / f"{shard:05d}.tar", members)
        number += size
    return folder


def cosines(texts: list[str]) -> np.ndarray:
    """TF-IDF cosines as the module's text states them."""
    bags = [Counter(word for word in text.split() if not is_function_word(word)) for text in texts]
    names = sorted({word for bag in bags for word in bag})
    counts = np.array([[bag[word] for word in names] for bag in bags], dtype=float)
    vectors = counts * (np.log((1 + len(texts)) / (1 + (counts > 0).sum(0))) + 1)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors @ vectors.T


def listed(reader) -> tuple[list[str], list[int], list[TextPlace]]:
    """Texts, their samples and their places, in order."""
    texts, owners, places = [], [], []
    for number in range(len(reader)):
        for n, text in enumerate(reader.read(number).captions):
            texts.append(text)
            owners.append(number)
            places.append(TextPlace(*reader.locate(number), n))
    return texts, owners, places


@pytest.mark.parametrize(("most", "below"), [(5, 0.5), (30, 0.5), (8, 0.9)])
def test_against_numpy(tmp_path, own_cache, most, below):
    reader = open_reader(str(write(tmp_path)), "val")
    texts, owners, places = listed(reader)
    table, cosine = neighbours.make(reader, "captions", NeighbourOptions(most=most, below=below)), cosines(texts)
    owner, found_any = np.asarray(owners), 0
    for row, place in enumerate(places):
        found = table.of(place)
        assert table.locate(row) == place and len(set(found.tolist())) == len(found) <= most
        allowed = np.flatnonzero((cosine[row] < below - 1e-4) & (cosine[row] > 1e-4) & (owner != owners[row]))
        assert not set(owner[found]) & {owners[row]} and (cosine[row][found] < below + 1e-4).all() and (cosine[row][found] > 0).all()
        assert abs(len(found) - min(most, len(allowed))) <= 1
        best = np.sort(cosine[row][allowed])[::-1][: len(found)]
        np.testing.assert_allclose(cosine[row][found][: len(best)], best, atol=1e-4)  # the most similar first
        found_any += len(found) > 0
    assert found_any > 0.9 * len(places)


def test_the_same_in_every_process_and_with_threads(tmp_path, own_cache):
    reader = open_reader(str(write(tmp_path)), "val")
    first = neighbours.make(reader, "captions")
    bytes_ = first.path.read_bytes()
    threads = torch.get_num_threads()
    first.path.unlink()
    try:
        torch.set_num_threads(3)
        assert neighbours.make(reader, "captions").path.read_bytes() == bytes_
    finally:
        torch.set_num_threads(threads)
    again = pickle.loads(pickle.dumps(first))  # noqa: S301  (our own bytes)
    assert (again.of(TextPlace(1, 3, 0)) == first.of(TextPlace(1, 3, 0))).all() and not list(first.path.parent.glob(".*"))
    assert neighbours.make(reader, "captions", NeighbourOptions(most=4)).path != first.path


def test_pools_bound_what_is_compared(tmp_path, own_cache):
    reader = open_reader(str(write(tmp_path, (90, 80))), "val")
    _, owners, places = listed(reader)
    table = neighbours.make(reader, "captions", pool=120)
    pools = -(-170 // (120 // 3))
    for place, owner in zip(places, owners, strict=True):
        assert {owners[number] % pools for number in table.of(place).tolist()} <= {owner % pools}
    assert pools > 1 and sum(len(table.of(place)) for place in places) > 5 * len(places)


def test_ties_are_broken_by_order():
    bags = [Counter({"a": 1, "b": 1, "c": 1, "d": 1}), *[Counter({"a": 1, "x": 1, "y": 1, "z": 1}) for _ in range(6)], Counter()]
    ((_, found),) = similar(bags, dict.fromkeys("abcdxyz", 1.0), np.arange(8), 3, 0.5)
    assert found[0].tolist() == [1, 2, 3] and found[7].tolist() == [-1] * 3
    ((_, none),) = similar([Counter(), Counter()], {}, np.arange(2), 3, 0.5)
    assert (none == -1).all()


def test_hard_negatives_of_a_run(tmp_path, own_cache):
    shards = write(tmp_path, (40, 40))
    itm = ITM({"text": 0.8, "hard": 0.2})
    made = data(shards, preparers={"itm": itm.preparer()}, max_tokens=30, batch_size=8, val={"val": str(shards)})
    reader = made.reader
    texts, owners, places = listed(reader)
    table = neighbours.make(reader, "captions")
    numbers = {tuple(made.tokenizer.tokenize(text).ids): [] for text in texts}
    for number, text in enumerate(texts):
        numbers[tuple(made.tokenizer.tokenize(text).ids)].append(number)
    hard = 0
    for batch in [batch for item in made.train_dataloader() for batch in item] + list(made.val_dataloader()[0]):
        swaps = batch.targets["itm"]
        for place, row in enumerate(swaps.text_rows):
            if KINDS[int(swaps.kinds_B[row])] == "hard":
                own = numbers[tuple(batch.text.ids_BT[row, : batch.text.lengths[row]].tolist())]
                other = numbers[tuple(swaps.texts.ids_BT[place, : swaps.texts.lengths[place]].tolist())]
                assert any(set(table.of(places[number]).tolist()) & set(other) for number in own)
                assert batch.keys[row] not in {f"k{owners[number]:03d}" for number in other}
                hard += 1
    assert hard > 3


def test_without_them_a_set_has_none(tmp_path, own_cache):
    shards = write(tmp_path)
    data(shards, preparers={"itm": ITM({"text": 1.0}).preparer()}, max_tokens=30).train_dataloader()
    assert not (own_cache / "neighbours").exists()
    (own_cache / "neighbours").write_text("in the way")
    with pytest.raises(DataError, match="set MMPRETRAIN_CACHE"):
        neighbours.make(open_reader(str(shards), "val"), "captions")
