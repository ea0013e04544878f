"""A model of regions from shards to a checkpoint and back: trained in any cut of the batch, measured, resumed, loaded, scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.checkpoints import node
from helpers.regions import of_sample, write_regions
from torch import nn
from train.runs import Recorder, quiet, trainer

from mmpretrain.data.errors import DataError
from mmpretrain.data.image import ImageTransform
from mmpretrain.data.module import ShardData
from mmpretrain.data.reader import open_reader
from mmpretrain.data.text import TextOptions
from mmpretrain.data.visual import RegionOptions, Shown
from mmpretrain.evaluate.loading import load
from mmpretrain.evaluate.pretrained import Pretrained
from mmpretrain.evaluate.rebuild import RefusedCheckpoint, build
from mmpretrain.evaluate.samples import open_set
from mmpretrain.evaluate.suite import evaluate
from mmpretrain.models.uniter import UNITER
from mmpretrain.models.vlbert import VLBERT
from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.cnn import ResNet
from mmpretrain.nn.embed import TextEmbedder
from mmpretrain.nn.regions import RegionEmbedder
from mmpretrain.nn.roi import BoxFeatures
from mmpretrain.nn.vlbert import VLBERTEmbedder
from mmpretrain.objectives.base import Objective
from mmpretrain.objectives.itm import ITM
from mmpretrain.objectives.mlm import MLM
from mmpretrain.objectives.mrc import MRC
from mmpretrain.objectives.wpa import WPA
from mmpretrain.train.callbacks import Metrics
from mmpretrain.train.checkpoint import Checkpoints
from mmpretrain.train.measure import Measure
from mmpretrain.train.module import Pretrain
from mmpretrain.train.optim import Optimizer
from mmpretrain.train.panels import Panels
from mmpretrain.train.schedule import WarmupLinear

VOCAB, WIDTH = 96, 24


def config(features: int = 5) -> dict[str, Any]:
    """The resolved configuration of a run."""
    system = node(
        UNITER,
        text=node(TextEmbedder, vocab_size=VOCAB, width=WIDTH, positions=24, segments=2),
        regions=node(RegionEmbedder, width=WIDTH, features=features, box="xyxywha", branch_eps=1e-12, mask_embedding=True),
        blocks=node(Transformer, width=WIDTH, depth=2, heads=2, norm="post", final_norm=False),
    )
    objectives = {"mlm": node(MLM, view="mlm"), "itm": node(ITM, negatives={"image": 1.0, "text": 1.0}), "wpa": node(WPA, iterations=10)}
    return {"model": {"system": system, "objectives": objectives}, "data": {"show": "regions", "regions": {"most": 3, "order": "score"}}}


def module(features: int = 5) -> Pretrain:
    found = config(features)
    torch.manual_seed(0)
    objectives = {name: build(one, Objective, name) for name, one in found["model"]["objectives"].items()}
    made = Pretrain(build(found["model"]["system"], nn.Module, "system"), objectives, Optimizer(lr=3e-3), WarmupLinear(warmup=1, total=8))
    made.config = found
    return made


def data(shards: Path, **options: Any) -> ShardData:
    regions = RegionOptions(most=3, order="score")
    defaults = {"text": TextOptions(vocab_size=VOCAB), "max_tokens": 24, "workers": 0, "show": "regions", "regions": regions}
    return ShardData(str(shards), {"held_out": str(shards)}, 8, **{**defaults, **options})


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 samples without pictures."""
    return write_regions(tmp_path_factory.mktemp("regions"), (10, 8, 6), image=False)


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float], dict[str, float]]:
    """The folder of a run of eight steps, its losses, its measurements."""
    quiet()
    folder, recorder = tmp_path_factory.mktemp("run"), Recorder()
    callbacks = [recorder, Metrics(), Measure(retrieval=8, samples=8), Panels(samples=4, queries=2), Checkpoints(every_n_steps=4)]
    fitter = trainer(8, callbacks, default_root_dir=folder, enable_checkpointing=True, val_check_interval=4, check_val_every_n_epoch=None)
    fitter.fit(module(), datamodule=data(shards))
    assert not callbacks[3]._reported
    return folder, recorder.losses, {name: float(value) for name, value in fitter.callback_metrics.items()}


def test_it_learns_and_is_measured(run) -> None:
    folder, losses, metrics = run
    assert all(np.isfinite(losses)) and losses[-1] < losses[0]
    for name in ("retrieval/held_out/i2t_R@1", "matching/held_out/random_preferred", "mlm/held_out/accuracy"):
        assert any(key.startswith(f"val/{name.rpartition('_')[0]}") for key in metrics), (name, sorted(metrics))
    assert {file.stem for file in (folder / "panels" / "8").glob("*.json")} >= {"retrieval", "alignment"}


@pytest.mark.parametrize("layout", [{"accumulate_grad_batches": 2}, {"accumulate_grad_batches": 4}], ids=["2 micro", "4 micro"])
def test_micro_batches_do_not_change_it(run, shards, layout) -> None:
    recorder = Recorder()
    trainer(4, [recorder], limit_val_batches=0, **layout).fit(module(), datamodule=data(shards))
    assert recorder.losses == pytest.approx(run[1][:4], rel=1e-4)


