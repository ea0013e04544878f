"""Tags as second texts: where they come from, whose they are in batches, in negatives and in validation."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers.batches import data
from helpers.regions import made, of_sample, write_regions
from helpers.shards import picture, write_tar

from mmpretrain.data.errors import BadSample, DataError
from mmpretrain.data.reader import open_reader
from mmpretrain.data.regions_info import RegionsInfo, write_info
from mmpretrain.data.tags import Tagger, TagOptions, object_names, tagger
from mmpretrain.data.visual import Shown
from mmpretrain.data_tools import scenes
from mmpretrain.objectives.itm import ITM, KINDS
from mmpretrain.objectives.tags import TagContrast
from mmpretrain.types import Sample

CLASSES = ("dog", "tennis racket", "background")
INFO = RegionsInfo("extractor", "f" * 64, 5, "test", classes=CLASSES, background=2)


def sample(**meta) -> Sample:
    return Sample("k", ("a caption",), (), meta=meta)


def test_names_of_objects():
    objects = [{"shape": "star", "name": "x"}, {"name": "man", "names": ["man", "person"]}, {"tag": "wheel"}, {"id": 3}, {"class": "cat"}]
    assert list(object_names({"objects": objects})) == ["star", "man", "wheel", "cat"]
    assert list(object_names({"images": [{"objects": objects[:1]}, {"regions": [{"category": "dog"}]}]})) == ["star", "dog"]
    assert list(object_names({"images": ["a.jpg"], "regions": [{"name": "b"}]})) == ["b"] and not list(object_names({}))
    with pytest.raises(BadSample, match="not a list of objects"):
        list(object_names({"objects": {"1": {"name": "man"}}}))


def test_sources_of_tags():
    things = [{"name": "dog"}, {"name": "big  tree"}, {"name": "dog"}, {"name": ""}]
    regions = made(4)._replace(classes=np.array([1, 2, 0, -1], dtype=np.int16))
    has = {"json": ["cat", "mat"], "regions": ["tennis racket", "dog"], "objects": ["dog", "big tree", "dog"]}
    for source, names in has.items():
        found = tagger(TagOptions(source), INFO).tags(sample(tags=["cat", "mat"], objects=things), regions)
        assert found == " ".join(names)
    auto = tagger(TagOptions(), INFO)
    assert auto.tags(sample(tags="cat mat", objects=things), regions) == "cat mat"
    assert auto.tags(sample(objects=things), regions) == "tennis racket dog" and auto.tags(sample(objects=things)) == "dog big tree dog"
    assert auto.tags(sample()) is None and auto.tags(sample(tags=[]), regions._replace(classes=None, class_probs=None)) is None
    once = TagOptions("objects", repeats=False)
    assert tagger(once, None).tags(sample(objects=things)) == "dog big tree"
    assert tagger(TagOptions("objects", most=2), None).tags(sample(objects=things)) == "dog big tree"
    probabilities = np.array([[0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8], [0.9, 0, 0.1]], dtype=np.float16)
    assert Tagger(TagOptions("regions"), CLASSES, 2).tags(sample(), regions._replace(classes=None, class_probs=probabilities)) == (
        "tennis racket dog dog"
    )


def test_clear_errors():
    for wrong in ({"source": "text"}, {"most": 0}):
        with pytest.raises(DataError, match=r"data\.tags"):
            TagOptions(**wrong)
    for info in (None, INFO._replace(classes=None)):
        with pytest.raises(DataError, match="names classes"):
            tagger(TagOptions("regions"), info)
    with pytest.raises(DataError, match=r"needs data\.show=regions"):
        TagOptions("regions").check(Shown("image"))
    with pytest.raises(BadSample, match="neither a text nor a list"):
        tagger(TagOptions(), None).tags(sample(tags={"a": 1}))


THINGS = ("dog", "cat", "horse", "mountain", "bicycle", "tree")


def names(number: int) -> list[str]:
    return [] if number % 5 == 4 else [THINGS[number % 6], THINGS[(number // 2) % 6], THINGS[number % 6]]


def write(folder, n: int = 24):
    """Captioned pictures with objects, every fifth without; the captions tell the number."""
    members = []
    for i in range(n):
        meta = {"captions": [f"number {i} here", f"this is number {i}"], "objects": [{"name": name} for name in names(i)], "number": i}
        meta["edits"] = [[{"text": f"figure {i} here", "kind": "word"}]] * 2
        members += [(f"k{i:03d}.png", picture(i)), (f"k{i:03d}.json", json.dumps(meta).encode())]
    write_tar(folder / "00000.tar", members)
    return folder


def texts_of(made, text) -> list[tuple[str, str | None]]:
    """(caption, tags) of a batch, read back from ids and segments; None where the text stands alone."""
    found = []
    segments_BT = torch.zeros_like(text.ids_BT) if text.segments_BT is None else text.segments_BT
    for ids, segments, n in zip(text.ids_BT, segments_BT, text.lengths):
        parts = [made.tokenizer.decode(ids[:n][segments[:n] == segment].tolist()) for segment in (0, 1)]
        found.append((parts[0], parts[1] or None))
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_and_validation_have_the_tags_of_their_pictures(tmp_path, workers):
    shards = write(tmp_path)
    options = {"tags": TagOptions(repeats=False), "max_tokens": 60, "preparers": {}, "val": {"val": str(shards)}, "workers": workers}
    made = data(shards, **options)
    batches = [batch for item in made.train_dataloader() for batch in item] + list(made.val_dataloader()[0])
    assert len({key for batch in batches for key in batch.keys}) == 24
    for batch in batches:
        for key, (caption, tags) in zip(batch.keys, texts_of(made, batch.text), strict=True):
            number = int(key[1:])
            assert str(number) in caption.split() and tags == (" ".join(dict.fromkeys(names(number))) or None)
    alone = data(shards, **{**options, "tags": None})
    assert all(batch.text.segments_BT is None for batch in alone.val_dataloader()[0])


def test_tags_stay_with_their_pictures_in_negatives(tmp_path):
    shards = write(tmp_path)
    itm, contrast = ITM({"image": 1.0, "text": 1.0, "edit": 1.0}), TagContrast(3)
    preparers = {"itm": itm.preparer(), "tags": contrast.preparer()}
    made = data(shards, tags=TagOptions("objects"), max_tokens=60, preparers=preparers)
    wanted = dict.fromkeys(("image", "text", "edit", "tags", "caption"), 0)
    tags_of = {" ".join(names(i)) or None for i in range(24)}
    for item in made.train_dataloader():
        for batch in item:
            own, swaps = texts_of(made, batch.text), batch.targets["itm"]
            for row, (caption, tags) in zip(swaps.text_rows, texts_of(made, swaps.texts) if swaps.texts else ()):
                kind = KINDS[int(swaps.kinds_B[row])]
                wanted[kind] += 1
                if kind == "image":  # another picture: its tags, the caption of this one
                    assert caption == own[row][0] and tags != own[row][1] and tags in tags_of
                else:
                    assert caption != own[row][0] and tags == own[row][1]
            target = batch.targets["tags"]
            for row, (caption, tags) in zip(target.swaps.text_rows, texts_of(made, target.swaps.texts)):
                kind = contrast.kinds[int(target.swaps.kinds_B[row])]
                wanted[kind] += 1
                assert (caption != own[row][0], tags != own[row][1]) == (kind == "caption", kind == "tags")
            assert target.rows == tuple(row for row, (_, tags) in enumerate(own) if tags is not None)
    assert all(wanted.values()), wanted


def test_tags_of_regions_in_their_order(tmp_path):
    shards = write_regions(tmp_path / "r")
    write_info(shards, INFO)
    made = data(shards, show="regions", tags=TagOptions("regions"), max_tokens=40, preparers={"tags": TagContrast().preparer()})
    for item in made.train_dataloader():
        for batch in item:
            for key, (_, tags) in zip(batch.keys, texts_of(made, batch.text), strict=True):
                classes = of_sample(int(key[1:])).classes
                assert tags == (" ".join(CLASSES[c] for c in classes if c in (0, 1)) or None)
    with pytest.raises(DataError, match=r"needs data\.show=regions"):
        data(shards, tags=TagOptions("regions"))
    (shards / "regions.json").unlink()
    with pytest.raises(DataError, match="names classes"):
        next(iter(data(shards, show="regions", tags=TagOptions("regions"), max_tokens=40, preparers={}).train_dataloader()))


def test_generated_scenes_have_tags(tmp_path):
    reader = open_reader(str(scenes.write(tmp_path / "scenes", 5, 0, "val", workers=1)), "val")
    found = [tagger(TagOptions(), None).tags(reader.read(i)) for i in range(5)]
    assert found == [" ".join(one["shape"] for one in reader.read(i).meta["objects"]) for i in range(5)] and all(found)
