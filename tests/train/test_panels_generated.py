"""Pictures drawn for captions during training: what is written, that every step has the same noise, and what is refused at the start."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from helpers import tiny_dvae
from helpers.checkpoints import checkpoint
from helpers.generation import GRID, info
from PIL import Image
from torch.utils.data import DataLoader
from train.test_panels import PLAIN, VOCABULARY, Data, Module, _panels, clip, make_batch

from mmpretrain.evaluate.loading import load
from mmpretrain.generate.choosing import Sampling, sample_key
from mmpretrain.generate.generator import as_bytes
from mmpretrain.generate.sampling import Request, sample
from mmpretrain.models.dalle import DALLE
from mmpretrain.objectives.next_token import NextCode, NextText
from mmpretrain.report import panels_schema as schema
from mmpretrain.report.page import write_report
from mmpretrain.train import panel_bodies
from mmpretrain.train.panels import Panels
from mmpretrain.train.pretraining import Pretraining
from mmpretrain.types import Batch, CodeBatch


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*could not be made.*")
        yield


@pytest.fixture(scope="module")
def dvae(tmp_path_factory) -> Path:
    return tiny_dvae.make(tmp_path_factory.mktemp("dvae") / "dvae.ckpt")


def root_of(codes: int = tiny_dvae.CODES) -> Pretraining:
    torch.manual_seed(0)
    model = DALLE(width=32, depth=2, heads=2, vocab_size=30, codes=codes, text_positions=10, grid=GRID, gain=1.0)
    found = Pretraining(model, {"text": NextText(), "code": NextCode()})
    found.bind(VOCABULARY)
    torch.nn.init.normal_(found.objectives["code"].head.out.weight, std=0.3)
    return found


def batch_of(n: int = 5) -> Batch:
    ids = torch.from_numpy(np.random.default_rng(1).integers(0, tiny_dvae.CODES, n * 16))
    return make_batch(n)._replace(image=None, codes=CodeBatch(ids, (GRID,) * n))


class Loaded(Data):
    """Batches come as they are: torch's conversion makes lists of tuples."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader([self.batch] * 8, batch_size=None, collate_fn=lambda batch: batch)

    def val_dataloader(self) -> DataLoader:
        return DataLoader([self.batch], batch_size=None, collate_fn=lambda batch: batch)


def fit(root: Pretraining, folder: Path, dvae: Path | None, told: Any = None, **options: Any) -> None:
    data = Loaded(batch_of())
    data.codes_info = told
    callback = Panels(samples=4, queries=3, dvae=dvae, drawn=2, **options)
    trainer = pl.Trainer(callbacks=[callback], max_steps=2, val_check_interval=1, default_root_dir=str(folder), **PLAIN)
    trainer.fit(Module(root), datamodule=data)


def test_pictures_are_drawn_for_captions(tmp_path, dvae):
    root = root_of()
    fit(root, tmp_path, dvae, info(dvae))
    panels = _panels(tmp_path, "generated")
    assert [panel.step for panel in panels] == [1, 2]
    body = panels[0].body
    assert len(body.examples) == 3 and all(len(example.images) == 2 for example in body.examples)
    assert body == panels[1].body  # nothing was learned, so nothing changed: the noise of every step is the same
    part = panel_bodies.select(batch_of(), range(3))

    def again(model, objectives):
        keys = lambda p, j: sample_key(0, part.keys[p], 0, j)
        request = Request(lambda rows, _: panel_bodies.select(part, rows).text, keys, 3, 2, 16)
        return sample(model, objectives["code"].logits_of, request, Sampling())

    with torch.no_grad():
        codes = again(root.model.eval(), root.objectives).view(3, 2, *GRID)
    decode = load(dvae).model.decode
    for i, example in enumerate(body.examples):
        wanted = [*as_bytes(decode(codes[i])), as_bytes(decode(part.codes.dense()[i : i + 1]))[0]]
        for name, pixels in zip((*example.images, example.own), wanted, strict=True):
            stored = Image.open(tmp_path / "panels" / "1" / name)
            shown = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize(stored.size, Image.Resampling.LANCZOS)
            assert np.array_equal(np.asarray(stored), np.asarray(shown))
    assert len(list((tmp_path / "panels" / "1").glob("generated-*.png"))) == 3
    assert schema.loads(schema.dumps(panels[0])) == panels[0]


def test_the_report_shows_them(tmp_path, dvae):
    fit(root_of(), tmp_path, dvae)
    (tmp_path / "config.yaml").write_text("seed_everything: 0\n")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Generated pictures" in page and "drawn 2" in page and "own codes" in page


def test_without_an_autoencoder_nothing_is_drawn(tmp_path):
    fit(root_of(), tmp_path, None)
    assert _panels(tmp_path, "generated") == []


def test_autoencoders_that_cannot_show_them_stop_the_start(tmp_path, dvae):
    other = tiny_dvae.make(tmp_path / "other.ckpt", seed=1)
    with pytest.raises(ValueError, match=r"other\.ckpt.*did not make the codes that the model of this run was trained on"):
        fit(root_of(), tmp_path, other, info(dvae))
    with pytest.raises(ValueError, match="has 24 codes, the model of this run draws from 9"):
        fit(root_of(9), tmp_path, dvae)
    with pytest.raises(ValueError, match="no discrete autoencoder"):
        fit(root_of(), tmp_path, checkpoint(tmp_path / "clip.ckpt", "clip"))
    with pytest.raises(ValueError, match="no such checkpoint or run"):
        fit(root_of(), tmp_path, tmp_path / "none")
    with pytest.raises(ValueError, match="with an objective NextCode, which this recipe lacks"):
        callback = Panels(dvae=dvae)
        callback.on_fit_start(SimpleNamespace(datamodule=None), Module(clip()))
    with pytest.raises(ValueError, match="drawn=0"):
        Panels(drawn=0)
