"""``scenes?regions=F``: made once from exact boxes, mended, the same bytes for any number of processes, ready to train on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from mmpretrain.data.errors import DataError
from mmpretrain.data.module import ShardData
from mmpretrain.data.reader import ShardReader
from mmpretrain.data.regions import decode_regions
from mmpretrain.data.regions_info import read_info, same_extractor
from mmpretrain.data.sources import expand
from mmpretrain.data.text import TextOptions
from mmpretrain.data_tools import scenes, scenes_regions

COUNTS = {"train": 130, "val": 24, "compositional": 8, "pairs": 8, "pairs_val": 8}


@pytest.fixture(scope="module", autouse=True)
def _small():
    patch = pytest.MonkeyPatch()
    patch.setattr(scenes, "EMBEDDED", COUNTS)
    patch.setattr(scenes_regions, "SAMPLES", 120)
    patch.setattr(scenes_regions, "TRAINING", {"passes": 2, "least_steps": 1, "batch": 8})
    yield
    patch.undo()


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture(scope="module")
def folders(cache) -> dict[str, Path]:
    return scenes_regions.embedded(16, cache, workers=1)


def sums(folders: dict[str, Path]) -> dict[str, str]:
    return {
        f"{split}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for split, folder in folders.items()
        for path in sorted(folder.iterdir())
        if path.suffix in (".tar", ".json")
    }


def test_every_sample_has_the_regions_of_its_boxes(cache, folders):
    assert set(folders) == set(COUNTS)
    plain = scenes.embedded(cache)
    for split, folder in folders.items():
        old, new = (ShardReader(sorted(one.glob("*.tar"))) for one in (plain[split], folder))
        assert len(new) == len(old) == COUNTS[split] and json.loads((folder / "manifest.json").read_text())["name"] == f"scenes_{split}"
        for number in range(0, len(new), 7):
            before, after = old.read(number), new.read(number)
            assert after._replace(regions=None) == before
            found = decode_regions(after.regions)
            graphs = [before.meta] if "objects" in before.meta else before.meta["images"]
            told = [(64 * i, *thing["box"]) for i, graph in enumerate(graphs) for thing in graph["objects"]]
            boxes = [[left + x, y, left + x + w, y + h] for left, x, y, w, h in told]
            np.testing.assert_allclose(found.boxes, boxes)
            assert found.features.shape == (len(boxes), 16) and found.class_probs.shape[1] == 6 and found.attribute_probs.shape[1] == 14
    info = same_extractor(folders.values())
    assert info is not None and info.boxes == "annotated" and set(info.measured["held_out"]) == {"scenes:val"}
    assert [group.name for group in info.groups] == ["colour", "size", "material"]


def test_made_once_and_mended_alike(cache, folders, capsys, monkeypatch):
    before = sums(folders)
    monkeypatch.setattr(scenes_regions, "_make", lambda *_: pytest.fail("made again"))
    assert scenes_regions.embedded(16, cache) == folders
    monkeypatch.undo()
    shard = folders["val"] / "00000.tar"
    shard.write_bytes(shard.read_bytes()[:1000])
    (folders["val"].parent / f".tmp-{folders['val'].name}-99999").mkdir()  # of a process that was killed
    kept = (folders["train"] / "00000.tar").stat().st_mtime_ns
    assert scenes_regions.embedded(16, cache, workers=2) == folders
    assert sums(folders) == before and (folders["train"] / "00000.tar").stat().st_mtime_ns == kept
    assert "training a region extractor on 120 scenes" in capsys.readouterr().err and not list(folders["val"].parent.glob(".tmp-*"))


def test_the_same_in_another_place_and_for_more_samples(cache, folders, tmp_path):
    elsewhere = scenes_regions.embedded(16, tmp_path, workers=2, progress=False)
    assert sums(elsewhere) == sums(folders) and {f.name for f in elsewhere.values()} == {f.name for f in folders.values()}
    more = scenes_regions.embedded(16, cache, n=140)
    assert more["val"] == folders["val"] and read_info(more["train"]) == read_info(folders["train"])
    assert len(ShardReader(sorted(more["train"].glob("*.tar")))) == 140


def test_it_is_a_source(cache, folders, monkeypatch):
    monkeypatch.setenv("MMPRETRAIN_CACHE", str(cache))
    assert expand("scenes?regions=16") == tuple(sorted(folders["train"].glob("*.tar")))
    assert expand("scenes:compositional?regions=16&seed=0")[0].parent == folders["compositional"]
    options = {"text": TextOptions(vocab_size=300), "max_tokens": 52, "workers": 0, "show": "regions"}
    data = ShardData("scenes?regions=16", {"val": "scenes:val?regions=16"}, 8, **options)
    data.setup("fit")
    assert data.region_width == 16 and data.regions_info.classes[0] == "circle"
    (batch,) = next(iter(data.train_dataloader()))
    assert batch.regions.features_NF.shape[1] == 16 and 1 <= min(batch.regions.lengths) and max(batch.regions.lengths) <= 4
    for wrong, message in (
        ("regions=7", "features have 8 to 1024 values"),
        ("regions=16&n=20", "regions need 100 training samples or more"),
        ("region=16", "has the options n, seed, size and regions, each a number, not 'region=16'"),
        ("regions=many", "not 'regions=many'"),
    ):
        with pytest.raises(DataError, match=message):
            expand(f"scenes?{wrong}")
    mixed = ShardData("scenes?regions=16", {"val": "scenes:val?regions=16"}, 8, **options)
    assert mixed.val_reader("val").paths[0].parent == folders["val"]
