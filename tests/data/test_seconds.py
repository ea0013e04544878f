"""Second texts in batches by length: tags and another caption count, and a token budget holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import scene_regions
from helpers.shards import write_shards, write_tar

from mmpretrain.data.buckets import Buckets
from mmpretrain.data.module import ShardData
from mmpretrain.data.reader import open_reader
from mmpretrain.data.seconds import Second, second
from mmpretrain.data.tags import Tagger, TagOptions
from mmpretrain.data.text import TextOptions
from mmpretrain.data.units import Units
from mmpretrain.objectives.sip import SIP

TOKENS = 480
CLASSES = ("dog", "tennis racket", "background")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """64 scenes with regions and five captions each."""
    return scene_regions.write(tmp_path_factory.mktemp("scenes"), 64, shard_size=32)


def run(folder: Path, **options) -> ShardData:
    """By tokens, words of a small vocabulary; regions and texts are all that is read."""
    made = ShardData(
        str(folder / "regions"),
        batch_size=24,
        text=TextOptions("wordpiece", 512),
        max_tokens=64,
        show="regions",
        workers=0,
        **{"buckets": Buckets(window=2, tokens=TOKENS, multiple=1), **options},
    )
    made.configure(preparers={"sip": SIP().preparer()} if "tags" not in options else {})
    made.setup("fit")
    return made


def spent(made: ShardData) -> tuple[list[int], list[int]]:
    """Of the batches of an epoch: the longest sample times their number, and their number."""
    found, counts = [], []
    for (batch,) in made.train_dataloader():
        text = batch.targets["sip"].swaps.texts if "sip" in batch.targets else None
        lengths = list(batch.text.lengths)
        for row, length in zip(batch.targets["sip"].swaps.text_rows, text.lengths, strict=True) if text is not None else ():
            lengths[row] = length
        costs = [a + b for a, b in zip(lengths, batch.regions.lengths, strict=True)]
        found.append(max(costs) * len(costs))
        counts.append(len(costs))
        assert all(s is not None for s in [batch.text.segments_BT if text is None else text.segments_BT])
    return found, counts


TOLD = {"regions": {"tags": TagOptions("regions")}, "objects": {"tags": TagOptions("objects")}, "captions": {}}


@pytest.mark.parametrize("options", TOLD.values(), ids=TOLD)
def test_batches_of_a_budget_stay_within_it(scenes, options):
    made = run(scenes, **options)
    costs, counts = spent(made)
    assert sum(counts) == 64 and max(costs) <= TOKENS and np.mean(costs) > 0.5 * TOKENS
    alone = run(scenes, **options)
    for part in alone.feed.parts:  # as if texts stood alone
        part.units.second = None
    alone.feed.tracks[0]._made.clear()
    assert max(spent(alone)[0]) > TOKENS
    assert "second texts" in made.identity()["buckets"] and "second texts" not in alone.feed.ruler.identity


def test_nothing_changes_where_texts_stand_alone(scenes):
    plain = run(scenes, tags=None)
    assert plain.feed.parts[0].units.second is None and "second" not in plain.identity()["buckets"]
    assert run(scenes, tags=TagOptions("regions"), buckets=None).feed.parts[0].units.second is None


def test_sizes_of_tags():
    regions, none = np.asarray([1, 4, 0]), np.zeros(3, dtype=np.int64)
    known = Tagger(TagOptions(), CLASSES, 2)
    found = second(None, known, True, ())
    assert found == Second(name=9.0) and found.sizes(regions, none).tolist() == [9, 36, 0]  # "dog " and "tennis racket "
    few = second(None, known._replace(options=TagOptions(most=2)), True, ())
    assert few.sizes(regions, none).tolist() == [9, 18, 0] and few.identity == "9.000 bytes a region, at most 2"
    assert second(None, known._replace(options=TagOptions(repeats=False)), True, ()).names == 2
    assert second(None, None, True, ()) is None and second(None, None, True, ("captions",)) is None
    assert Second(caption=True).sizes(regions, np.asarray([7, 0, 30])).tolist() == [7, 0, 30]


def test_tags_of_the_samples_are_looked_at(tmp_path):
    members = [member for i, tags in enumerate((["cat"], ["a long name", "é"], None, [3])) for member in _sample(i, tags)]
    write_tar(tmp_path / "0.tar", members)
    reader = open_reader(str(tmp_path))
    assert second(reader, Tagger(TagOptions("json")), False, ()) == Second(tags=len("a long name é".encode()))
    assert second(reader, Tagger(TagOptions("objects")), False, ()) is None


def _sample(number: int, tags: list | None) -> list[tuple[str, bytes]]:
    import json

    return [(f"k{number}.json", json.dumps({"captions": ["x"], **({} if tags is None else {"tags": tags})}).encode())]


@pytest.mark.parametrize("every", [False, True])
def test_the_longest_other_caption(tmp_path, every):
    write_shards(tmp_path, (9,))
    reader = open_reader(str(tmp_path))
    units = Units(reader, every_text=every, reads="texts")
    units.second = Second(caption=True)
    numbers = np.arange(units.total)
    rows = units.lengths(0, numbers, np.arange(units.total).astype(np.uint64) * 7919)
    several, most = 0, int(np.ceil(np.quantile(reader.indexes[0].caption_bytes_C, 0.99)))
    for number, size, text in zip(numbers, rows[6], rows[4], strict=True):
        captions = reader.read(units.resolve(0, int(number))[0]).captions
        others = [len(caption.encode()) for place, caption in enumerate(captions) if place != text]
        assert size == (max(*others, most) if others else 0)
        several += bool(others)
    assert several
    none = units.lengths(0, numbers[:0], numbers[:0].astype(np.uint64))
    assert none.shape == (7, 0)