def test_resumed_is_uninterrupted(run, shards) -> None:
    recorder = Recorder()
    state = run[0] / "checkpoints"
    fourth = next(path for path in state.glob("*.ckpt") if "4" in path.stem and path.is_file())
    fitter = trainer(8, [recorder], limit_val_batches=0)
    fitter.fit(module(), datamodule=data(shards), ckpt_path=str(fourth), weights_only=True)
    assert recorder.losses == pytest.approx(run[1][4:], rel=1e-6)


def test_a_checkpoint_scores_regions(run, shards) -> None:
    pretrained = load(run[0], which="last")
    assert pretrained.shown.show == "regions" and pretrained.shown.regions.most == 3
    found = open_set("held_out", str(shards))
    results = {result.name: result.value for result in evaluate(pretrained, [found])}
    assert {"retrieval/held_out/i2t_R@1", "mlm/held_out/accuracy", "mlm/held_out/accuracy_without_image"} <= set(results)
    regions, texts = [of_sample(n) for n in range(6)], ["a red circle number 0", "a green square number 1"]
    matrix = pretrained.score(regions, texts, mode="matrix")
    for i, one in enumerate(regions):  # each alone, in other batches
        assert torch.allclose(pretrained.score([one, pretrained.see(one)], texts), matrix[i], atol=1e-5)
    assert torch.isfinite(pretrained.encode_image(regions)).all() and pretrained.encode_image(regions).shape == (6, WIDTH)
    strong = next(one for n in range(20) if len((one := of_sample(n)).boxes) > 3)
    best = np.argsort(-strong.scores)[:3]
    kept = strong._replace(**{name: x[best] for name, x in strong._asdict().items() if name not in ("image_size", "global_feature")})
    assert torch.equal(pretrained.score([strong], texts[:1]), pretrained.score([kept], texts[:1]))
    with pytest.raises(ValueError, match=r"reads regions, no pictures: give Regions"):
        pretrained.score([torch.zeros(3, 8, 8, dtype=torch.uint8)], texts[:1])


def test_what_does_not_fit_is_said(shards, tmp_path) -> None:
    with pytest.raises(DataError, match=r"tar key 'k0+': the regions have 5 values, but the model takes 7: set `features`"):
        trainer(1).fit(module(7), datamodule=data(shards))
    write_regions(tmp_path / "pictures", (12,))
    with pytest.raises(DataError, match=r"the model takes regions \(of 5 values\), but none are read: set data.show=regions"):
        trainer(1).fit(module(), datamodule=data(tmp_path / "pictures", show="image"))


def test_end_to_end_boxes_and_pictures_are_read_and_features_are_not(shards, tmp_path) -> None:
    """VL-BERT's detector gives 128 values, the regions have 5. What lacks is said before the first step."""
    write_regions(tmp_path / "both", (12,))
    embed = VLBERTEmbedder(VOCAB, WIDTH, 128, 26, 16, mask_visual=False)
    detector = BoxFeatures(ResNet("tiny-basic", norm="trained", dilated=True), cells=2)
    system = VLBERT(embed, Transformer(WIDTH, 1, 2, norm="post", final_norm=False), detector)
    objectives = {"mlm": MLM(), "mrc": MRC("soft", classes=3, norm_in_head=False)}
    made = Pretrain(system, objectives, Optimizer(lr=1e-3), WarmupLinear(warmup=1, total=1))
    image, recorder = ImageTransform("vilt", 32, 32), Recorder()
    for show, message in (("image", "none are read: set data.show=both"), ("regions", "no pictures are read: set data.show=both")):
        with pytest.raises(DataError, match=message):
            trainer(1).fit(made, datamodule=data(tmp_path / "both", show=show, image=image))
    trainer(1, [recorder], limit_val_batches=0).fit(made, datamodule=data(tmp_path / "both", show="both", image=image))
    assert np.isfinite(recorder.losses).all() and len(recorder.losses) == 1
    seen = Pretrained.from_parts(system, {}, None, image, None, shown=Shown("both"))
    sample = open_reader(str(tmp_path / "both")).read(0)
    assert seen.see(sample).regions.features.shape[1] == 5 and seen.see(sample).image is not None


def test_a_checkpoint_that_shows_something_else_is_refused(run, tmp_path) -> None:
    path = next(path for path in (run[0] / "checkpoints").glob("*.ckpt") if path.is_file())
    for show, regions, message in (
        ("boxes", {}, "data.show='boxes'"),
        ("regions", {"most": 0}, "data.regions"),
        ("regions", [1], "not a table"),
    ):
        found = torch.load(path, weights_only=True)
        found["mmpretrain"]["config"]["data"] |= {"show": show, "regions": regions}
        torch.save(found, tmp_path / "odd.ckpt")
        with pytest.raises(RefusedCheckpoint, match=message):
            load(tmp_path / "odd.ckpt")
