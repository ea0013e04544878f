"""Panels and counts of batches with regions: galleries with boxes for pictures, maps painted over boxes, tokens counted once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.region_batches import CLASSES, region_batch
from helpers.regions import write_regions
from helpers.tiny import shake
from PIL import Image
from train.test_panels import VOCABULARY, WORDS, _panels, fit, make_batch

from mmpretrain.data.reader import open_reader
from mmpretrain.models.uniter import UNITER
from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.embed import TextEmbedder
from mmpretrain.nn.regions import RegionEmbedder
from mmpretrain.objectives.itm import ITM
from mmpretrain.objectives.mlm import MLM
from mmpretrain.objectives.mrc import MRC
from mmpretrain.objectives.objects import Objects
from mmpretrain.objectives.region_masking import RegionMasker
from mmpretrain.objectives.wpa import WPA
from mmpretrain.report import panels_schema as schema
from mmpretrain.train import panel_bodies, panel_pictures
from mmpretrain.train.meter import token_count
from mmpretrain.train.panels import Panels, _picture
from mmpretrain.train.pretraining import Pretraining
from mmpretrain.types import Batch, Text

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
    heads = {"mlm": MLM(view="mlm", prob=0.5), "itm": ITM(), "wpa": WPA()}
    root = Pretraining(model, {**heads, "mrc": MRC("argmax", CLASSES, 0, masker=RegionMasker(prob=0.5), view="mrc")})
    root.bind(VOCABULARY)
    return root


def test_a_model_of_regions_gets_all_four(tmp_path: Path) -> None:
    fit(uniter(), batch_of_regions(), tmp_path, steps=1)
    for kind in ("retrieval", "masked", "alignment", "regions"):
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


@pytest.mark.parametrize("parts", [None, {"feat": 1.0}, {"obj": 1.0}])
def test_masked_regions_show_their_boxes_and_classes(tmp_path: Path, parts: dict[str, float] | None) -> None:
    """``parts``: of LXMERT's objective; None: of MRC."""
    batch, root = batch_of_regions(), uniter()
    if parts is not None:
        objective = Objects(parts, CLASSES, 5, masker=RegionMasker(prob=0.5, zero=0.8, random=0.1), view="mrc")
        objective.name = "mrc"
        objective.bind(root.model.spec, VOCABULARY)
        root.objectives["mrc"] = objective
    fit(root, batch, tmp_path, steps=1)
    examples = [example for panel in _panels(tmp_path, "regions") for example in panel.body.examples]
    part, mrc = panel_bodies.select(batch, range(4)), root.objectives["mrc"].eval()
    corrupted = mrc.corrupt(part, {})
    rows = corrupted.targets["mrc"].rows_R
    assert sum(len(example.regions) for example in examples) == (0 if parts == {"feat": 1.0} else len(rows)) and len(rows) > 2
    shown = [(example, region) for example in examples for region in example.regions]
    with torch.no_grad():
        states_RD = mrc.states(root.model.eval()(corrupted, "fused"), corrupted.regions, rows)
        logits_RC = mrc.head(states_RD) if parts is None else mrc.head(mrc.head.transform(states_RD), "obj") if shown else states_RD
    sample_N = part.regions.classes_N.new_tensor([i for i, n in enumerate(part.regions.lengths) for _ in range(n)])
    for (example, region), row, logits_C in zip(shown, rows.tolist(), logits_RC, strict=bool(shown)):
        assert example.text == panel_bodies.captions(part, _shown(part))[int(sample_N[row])]
        np.testing.assert_allclose(region.box, part.regions.boxes_N4[row] / torch.tensor([640, 480, 640, 480]), atol=1e-3)
        probabilities = logits_C.softmax(0)
        assert region.guesses[0] == schema.Guess(f"class {int(logits_C.argmax())}", round(float(probabilities.max()), 4))
        table_C = part.regions.class_probs_NC[row].clone()
        table_C[0] = -1  # the background
        label = int(table_C.argmax()) if parts is None else int(part.regions.classes_N[row])
        assert region.text == ("" if label < 0 else f"class {label}")
    strips = list((tmp_path / "panels" / "1").glob("regions-*.png"))
    assert len(strips) == len(examples)


