"""The data module: the same batches on every layout, exact resume, draws, statements, validation, errors of workers."""

from __future__ import annotations

import json
import os
import pickle
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers.shards import caption, sample, write_shards, write_statements, write_tar

from mmpretrain.data.errors import BadSample, DataError, ResumeError
from mmpretrain.data.image import ImageTransform
from mmpretrain.data.module import ShardData
from mmpretrain.data.text import TextOptions
from mmpretrain.types import Batch, Collate, Draw, Example, Pixels, Text

SIZES = (13, 1, 20, 7, 9)  # 50 samples


class Seen(NamedTuple):
    """What the preparer below saw, as a batch."""

    coins: tuple[int, ...]
    others: tuple[str, ...]
    images: Pixels
    texts: Text


class Probe(NamedTuple):
    """A preparer that uses everything that a draw offers."""

    def prepare(self, example: Example, draw: Draw) -> Any:
        coin = int(draw.generator("probe", shared_by=2).integers(2)) ^ (draw.position % 2)
        image_key, image = draw.other_image(0)
        text_key, text = draw.other_text(1)
        assert example.key not in (image_key, text_key)
        return coin, f"{image_key}/{text_key}", image, text

    def collate(self, values, collate: Collate) -> Seen:
        coins, others, images, texts = zip(*values, strict=True)
        return Seen(coins, others, collate.pixels(images), collate.text(texts))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("fifty"), SIZES)


def data(shards, **options: Any) -> ShardData:
    """A small data module; ``rank``, ``world``, ``accumulate`` and ``preparers`` go to ``configure``."""
    place = {name: options.pop(name) for name in ("rank", "world", "accumulate", "preparers") if name in options}
    defaults = {"batch_size": 12, "text": TextOptions(vocab_size=300), "image": ImageTransform("clip", 8, randaugment=(2, 9))}
    made = ShardData(str(shards), **{**defaults, "max_tokens": 12, "workers": 0, "block": 2, "seed": 5, **options})
    made.configure(**{"preparers": {"probe": Probe()}, **place})
    made.setup("fit")
    return made


def flat(batches: list[Batch]) -> dict[str, Any]:
    """One batch of several, for comparison: padding differs between layouts, contents must not."""

    def texts(text: Text) -> list[list[int]]:
        return [row[:n].tolist() for row, n in zip(text.ids_BT, text.lengths, strict=True)]

    probes = [batch.targets["probe"] for batch in batches]
    return {
        "keys": [key for batch in batches for key in batch.keys],
        "draws": [key for batch in batches for key in batch.draw_keys_B.tolist()],
        "texts": [row for batch in batches for row in texts(batch.text)],
        "pixels": torch.cat([batch.image.pixels_BCHW for batch in batches]),
        "coins": [coin for probe in probes for coin in probe.coins],
        "others": [key for probe in probes for key in probe.others],
        "other pixels": torch.cat([probe.images.pixels_BCHW for probe in probes]),
        "other texts": [row for probe in probes for row in texts(probe.texts)],
    }


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(torch.equal(a[name], b[name]) if isinstance(a[name], torch.Tensor) else a[name] == b[name] for name in a)


def whole(shards, world: int, accumulate: int, workers: int, steps: int = 2) -> list[dict[str, Any]]:
    """The global batches of the first steps, put together from all ranks."""
    ranks = [data(shards, rank=rank, world=world, accumulate=accumulate, workers=workers) for rank in range(world)]
    found = []
    for items in zip(*(made.train_dataloader() for made in ranks), strict=True):
        assert all(isinstance(item, tuple) and len(item) == accumulate for item in items)
        found.append(flat([items[rank][a] for a in range(accumulate) for rank in range(world)]))
        if len(found) == steps:
            break
    return found


LAYOUTS = [
    (1, 1, 1),
    (1, 2, 0),
    (1, 3, 0),
    (1, 4, 2),
    (1, 12, 0),
    (2, 1, 0),
    (2, 3, 1),
    (3, 2, 0),
    (3, 4, 0),
    (4, 3, 0),
    (6, 2, 0),
    (12, 1, 0),
]


def test_world_micro_batches_and_workers_do_not_change_a_global_batch(shards):
    expected = whole(shards, 1, 1, 0)
    assert len(set(expected[0]["keys"] + expected[1]["keys"])) == 24
    for world, accumulate, workers in LAYOUTS:
        found = whole(shards, world, accumulate, workers)
        assert all(same(a, b) for a, b in zip(expected, found, strict=True)), (world, accumulate, workers)


def test_an_epoch_shows_no_sample_twice_and_the_next_is_another(shards):
    made = data(shards)
    loader = made.train_dataloader()
    orders = []
    for _ in range(2):
        steps = []
        for item in loader:
            steps.append(item)
            made.advance()
        assert len(steps) == len(loader) == made.steps_per_epoch == 4
        orders.append([key for item in steps for key in item[0].keys])
    assert all(len(set(order)) == 48 for order in orders) and orders[0] != orders[1]
    assert made.plan.dropped == 2 and made.state_dict()["epoch"] == 2


