"""Detectors of torchvision and grids of timm: shapes, weights from files, and that random ones say so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.shards import sample, write_tar
from safetensors.torch import save_file

from mmpretrain.data.errors import DataError
from mmpretrain.data.reader import ShardReader
from mmpretrain.data.regions import decode_regions
from mmpretrain.data.regions_info import read_info
from mmpretrain.data_tools import regions, regions_detector, regions_grid

SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_tar(tmp_path_factory.mktemp("two") / "0.tar", [*sample(0), *sample(1)])


def run(shards, out, *words):
    assert regions.main([*map(str, (shards, *words)), "--out", str(out), "--workers", "1", "--quiet"]) == 0
    return [decode_regions(ShardReader([out / "0.tar"]).read(n).regions) for n in range(2)], read_info(out)


def test_a_random_detector_gives_the_schema_and_says_that_it_is_random(shards, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("red\nround\n")
    words = ["--detector", SMALL, "--random-weights", "--min-boxes", 4, "--max-boxes", 4, "--attributes", tmp_path / "a.txt"]
    found, info = run(shards, tmp_path / "out", *words)
    for one in found:
        assert one.features.shape == (4, 1024) and one.boxes.shape == (4, 4) and one.class_probs.shape == (4, 91)
        assert one.attribute_probs.shape == (4, 2) and one.image_size.tolist() == [20, 24] and (one.classes > 0).all()
        np.testing.assert_allclose(one.class_probs.astype(np.float32).sum(1), 1, atol=5e-3)
        assert (np.diff(one.scores) <= 0).all()
    assert info.random and info.background == 0 and info.attributes == ("red", "round") and info.width == 1024
    assert "random weights: shapes are right, numbers mean nothing" in capsys.readouterr().out


def test_weights_of_a_file_give_classes_and_width(shards, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = regions_detector.build(SMALL, None)[0]
        regions_detector._widen(model, 4, 32)
    state = {**model.state_dict(), "attribute_head.weight": torch.zeros(3, 32), "attribute_head.bias": torch.zeros(3)}
    torch.save({"model": {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}}, tmp_path / "w.pth")
    (tmp_path / "c.txt").write_text("cat\ndog\ncow\n")
    words = ["--detector", SMALL, "--weights", tmp_path / "w.pth", "--classes", tmp_path / "c.txt", "--max-boxes", 5, "--min-boxes", 1]
    found, info = run(shards, tmp_path / "out", *words)
    assert info.classes == ("background", "cat", "dog", "cow") and not info.random
    assert found[0].features.shape[1] == 32 and found[0].class_probs.shape[1] == 4 and found[0].attribute_probs.shape[1] == 3
    kept, _ = run(shards, tmp_path / "proposals", *words, "--keep-proposals")
    assert kept[0].boxes.tolist() != found[0].boxes.tolist()
    (tmp_path / "c.txt").write_text("cat\n")
    with pytest.raises(DataError, match="--classes has 1 names, but the detector has 4"):
        run(shards, tmp_path / "no", *words)
    with pytest.raises(DataError, match="not weights of fasterrcnn_resnet50_fpn"):
        regions_detector.build("fasterrcnn_resnet50_fpn", tmp_path / "w.pth")


def test_features_are_those_of_the_kept_boxes():
    """As torchvision's own forward pass sees the picture: the class scores of its detections are among ours."""
    from PIL import Image

    from mmpretrain.data_tools.regions_choose import Rule
    from mmpretrain.data_tools.regions_shard import Job
    from mmpretrain.types import Sample

    model, _ = regions_detector.build(SMALL, None)
    model.roi_heads.score_thresh, model.roi_heads.detections_per_img = 0.0, 5
    pixels = np.random.default_rng(0).integers(0, 256, size=(60, 80, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    maker = regions_detector.DetectorMaker(model, None, Rule(0.0, 1, 1000), refine=False)
    (ours,) = maker.regions([Job(Sample("k", (), ()), image, ((80, 60),))])
    with torch.inference_mode():
        (theirs,) = model([torch.from_numpy(pixels).permute(2, 0, 1).float() / 255])
    for label, score in zip(theirs["labels"].tolist(), theirs["scores"].tolist(), strict=True):
        assert np.abs(ours.class_probs[:, label] - score).min() < 1e-5


def test_hostile_weights_run_nothing(tmp_path, monkeypatch):
    import os
    import pickle

    class Canary:
        def __reduce__(self):
            return os.system, ("touch canary",)

    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.pth").write_bytes(pickle.dumps(Canary()))
    torch.save({"weight": Canary()}, tmp_path / "worse.pth")
    (tmp_path / "none.safetensors").write_bytes(b"1234567890")
    (tmp_path / "junk.pth").write_bytes(b"junk")  # where torch's unpickler raises struct.error
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("bad.pth", "worse.pth", "junk.pth", "none.safetensors", "list.pth", "missing.pth"):
        with pytest.raises(DataError, match=name) as caught:
            regions_detector.load_weights(tmp_path / name)
        assert "load failed" not in str(caught.value)  # torch's advice
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(("name", "width", "cells"), [("resnet10t", 512, 3), ("vit_tiny_patch16_224", 192, 3)])
def test_grids(name, width, cells, shards, tmp_path):
    found, info = run(shards, tmp_path / "out", "--grid", name, "--random-weights", "--grid-side", cells)
    assert info.kind == "grid" and info.width == width and info.random and info.classes is None
    for one in found:
        assert one.features.shape == (cells**2, width) and one.global_feature.shape == (width,) and one.class_probs is None
        assert one.boxes[0].tolist() == [0, 0, 8, pytest.approx(20 / 3)] and one.boxes[-1].tolist() == [16, pytest.approx(40 / 3), 24, 20]


def test_weights_of_a_grid(tmp_path):
    model = regions_grid.build("resnet10t", None)
    state = {**model.state_dict(), "fc.weight": torch.zeros(2, 512)}  # a classifier is passed over
    state["bn1.bias"] = state["bn1.bias"] + 1
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "w.safetensors")
    assert torch.equal(regions_grid.build("resnet10t", tmp_path / "w.safetensors").bn1.bias, state["bn1.bias"])
    with pytest.raises(DataError, match="not weights of resnet18"):
        regions_grid.build("resnet18", tmp_path / "w.safetensors")
