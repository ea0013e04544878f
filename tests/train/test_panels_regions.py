"""Panels and counts of batches with regions: galleries with boxes for pictures, maps painted over boxes, tokens counted once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.region_batches import region_batch
from helpers.tiny import shake
from PIL import Image
from train.test_panels import VOCABULARY, WORDS, _panels, fit, make_batch

from mmpretrain.models.uniter import UNITER
from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.embed import TextEmbedder
from mmpretrain.nn.regions import RegionEmbedder
from mmpretrain.objectives.itm import ITM
from mmpretrain.objectives.mlm import MLM
from mmpretrain.objectives.wpa import WPA
from mmpretrain.report import panels_schema as schema
from mmpretrain.train import panel_bodies, panel_pictures
from mmpretrain.train.meter import token_count
from mmpretrain.train.pretraining import Pretraining
from mmpretrain.types import Batch

COUNTS = (4, 1, 3, 6, 2)


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*could not be made.*")
        yield


def batch_of_regions(image: bool = False) -> Batch:
    batch = make_batch()
    return batch._replace(image=batch.image if image else None, regions=region_batch(COUNTS))


def uniter() -> Pretraining:
    torch.manual_seed(0)
    text = TextEmbedder(len(WORDS), 24, 12, segments=2, norm_eps=1e-12)
    blocks = Transformer(24, 1, 2, norm="post", eps=1e-12, final_norm=False)
    model = UNITER(text, RegionEmbedder(24, 12, "xyxywha", branch_eps=1e-12, mask_embedding=True), blocks)
    shake(model)
    root = Pretraining(model, {"mlm": MLM(view="mlm", prob=0.5), "itm": ITM(), "wpa": WPA()})
    root.bind(VOCABULARY)
    return root


def test_a_model_of_regions_gets_all_three(tmp_path: Path) -> None:
    fit(uniter(), batch_of_regions(), tmp_path, steps=1)
    for kind in schema.KINDS:
        assert [panel.step for panel in _panels(tmp_path, kind)] == [1]
    body = _panels(tmp_path, "retrieval")[0].body
    assert (body.images, body.texts, body.scorer) == (4, 4, "itm")
    seen = [Image.open(tmp_path / "panels" / "1" / hit.image) for hit in body.text_to_image[0].hits]
    assert all(picture.size == (160, 120) for picture in seen) and len({picture.tobytes() for picture in seen}) == 4
    assert len(list((tmp_path / "panels" / "images").glob("*.png"))) == 4


def test_what_lands_on_a_region_is_painted_over_its_box(tmp_path: Path) -> None:
    batch, root = batch_of_regions(), uniter()
    fit(root, batch, tmp_path, steps=1)
    example = _panels(tmp_path, "alignment")[0].body.examples[2]
    part = panel_bodies.select(batch, range(3))
    with torch.no_grad():
        plan_TV = root.objectives["wpa"].plan(root.model.eval()(part, "fused"))[2]
    mass_V = plan_TV[0] + plan_TV[1]  # two pieces of one word
    grid = np.zeros((12, 16))
    for mass, (x1, y1, x2, y2) in zip(mass_V.tolist(), part.regions.boxes_N4[5:8].tolist(), strict=True):
        inside = np.array([[x1 <= 20 + 40 * c <= x2 and y1 <= 20 + 40 * r <= y2 for c in range(16)] for r in range(12)])
        x, y = int((x1 + x2) / 2 // 40), int((y1 + y2) / 2 // 40)
        inside[y, x] = True  # a box between the middles of cells
        grid += mass * inside
    np.testing.assert_allclose(np.array(example.words[0].weights), grid / grid.max(), atol=1e-3)
    assert example.words[0].share == pytest.approx(float(mass_V.max() / mass_V.sum()), abs=1e-3)


def test_selected_samples_keep_their_regions() -> None:
    batch = batch_of_regions(image=True)
    part = panel_bodies.select(batch, [3, 1, 3])
    assert part.regions.lengths == (6, 1, 6) and part.image is not None
    assert torch.equal(part.regions.features_NF[:6], batch.regions.features_NF[8:14])
    assert torch.equal(part.regions.classes_N[6:7], batch.regions.classes_N[4:5])


def test_tokens_are_counted_once() -> None:
    batch = batch_of_regions(image=True)
    words, patches = sum(batch.text.lengths), sum(h // 8 * (w // 8) for h, w in batch.image.sizes)
    assert token_count(batch, None) == words and token_count(batch, None, regions=True) == words + sum(COUNTS)
    assert token_count(batch, 8) == words + patches and token_count(batch._replace(regions=None), None, regions=True) == words


def test_boxes_are_drawn_where_they_are() -> None:
    drawn = np.asarray(panel_pictures.boxes((100, 200), torch.tensor([[50.0, 25.0, 150.0, 75.0]]), ["star"]))
    assert drawn.shape == (80, 160, 3)
    line = ~(drawn == 255).all(-1)
    assert line[20, 40:121].all() and line[60, 40:121].all() and line[20:61, 40].all() and not line[:20].any() and not line[:, :40].any()
    other = np.asarray(panel_pictures.boxes((100, 200), torch.tensor([[50.0, 25.0, 150.0, 75.0]]), ["heart"]))
    assert (drawn[20, 100] != other[20, 100]).any()
