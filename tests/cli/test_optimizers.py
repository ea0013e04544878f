"""Optimisers of parts, and what else the published recipes ask of the optimiser, from YAML."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from test_configs import parsed

from mmpretrain.train.composite import Composite
from mmpretrain.train.optim import Optimizer
from mmpretrain.train.schedule import Milestones

PIXELBERT = """
defaults: [vilt.yaml]
model:
  system:
    class_path: mmpretrain.models.pixelbert.PixelBERT
    init_args:
      text: {class_path: mmpretrain.nn.embed.TextEmbedder, init_args: {vocab_size: 60, width: 16, positions: 16}}
      image:
        class_path: mmpretrain.nn.pixels.PixelEmbedder
        init_args: {cnn: {class_path: mmpretrain.nn.cnn.ResNet, init_args: {name: tiny}}, width: 16}
      blocks: {class_path: mmpretrain.nn.blocks.Transformer, init_args: {width: 16, depth: 1, heads: 2}}
  optimizer:
    kind: adamw
    lr: 1.0e-4
    weight_decay: 1.0e-2
    decay: standard
    parts:
      model.image.cnn: {kind: sgd, lr: 1.0e-2, betas: [0.9, 0.999], weight_decay: 5.0e-4, decay: all}
  schedule: {class_path: mmpretrain.train.schedule.Milestones, init_args: {at: [0.625, 0.875]}}
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def module_of(text: str):
    Path("recipe.yaml").write_text(text)
    cli = parsed(["recipe.yaml"])
    return cli.parser.instantiate_classes(cli.config).fit.model


def test_two_optimisers_from_yaml() -> None:
    module = module_of(PIXELBERT)
    assert isinstance(module.schedule, Milestones) and module.schedule.at == (0.625, 0.875)
    optimizer = module.optimizer.build(module.root)
    assert isinstance(optimizer, Composite)
    sgd, adamw = optimizer.parts
    assert (type(sgd), type(adamw)) == (torch.optim.SGD, torch.optim.AdamW)
    settings = [{name: group.get(name) for name in ("lr", "weight_decay", "momentum")} for group in optimizer.param_groups]
    assert settings[0] == {"lr": 1e-2, "weight_decay": 5e-4, "momentum": 0.9}
    assert sorted(one["weight_decay"] for one in settings[1:]) == [0.0, 1e-2] and {one["lr"] for one in settings[1:]} == {1e-4}
    assert sum(p.numel() for p in sgd.param_groups[0]["params"]) == sum(p.numel() for p in module.root.model.image.cnn.parameters())


def test_bert_adam_from_yaml() -> None:
    config = yaml.safe_load(PIXELBERT)
    config["model"]["optimizer"] = {"kind": "bert_adam", "clip_each": 1.0, "eps": 1e-6, "lr_mult": {"model.text.": 0.1}, "decay": "swapped"}
    optimizer: Optimizer = module_of(yaml.safe_dump(config)).optimizer
    assert (optimizer.kind, optimizer.clip_each, optimizer.lr_mult, optimizer.decay) == ("bert_adam", 1.0, {"model.text.": 0.1}, "swapped")
