"""The real shards: everything is read, counted as their README says, and reaches batches."""

from __future__ import annotations

import json

import pytest

from mmpretrain.data.decode import decode_image
from mmpretrain.data.image import ImageTransform
from mmpretrain.data.module import ShardData
from mmpretrain.data.reader import ShardReader
from mmpretrain.data.sources import expand
from mmpretrain.data.text import TextOptions

COUNTS = {"emoji_train": 3227, "emoji_val": 303, "nlvr_train": 1978, "nlvr_val": 990, "coco_cc": 75}


@pytest.mark.parametrize("name", COUNTS)
def test_every_sample_is_read(real_shards, name):
    reader = ShardReader(expand(str(real_shards / name)))
    manifest = json.loads((real_shards / name / "manifest.json").read_text(encoding="utf-8"))
    assert len(reader) == COUNTS[name] == manifest["samples"]
    assert [len(index) for index in reader.indexes] == [shard["samples"] for shard in manifest["shards"]]
    assert all(index.bad == 0 and index.ignored == {} for index in reader.indexes)
    assert not list((real_shards / name).glob("*.npz"))  # the folder is read-only: nothing is written into it
    captions = [len(reader.read(number).captions) for number in range(0, len(reader), 7)]
    assert set(captions) == ({0} if name.startswith("nlvr") else {5} if name == "coco_cc" else {1})
    for number in range(0, len(reader), max(1, len(reader) // 25)):
        assert decode_image(reader.read(number).images[0]).mode == "RGB"


def test_emoji_lie_on_white(real_shards):
    reader = ShardReader(expand(str(real_shards / "emoji_val")))
    corners = [decode_image(reader.read(number).images[0]).getpixel((0, 0)) for number in range(0, 303, 10)]
    assert corners.count((255, 255, 255)) > 0.8 * len(corners)


def test_false_statements_are_marked_and_never_captions(real_shards):
    made = ShardData(
        "${MMPRETRAIN_REAL_SHARDS}/nlvr_train",
        text=TextOptions(vocab_size=400),
        image=ImageTransform("vilt", 32, 8),
        text_from="statements",
        workers=0,
    )
    made.setup("fit")
    labels = [bool(label) for item in made.train_dataloader() for label in item[0].matched_B]
    assert len(labels) == 1978 // 64 * 64 and 0.40 < labels.count(False) / len(labels) < 0.50
    reader = made.reader
    for number in range(0, len(reader), 50):
        found = reader.read(number)
        assert found.captions == () and len(found.statements) == 1


def test_photographs_fill_a_batch_of_their_sizes(real_shards):
    made = ShardData(
        str(real_shards / "coco_cc"), text=TextOptions("clip"), image=ImageTransform("vilt", 64, 16), batch_size=8, max_tokens=77, workers=0
    )
    made.setup("fit")
    batch = next(iter(made.train_dataloader()))[0]
    assert len(set(batch.image.sizes)) > 1 and min(batch.text.lengths) > 5
    assert batch.text.ids_BT.shape[1] == max(batch.text.lengths) < 40  # not 77
