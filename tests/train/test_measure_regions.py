"""Runs over regions, with and without tags, from shards to a checkpoint: what is measured live, after loading, and written by predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.region_checkpoints import INFO, config
from helpers.regions import write_regions
from torch import nn
from train.runs import quiet, trainer

import mmpretrain
from mmpretrain.cli.commands import named_sets
from mmpretrain.data.image import ImageTransform
from mmpretrain.data.mixture import TrainSource
from mmpretrain.data.module import ShardData
from mmpretrain.data.regions_info import write_info
from mmpretrain.data.tags import TagOptions
from mmpretrain.data.text import TextOptions
from mmpretrain.data.visual import RegionOptions
from mmpretrain.evaluate.embed import embed
from mmpretrain.evaluate.rebuild import build
from mmpretrain.evaluate.samples import open_set
from mmpretrain.evaluate.suite import Limits, evaluate, show
from mmpretrain.objectives.base import Objective
from mmpretrain.report.page import write_report
from mmpretrain.report.run import Run
from mmpretrain.train.measure import Measure, live
from mmpretrain.train.module import Pretrain
from mmpretrain.train.optim import Optimizer
from mmpretrain.train.panels import Panels
from mmpretrain.train.predictions import Predictions
from mmpretrain.train.schedule import WarmupLinear

VOCAB = 96


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 samples with pictures and regions, whose classes have names."""
    folder = write_regions(tmp_path_factory.mktemp("regions"), (10, 6))
    write_info(folder, INFO)
    return folder


def module(system: str, shards: Path, **data: Any) -> Pretrain:
    found = config(system, VOCAB)
    torch.manual_seed(0)
    objectives = {name: build(one, Objective, name) for name, one in found["model"]["objectives"].items()}
    made = Pretrain(build(found["model"]["system"], nn.Module, "system"), objectives, Optimizer(lr=3e-3), WarmupLinear(warmup=1, total=8))
    found["data"] |= {"val": {"held_out": str(shards)}, **data}
    made.config = found
    return made


def data(shards: Path, **options: Any) -> ShardData:
    defaults: dict[str, Any] = {"text": TextOptions(vocab_size=VOCAB), "max_tokens": 24, "workers": 0, "show": "regions"}
    defaults |= {"regions": RegionOptions(most=3, order="score"), "train": str(shards)}
    return ShardData(val={"held_out": str(shards)}, batch_size=8, **{**defaults, **options})


@pytest.mark.parametrize("system", ["uniter", "oscar", "vilbert", "vlbert"])
def test_live_numbers_equal_those_of_the_checkpoint(system: str, shards: Path, tmp_path: Path) -> None:
    quiet()
    run, source = module(system, shards), data(shards, tags=TagOptions("regions", repeats=False) if system == "oscar" else None)
    panels = Panels(samples=4, queries=2)
    fitter = trainer(2, [Measure(samples=16, retrieval=8), panels], val_check_interval=1.0, default_root_dir=str(tmp_path / "run"))
    fitter.fit(run, datamodule=source)
    assert not panels._reported
    logged = {name: float(value) for name, value in fitter.callback_metrics.items()}
    fitter.save_checkpoint(tmp_path / "a.ckpt")
    loaded = mmpretrain.load(tmp_path / "a.ckpt")
    assert loaded.about["regions"]["fingerprint"] == INFO.fingerprint
    results = evaluate(loaded, named_sets([], loaded), limits=Limits(captions=1).at_most(16)._replace(retrieval=8))
    show(results)
    kinds = {result.name.split("/")[0] for result in results}
    assert kinds == ({"mlm"} if system == "vlbert" else {"retrieval", "matching", "mlm"})
    for result in results:
        assert logged[f"val/{result.name}"] == pytest.approx(result.value, abs=1e-6), result.name
    sample, alive = open_set("x", str(shards)).samples[1], live(fitter, run)
    assert alive.see(sample).tags == loaded.see(sample).tags and (loaded.see(sample).tags is not None) == (system == "oscar")
    if system != "vlbert":
        score = loaded.score([sample], ["a red circle"])
        torch.testing.assert_close(alive.score([sample], ["a red circle"]), score)
        assert torch.isfinite(loaded.score([sample.regions], ["a red circle"])).all()
        assert {stored.panel.kind for stored in Run(tmp_path / "run").panels()} == {"retrieval", "masked"}
    (tmp_path / "run" / "environment.json").write_text("{}")
    assert "Masked words" in write_report(tmp_path / "run").read_text()


def test_captions_of_the_gallery_are_without_tags(shards: Path, tmp_path: Path) -> None:
    quiet()
    layout = {"val_check_interval": 1.0, "limit_train_batches": 1, "default_root_dir": str(tmp_path)}
    fitter = trainer(1, [Panels(samples=4, queries=4)], **layout)
    fitter.fit(module("oscar", shards), datamodule=data(shards, tags=TagOptions("regions")))
    body = next(stored.panel.body for stored in Run(tmp_path).panels() if stored.panel.kind == "retrieval")
    queries = [query.text for query in body.text_to_image]
    assert len(queries) == 4 and all("number" in text and not {"cube", "ball", "cone"} & set(text.split()) for text in queries)


