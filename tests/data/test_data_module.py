"""The data module: captions, statements, validation, padding, bad samples, errors of workers."""

from __future__ import annotations

import os
import pickle
import signal
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from helpers.batches import data, flat, same
from helpers.shards import caption, sample, write_shards, write_statements, write_tar

from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data.feed import Item
from mmpretrain.data.image import ImageTransform
from mmpretrain.objectives.itm import ITM
from mmpretrain.types import Collate, Draw, Example

SIZES = (13, 1, 20, 7, 9)  # 50 samples


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("fifty"), SIZES)


def test_a_micro_batch_that_parts_a_shared_draw_is_said(shards):
    made, itm = data(shards, batch_size=10), ITM().preparer()
    with pytest.warns(UserWarning, match="a micro-batch of 5 parts them; make data.batch_size a multiple of 4"):
        made.configure(world=2, preparers={"itm": itm})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.configure(preparers={"itm": itm})
        made.configure(world=2, preparers={"itm": ITM(negatives={}).preparer()})


def test_all_captions_show_every_text_once(shards):
    made = data(shards, captions="all", batch_size=10)
    texts = [made.tokenizer.decode(row) for item in made.train_dataloader() for row in item[0].text.ids_BT.tolist()]
    assert sorted(texts) == sorted(caption(n, v) for n in range(50) for v in range(2))


def test_sampled_captions_vary_and_name_their_edits(shards):
    class Meta(NamedTuple):
        def prepare(self, example: Example, draw: Draw) -> Any:
            index = example.meta["caption_index"]
            assert example.text.text == caption(example.meta["number"], index)
            assert example.meta["edits"][index][0]["text"] == example.text.text.replace("number", "figure")
            return index

        def collate(self, values, collate: Collate) -> tuple[int, ...]:
            return tuple(values)

    made = data(shards, preparers={"meta": Meta()})
    drawn = [index for item in made.train_dataloader() for index in item[0].targets["meta"]]
    assert 10 < sum(drawn) < 38


def test_statements_carry_their_labels_and_are_no_captions(tmp_path):
    folder = write_statements(tmp_path, 12)
    with pytest.raises(DataError, match=r"12 samples have statements: set data.text_from=statements"):
        data(folder, batch_size=4)
    made = data(folder, batch_size=4, text_from="statements")
    labels = {k: m for item in made.train_dataloader() for k, m in zip(item[0].keys, item[0].matched_B.tolist(), strict=True)}
    assert labels == {f"s{n:05d}": n % 3 != 0 for n in range(12)}


@pytest.mark.parametrize("world", [1, 3])
def test_validation_is_fixed_and_shows_every_sample_once(shards, world):
    ranks = [data(shards, val={"a": str(shards), "b": str(shards)}, val_batch_size=4, rank=r, world=world) for r in range(world)]
    assert ranks[0].val_names == ("a", "b") and len(ranks[0].val_readers["a"]) == 50
    loaders = [made.val_dataloader() for made in ranks]
    assert len({len(loader[0]) for loader in loaders}) == 1
    batches = [batch for loader in loaders for batch in loader[0]]
    assert sorted(key for batch in batches for key in batch.keys) == [f"k{n:05d}" for n in range(50)]
    again = [batch for loader in loaders for batch in loader[0]]
    assert same(flat(batches), flat(again))
    part = data(shards, val={"a": str(shards)}, val_samples=7).val_dataloader()[0]
    assert [key for batch in part for key in batch.keys] == [f"k{n * 50 // 7:05d}" for n in range(7)]


def test_pixels_are_padded_with_true_sizes(shards, tmp_path):
    from helpers.shards import picture

    members = [m for n in range(6) for m in (("%05d.png" % n, picture(n, 20 + 10 * n, 30)), ("%05d.txt" % n, b"a thing"))]  # noqa: UP031
    write_tar(tmp_path / "0.tar", members)
    batch = next(iter(data(tmp_path, batch_size=6, image=ImageTransform("vilt", 32, 8)).train_dataloader()))[0]
    pixels = batch.image
    assert pixels.pixels_BCHW.dtype == torch.uint8 and tuple(pixels.pixels_BCHW.shape[2:]) == tuple(
        map(max, zip(*pixels.sizes, strict=True))
    )
    assert len(set(pixels.sizes)) > 2 and all(h % 8 == w % 8 == 0 for h, w in pixels.sizes)
    for row, (height, width) in zip(pixels.pixels_BCHW, pixels.sizes, strict=True):
        assert not row[:, height:].any() and not row[:, :, width:].any()
    assert batch.text.words_BT.shape == batch.text.ids_BT.shape


@pytest.fixture
def one_bad(tmp_path):
    """Twelve samples; the picture of one is not a picture."""
    members = [member for n in range(12) for member in sample(n)]
    members[3 * 7] = ("k00007.png", b"<html>not found</html>")
    write_tar(tmp_path / "00000.tar", members)
    return tmp_path


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_sample_stops_the_run_and_names_shard_and_key(one_bad, workers):
    with pytest.raises(BadSample, match=r"00000\.tar key 'k00007': picture cannot be decoded"):
        list(data(one_bad, preparers={}, workers=workers, on_bad="stop").train_dataloader())


@pytest.mark.fault(13)
def test_or_it_is_replaced_by_its_position(one_bad, capfd):
    found = [next(iter(data(one_bad, preparers={}, workers=w).train_dataloader()))[0] for w in (0, 1)]
    assert found[0].keys == found[1].keys and len(found[0].keys) == 12 and "k00007" not in found[0].keys
    assert "key 'k00007'" in capfd.readouterr().err


def test_a_dataset_reaches_spawned_workers(shards):
    made = data(shards)
    dataset = made.train_dataloader().dataset
    again = pickle.loads(pickle.dumps(dataset))  # noqa: S301  (our own bytes)
    assert same(flat(list(again[Item(0, 1, 2)])), flat(list(dataset[Item(0, 1, 2)])))


def test_what_is_left_out_is_told(tmp_path, caplog):
    members = [m for n in range(6) for m in sample(n)] + [("bare.png", b"x"), ("bare.npy", b"x"), ("k.pkl", b"x")]
    write_tar(tmp_path / "0.tar", members)
    with caplog.at_level("INFO"):
        data(tmp_path, batch_size=4, preparers={})
    assert "6 samples, 1 steps of 4 in an epoch, 2 at its end are dropped; 1 samples lack" in caplog.text
    assert "members never read: npy (1), pkl (1)" in caplog.text


@pytest.mark.fault(30)
def test_a_killed_worker_ends_the_run(shards):
    iterator = iter(data(shards, workers=1, prefetch=1, timeout=600).train_dataloader())
    next(iterator)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="worker"):
        os.kill(iterator._workers[0].pid, signal.SIGKILL)  # said at once, or at the next step
        for _ in range(4):
            next(iterator)
    assert time.monotonic() - began < 300


def test_impossible_options_are_refused(shards):
    with pytest.raises(DataError, match=r"50 usable samples do not fill one batch of 51"):
        data(shards, batch_size=51)
    with pytest.raises(DataError, match="cannot be cut into 5 ranks"):
        data(shards, world=5)
    with pytest.raises(DataError, match=r"captions='x'"):
        data(shards, captions="x")


def test_the_example_of_the_page_runs(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    write_shards(tmp_path / "shards", (20,))
    monkeypatch.chdir(tmp_path)
    code = page.split("```python\n")[1].split("```")[0]
    exec(compile(code, "docs/data.md", "exec"), {})  # our own page
