"""Tiny real checkpoints, as training writes them, without training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmpretrain.data.text import TextOptions
from mmpretrain.data.tokenizer_training import train
from mmpretrain.models.clip import CLIP
from mmpretrain.models.vilt import ViLT
from mmpretrain.objectives.contrastive import Contrastive
from mmpretrain.objectives.itm import ITM
from mmpretrain.objectives.mlm import MLM

TEXTS = ("a red cube above a green ball", "two blue balls", "the green cube is left of the red cube", "a small yellow cone")
WIDTH = 64


def node(kind: type, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": arguments}


def _vilt(vocab: int) -> dict[str, Any]:
    from mmpretrain.nn.blocks import Transformer
    from mmpretrain.nn.embed import PatchEmbedder, TextEmbedder

    return node(
        ViLT,
        text=node(TextEmbedder, vocab_size=vocab, width=WIDTH, positions=24, segments=2),
        image=node(PatchEmbedder, width=WIDTH, patch_size=16, grid=4),
        blocks=node(Transformer, width=WIDTH, depth=2, heads=2),
    )


def _clip(vocab: int) -> dict[str, Any]:
    from mmpretrain.models.clip import TextTower, ViTTower

    image = node(ViTTower, image_size=32, patch_size=16, width=WIDTH, depth=2, heads=1)
    return node(CLIP, image=image, text=node(TextTower, vocab_size=vocab, positions=24, width=WIDTH, depth=2, heads=1), embed_dim=32)


def _resnet(vocab: int) -> dict[str, Any]:
    from mmpretrain.models.clip import ResNetTower, TextTower

    image = node(ResNetTower, image_size=64, layers=[1, 1, 1, 1], width=8, heads=4, embed_dim=32)
    return node(CLIP, image=image, text=node(TextTower, vocab_size=vocab, positions=24, width=WIDTH, depth=2, heads=1), embed_dim=32)


def config(system: str, vocab: int, tied: bool = True) -> dict[str, Any]:
    """The resolved configuration of a run of ``vilt``, ``clip`` or ``clip-rn``."""
    if system == "vilt":
        image = {"mode": "vilt", "size": 64, "multiple": 16, "normalize": "half"}
        objectives = {"mlm": node(MLM, tied=tied), "itm": node(ITM)}
        return {"model": {"system": _vilt(vocab), "objectives": objectives}, "data": {"image": image}}
    image = {"mode": "clip", "size": 64 if system == "clip-rn" else 32, "normalize": "clip", "crop_scale": [0.9, 1.0]}
    found = _resnet(vocab) if system == "clip-rn" else _clip(vocab)
    return {"model": {"system": found, "objectives": {"contrastive": node(Contrastive)}}, "data": {"image": image}}


def checkpoint(
    path: Path,
    system: str = "vilt",
    ema: bool = False,
    tied: bool = True,
    tokenizer: str = "wordpiece",
    seed: int = 0,
    config: Callable[[str, int, bool], dict[str, Any]] = config,
    **about: Any,
) -> Path:
    """Write a checkpoint with random weights, norms drawn around 1. The averages, where asked for, are twice the parameters. ``about``:
    what else it says of itself."""
    from mmpretrain.evaluate.rebuild import build
    from mmpretrain.objectives.base import Objective

    size = 120 if tokenizer == "wordpiece" else 300
    made = train(lambda: TEXTS * 3, TextOptions(tokenizer=tokenizer, vocab_size=size, min_frequency=1), 24)
    settings = config(system, made.vocabulary.size, tied)
    torch.manual_seed(seed)
    model = build(settings["model"]["system"], nn.Module, "test")
    heads = nn.ModuleDict()
    for name, one in settings["model"]["objectives"].items():
        heads[name] = build(one, Objective, "test")
        heads[name].name = name
        heads[name].bind(model.spec, made.vocabulary)
    root = nn.ModuleDict({"model": model, "objectives": heads})
    with torch.no_grad():
        for name, parameter in root.named_parameters():
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5)
            elif parameter.ndim == 1 and "logit" not in name:
                parameter.uniform_(-0.2, 0.2)
    written = {
        "state_dict": {f"root.{name}": value for name, value in root.state_dict().items()},
        "global_step": 7,
        "mmpretrain": {
            "format": 1,
            "step": 7,
            "config": settings,
            "vocabulary": {**made.vocabulary._asdict(), "special": list(made.vocabulary.special)},
            "tokenizer": made.to_json(),
            "data_fingerprint": "0123456789abcdef",
            **about,
        },
    }
    if ema:
        written["ema"] = {name: parameter.detach() * 2 for name, parameter in root.named_parameters()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(written, path)
    return path