def _shown(batch: Batch) -> panel_bodies.Shown:
    return panel_bodies.Shown((), panel_bodies.tokens(batch, WORDS.__getitem__, VOCABULARY.special))


def test_texts_are_tried_with_the_tags_of_the_picture() -> None:
    """[CLS] 4 5 [SEP] with [CLS] 6 [SEP] 7 8 9 [SEP], and the other way; a text without tags takes those of the picture."""
    rows = [[2, 4, 5, 3, 20, 3], [2, 6, 3, 7, 8, 9, 3], [2, 10, 11, 12, 3]]
    segments = [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1, 1], [0] * 5]
    ids, parts = (torch.tensor([[*row, *[0] * (7 - len(row))] for row in table]) for table in (rows, segments))
    text = Text(ids, tuple(map(len, rows)), None, parts)
    made = panel_bodies.told(text, (0, 1, 2, 1, 2), (1, 0, 1, 2, 2))
    expected = [[2, 4, 5, 3, 7, 8, 3], [2, 6, 3, 20, 3], [2, 10, 11, 12, 3, 7, 3], [2, 6, 3], [2, 10, 11, 12, 3]]
    for row, (ids_T, length) in enumerate(zip(made.ids_BT.tolist(), made.lengths, strict=True)):
        assert ids_T[:length] == expected[row] and set(ids_T[length:]) <= {0}
        first = expected[row].index(3) + 1
        assert made.segments_BT[row].tolist() == [0] * first + [1] * (length - first) + [0] * (len(ids_T) - length)
    plain = panel_bodies.told(text._replace(segments_BT=None), (2, 0), (0, 0))
    assert plain.ids_BT.tolist() == [[2, 10, 11, 12, 3, 0], [2, 4, 5, 3, 20, 3]] and plain.lengths == (5, 6)
    batch = make_batch(3)._replace(text=text)
    assert panel_bodies.captions(batch, _shown(batch)) == ["w4 w5", "w6", "w10 w11 w12"]


def test_boxes_are_drawn_over_the_picture_where_shards_have_it(tmp_path: Path) -> None:
    """Regions alone are read; the pictures of the first validation set are found by the keys of the batch."""
    folder = write_regions(tmp_path / "shards", (3, 2), without=(1,))
    reader = open_reader(str(folder), "val")
    data = SimpleNamespace(val_names=("one", "two"), val_reader={"one": reader}.__getitem__)
    found = panel_pictures.stored(data, ("k00004", "k00000", "nobody"))
    assert set(found) == {"k00000", "k00004"} and found["k00000"].size == (160, 133)
    assert panel_pictures.stored(SimpleNamespace(), ("k00000",)) == {}
    drawn = panel_pictures.boxes((20, 24), torch.tensor([[6.0, 5.0, 18.0, 15.0]]), ["star"], picture=found["k00000"])
    before, after = (np.asarray(picture, dtype=int) for picture in (found["k00000"], drawn))
    changed = (before != after).any(-1)
    assert after.shape == before.shape and changed[33, 40:121].mean() > 0.9 and not changed[:32].any() and not changed[40:90, 50:110].any()
    callback = Panels(samples=4, queries=2)
    batch = batch_of_regions()._replace(keys=("k00004", "k00000", "a", "b", "c"))
    trainer = SimpleNamespace(datamodule=data)
    pictures = callback._stored(trainer, batch)
    assert set(pictures) == {"k00000", "k00004"} and callback._stored(SimpleNamespace(datamodule=None), batch._replace(regions=None)) == {}
    seen = [np.asarray(_picture(batch, i, pictures.get(batch.keys[i]), str)) for i in range(3)]
    assert seen[0].shape == (133, 160, 3) and seen[2].shape == (120, 160, 3) and (seen[2] == 255).mean() > 0.5 > (seen[0] == 255).mean()


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


def test_cells_of_boxes_are_the_same_under_bf16_true() -> None:
    """Whose default dtype is another while a validation runs."""
    batch: Any = SimpleNamespace(regions=region_batch((3, 30)))
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            found.append(panel_bodies._boxes(batch, 1))
        finally:
            torch.set_default_dtype(before)
    assert torch.equal(found[0][0], found[1][0]) and found[0][1:] == found[1][1:]