def test_sources_that_show_other_regions_are_measured_as_they_are_shown(shards: Path, tmp_path: Path) -> None:
    quiet()
    few = RegionOptions(most=1, order="score")
    sources = {"few": TrainSource(str(shards), regions=few), "all": TrainSource(str(shards))}
    plain = {name: {"sources": str(shards), **({"regions": {"most": 1, "order": "score"}} if name == "few" else {})} for name in sources}
    run = module("uniter", shards, train=plain, val={"few": str(shards), "held_out": str(shards)})
    source = data(shards, train=sources)
    source.val_sources = {"few": str(shards), "held_out": str(shards)}
    fitter = trainer(2, [Measure(samples=16, retrieval=8)], val_check_interval=2, check_val_every_n_epoch=None)
    fitter.fit(run, datamodule=source)
    fitter.save_checkpoint(tmp_path / "a.ckpt")
    loaded = mmpretrain.load(tmp_path / "a.ckpt")
    sample = open_set("x", str(shards)).samples[4]
    for name, most in (("few", 1), ("all", 3), ("held_out", 3)):
        assert loaded.on(name).shown.regions.most == live(fitter, run).on(name).shown.regions.most == most
    assert len(loaded.on("few").see(sample).regions.boxes) == 1
    found = {result.name: result.value for result in evaluate(loaded, named_sets([], loaded), limits=Limits(captions=1).at_most(16))}
    for name in ("few", "held_out"):
        logged = float(fitter.callback_metrics[f"val/mlm/{name}/accuracy"])
        assert found[f"mlm/{name}/accuracy"] == pytest.approx(logged, abs=1e-6)


@pytest.mark.parametrize("system", ["oscar", "vilbert"])
def test_predict_and_embed(system: str, shards: Path, tmp_path: Path) -> None:
    """``predict`` scores the pairs of the data as they are; ``embed`` wants models that read one without the other."""
    parquet = pytest.importorskip("pyarrow.parquet")
    quiet()
    run, source = module(system, shards), data(shards, tags=TagOptions("regions", repeats=False) if system == "oscar" else None)
    writer = Predictions(out=str(tmp_path / "p.parquet"), vectors=True)
    fitter = trainer(1, [writer], limit_val_batches=0)
    fitter.fit(run, datamodule=source)
    fitter.save_checkpoint(tmp_path / "a.ckpt")
    fitter.predict(run, datamodule=source)
    table = parquet.read_table(tmp_path / "p.parquet")
    assert table.num_rows == 16 and {"key", "set", "itm/score", "itm/pooled"} <= set(table.column_names)
    loaded = mmpretrain.load(tmp_path / "a.ckpt")
    samples = {sample.key: sample for sample in open_set("x", str(shards)).samples}
    units = source.set.val_units("held_out", source.val_reader("held_out"))
    way = source.source("", source.val_reader("held_out"), units)
    texts = {key: way.texts(sample) for key, sample in samples.items()}
    keys, scores = table["key"].to_pylist(), torch.tensor(table["itm/score"].to_pylist())
    first, second = (loaded.score([samples[key] for key in keys], [texts[key][i] for key in keys]) for i in (0, 1))
    assert float(torch.minimum((first - scores).abs(), (second - scores).abs()).max()) < 1e-4  # one of two captions was drawn
    if system == "vilbert":
        with pytest.raises(ValueError, match="ViLBERT reads text and image together only"):
            embed(loaded, open_set("x", str(shards)), tmp_path / "v.npz")
    else:
        assert embed(loaded, open_set("x", str(shards)), tmp_path / "v.npz").is_file()


def test_pictures_beside_regions(shards: Path, tmp_path: Path) -> None:
    """``data.show=both``: the batch has both, and so has the measurement."""
    quiet()
    image = ImageTransform(mode="squash", size=32)
    run = module("uniter", shards, show="both", image={"mode": "squash", "size": 32})
    fitter = trainer(1, [Measure(samples=8, retrieval=4)], val_check_interval=1.0, limit_train_batches=1)
    fitter.fit(run, datamodule=data(shards, show="both", image=image))
    fitter.save_checkpoint(tmp_path / "a.ckpt")
    loaded = mmpretrain.load(tmp_path / "a.ckpt")
    seen = loaded.see(open_set("x", str(shards)).samples[0])
    assert seen.image.shape == (3, 32, 32) and len(seen.regions.boxes) >= 1
    results = evaluate(loaded, [open_set("held_out", str(shards))], limits=Limits(captions=1).at_most(8)._replace(retrieval=4))
    assert results and results[0].stamp.protocol.endswith("images are pictures and regions")
    for result in results:
        assert float(fitter.callback_metrics[f"val/{result.name}"]) == pytest.approx(result.value, abs=1e-6), result.name
