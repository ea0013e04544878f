"""Neighbours by the vectors of a file that ``mmpretrain embed`` wrote, against NumPy; what such a file must be; hard negatives by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data.test_neighbours import listed, write
from helpers.batches import data

from mmpretrain.data import neighbour_vectors, neighbours
from mmpretrain.data.errors import DataError
from mmpretrain.data.neighbours import NeighbourOptions
from mmpretrain.data.reader import ShardReader, open_reader
from mmpretrain.objectives.itm import ITM, KINDS

WIDTH = 6


def vectors(reader: ShardReader, path: Path, lacking: tuple[int, ...] = (), seed: int = 0) -> np.ndarray:
    """A file of vectors of the samples in another order; sample 3 has none that is finite."""
    keys = [index.key(sample) for index in reader.indexes for sample in range(len(index))]
    found = np.random.default_rng(seed).standard_normal((len(keys), WIDTH)).astype(np.float32)
    found[3] = np.nan
    order = [row for row in np.random.default_rng(1).permutation(len(keys)).tolist() if row not in lacking]
    np.savez(path, key=np.array(keys)[order], caption=np.array(["x"] * len(order)), image=-found[order], text=found[order])
    found[list(lacking)] = np.nan
    return found


@pytest.mark.parametrize(("most", "below"), [(5, None), (30, 0.6), (60, None)])
def test_against_numpy(tmp_path, own_cache, most, below):
    reader = open_reader(str(write(tmp_path)), "val")
    found = vectors(reader, tmp_path / "v.npz", lacking=(7,)).astype(np.float64)
    table = neighbours.make(reader, "captions", NeighbourOptions(str(tmp_path / "v.npz"), most, below))
    _, owners, places = listed(reader)
    firsts = np.asarray([owners.index(sample) for sample in range(len(reader))])
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    cosines = unit @ unit.T
    for place, owner in zip(places, owners, strict=True):
        numbers = table.of(place)
        if owner in (3, 7):
            assert not len(numbers)
            continue
        line = cosines[owner].copy()
        line[owner] = np.nan
        allowed = np.flatnonzero(line < (2 if below is None else below - 1e-4))
        best = allowed[np.argsort(-line[allowed], kind="stable")][:most]
        others = np.asarray([owners[number] for number in numbers])
        assert (numbers == firsts[others]).all() and abs(len(others) - len(best)) <= 1 and owner not in others
        np.testing.assert_allclose(line[others][: len(best)], line[best][: len(others)], atol=1e-4)


def test_pools_and_ties(tmp_path, own_cache):
    reader = open_reader(str(write(tmp_path)), "val")
    vectors(reader, tmp_path / "v.npz")
    table = neighbours.make(reader, "captions", NeighbourOptions(str(tmp_path / "v.npz")), pool=20)
    _, owners, places = listed(reader)
    known = [sample for sample in range(len(reader)) if sample != 3]
    for place, owner in zip(places, owners, strict=True):
        others = [owners[number] for number in table.of(place).tolist()]
        assert owner == 3 or {known.index(other) % 3 for other in others} == {known.index(owner) % 3}
    ((rows, found),) = neighbour_vectors.similar(np.ones((5, 2), dtype=np.float32), 3, 2.0)
    assert rows.tolist() == [0, 1, 2, 3, 4] and found[0].tolist() == [1, 2, 3] and found[2].tolist() == [0, 1, 3]
    ((_, none),) = neighbour_vectors.similar(np.ones((1, 2), dtype=np.float32), 3, 2.0)
    assert none.tolist() == [[-1, -1, -1]]


def test_other_files_are_refused(tmp_path, own_cache):
    reader = open_reader(str(write(tmp_path)), "val")
    path = tmp_path / "v.npz"
    make = lambda: neighbours.make(reader, "captions", NeighbourOptions(str(path)))
    with pytest.raises(DataError, match=r"data\.neighbours\.file=.*v\.npz: No such file"):
        make()
    for content, message in (
        ({"key": np.array(["a"]), "text": np.ones((1, 2))}, "has the vectors of other samples .the first key is 'a'"),
        ({"key": np.array(["a"])}, "no vectors of mmpretrain embed"),
        ({"key": np.array(["a"]), "text": np.ones((2, 2))}, "do not fit together"),
        ({"key": np.array(["a", {}], dtype=object), "text": np.ones((2, 2))}, "no vectors of mmpretrain embed"),
    ):
        np.savez(path, **content)
        with pytest.raises(DataError, match=message):
            make()
    for wrong in ({"most": 0}, {"below": -1.0}):
        with pytest.raises(DataError, match=r"data\.neighbours: most"):
            NeighbourOptions(**wrong)


def test_hard_negatives_of_a_run(tmp_path, own_cache):
    shards = write(tmp_path, (40, 40))
    vectors(open_reader(str(shards), "val"), tmp_path / "v.npz")
    options = NeighbourOptions(str(tmp_path / "v.npz"), most=3)
    itm = {"itm": ITM({"hard": 1.0}).preparer()}
    made = data(shards, preparers=itm, max_tokens=30, batch_size=8, neighbours=options)
    texts, owners, places = listed(made.reader)
    table = neighbours.make(made.reader, "captions", options)
    of = {owner: {texts[number] for number in table.of(place)} for place, owner in zip(places, owners, strict=True)}
    hard = 0
    for (batch,) in made.train_dataloader():
        swaps = batch.targets["itm"]
        for row, ids, length in zip(swaps.text_rows, swaps.texts.ids_BT.tolist(), swaps.texts.lengths, strict=True):
            if swaps.kinds_B[row] == KINDS.index("hard"):
                said = made.tokenizer.decode(ids[:length])
                assert said in of[int(batch.keys[row].removeprefix("k"))]
                hard += 1
    assert hard > 20