def test_resume_at_every_step_is_exact(shards):
    made = data(shards, accumulate=2)
    expected, states = [], []
    for _ in range(2):
        for item in made.train_dataloader():
            states.append(made.state_dict())
            expected.append(flat(list(item)))
            made.advance()
    states.append(made.state_dict())
    assert [(s["epoch"], s["samples"]) for s in states] == [(e, s) for e in (0, 1) for s in (0, 12, 24, 36)] + [(2, 0)]
    for number, state in enumerate(states[:-1]):
        again = data(shards, accumulate=2)
        again.load_state_dict(json.loads(json.dumps(state)))
        rest = [flat(list(item)) for item in again.train_dataloader()]
        assert len(rest) == 4 - number % 4
        assert all(same(a, b) for a, b in zip(rest, expected[number:], strict=False))


def test_resume_on_another_layout_and_several_times_in_one_epoch(shards):
    made = data(shards)
    expected = []
    for item in made.train_dataloader():
        expected.append(flat(list(item)))
    state = data(shards).state_dict()
    for step, (accumulate, workers) in enumerate([(3, 0), (1, 2), (2, 1), (4, 0)]):
        part = data(shards, accumulate=accumulate, workers=workers)
        part.load_state_dict(state)
        assert same(flat(list(next(iter(part.train_dataloader())))), expected[step])  # prefetched steps are not consumed
        part.advance()
        state = part.state_dict()
    assert (state["epoch"], state["samples"]) == (1, 0)


def test_the_state_is_small_and_checked(shards, tmp_path):
    made = data(shards)
    made.advance()
    state = made.state_dict()
    assert len(json.dumps(state)) < 400
    for change, message in [
        ({"batch_size": 10}, "trained with data.batch_size=12, not 10"),
        ({"seed": 6}, "trained with data.seed=5, not 6"),
        ({"captions": "all"}, "data.captions=sample"),
        ({"block": 3}, "data.block=2"),
    ]:
        with pytest.raises(ResumeError, match=message):
            data(shards, **change).load_state_dict(state)
    other = write_shards(tmp_path / "other", (30, 20))
    with pytest.raises(ResumeError, match=r"the training shards are not those of the checkpoint .* data.allow_data_change=true"):
        data(other).load_state_dict(state)
    with pytest.raises(ResumeError, match="lacks fingerprint"):
        data(shards).load_state_dict({name: value for name, value in state.items() if name != "fingerprint"})
    with pytest.raises(ResumeError, match="has version 9"):
        data(shards).load_state_dict({**state, "version": 9})
    half = data(shards, batch_size=6, allow_data_change=True)
    half.load_state_dict(state)
    assert half.cursor.step == 2
    with pytest.raises(ResumeError, match=r"no multiple of data.batch_size=10"):
        data(shards, batch_size=10, allow_data_change=True).load_state_dict(state)
    early = ShardData(str(shards), batch_size=10, text=TextOptions(vocab_size=300), workers=0)
    early.load_state_dict(state)  # before setup: checked then
    with pytest.raises(ResumeError, match="batch_size"):
        early.setup("fit")


def test_half_of_the_coins_of_every_even_stretch(shards):
    batches = whole(shards, 2, 3, 0, steps=4)
    coins = [batch["coins"] for batch in batches]
    assert all(sum(found[place : place + 2]) == 1 for found in coins for place in range(0, 12, 2))
    assert len({tuple(found) for found in coins}) > 1


def test_other_samples_are_uniform_and_never_itself(shards):
    made = data(shards)
    loader = made.train_dataloader()
    others: dict[str, int] = {}
    for epoch in range(12):
        made.cursor.epoch = epoch
        for item in loader:
            for other in item[0].targets["probe"].others:
                key = other.split("/")[0]
                others[key] = others.get(key, 0) + 1
    counts = np.array([others.get(f"k{n:05d}", 0) for n in range(50)])
    expected = 12 * 48 / 50
    assert ((counts - expected) ** 2 / expected).sum() < 85  # chi-square, 49 degrees of freedom, p = 0.001


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
        list(data(one_bad, preparers={}, workers=workers).train_dataloader())


def test_or_it_is_replaced_by_its_position(one_bad, capfd):
    found = [next(iter(data(one_bad, preparers={}, workers=w, on_bad="replace").train_dataloader()))[0] for w in (0, 1)]
    assert found[0].keys == found[1].keys and len(found[0].keys) == 12 and "k00007" not in found[0].keys
    assert "key 'k00007'" in capfd.readouterr().err


def test_a_dataset_reaches_spawned_workers(shards):
    made = data(shards)
    dataset = made.train_dataloader().dataset
    again = pickle.loads(pickle.dumps(dataset))  # noqa: S301  (our own bytes)
    assert same(flat(list(again[1, 2])), flat(list(dataset[1, 2])))


def test_what_is_left_out_is_told(tmp_path, caplog):
    members = [m for n in range(6) for m in sample(n)] + [("bare.png", b"x"), ("bare.npy", b"x"), ("k.pkl", b"x")]
    write_tar(tmp_path / "0.tar", members)
    with caplog.at_level("INFO"):
        data(tmp_path, batch_size=4, preparers={})
    assert "6 samples, 1 steps of 4 in an epoch, 2 at its end are dropped; 1 samples lack" in caplog.text
    assert "members never read: npy (1), pkl (1)" in caplog.text


def test_a_killed_worker_ends_the_run(shards):
    iterator = iter(data(shards, workers=1, prefetch=1, timeout=30).train_dataloader())
    next(iterator)
    os.kill(iterator._workers[0].pid, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="worker"):
        for _ in range(4):
            next(iterator)
    assert time.monotonic() - began < 60


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
