"""A short run on generated scenes with measurements at the end; executed as a script by each rank of a test.

``measured_run.py OUT SHARDS SYSTEM STRATEGY DEVICES``
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from helpers.checkpoints import config
from torch import nn

from mmpretrain.data.image import ImageTransform
from mmpretrain.data.module import ShardData
from mmpretrain.data.text import TextOptions
from mmpretrain.evaluate.rebuild import build
from mmpretrain.objectives.base import Objective
from mmpretrain.train.measure import Measure
from mmpretrain.train.module import Pretrain
from mmpretrain.train.optim import Optimizer
from mmpretrain.train.schedule import WarmupLinear

VOCABULARY = 200


def settings(system: str) -> dict[str, Any]:
    """The configuration with a text as long as those of scenes."""
    found = config(system, VOCABULARY)
    system_args = found["model"]["system"]["init_args"]
    system_args["text"]["init_args"]["positions"] = 48
    return found


def data(shards: str, system: str) -> ShardData:
    clip = ImageTransform(mode="clip", size=32, normalize="clip")
    image = ImageTransform(mode="vilt", size=64, multiple=16) if system == "vilt" else clip
    text = TextOptions(vocab_size=VOCABULARY)
    return ShardData(shards, {"scenes": shards}, batch_size=8, text=text, max_tokens=48, image=image, workers=0, val_samples=8)


def module(system: str) -> Pretrain:
    found = settings(system)["model"]
    torch.manual_seed(0)
    objectives = {name: build(one, Objective, name) for name, one in found["objectives"].items()}
    model = build(found["system"], nn.Module, "system")
    pretrain = Pretrain(model, objectives, Optimizer(lr=1e-3), WarmupLinear(warmup=1, total=4), ema_decay=0.5)
    pretrain.config = settings(system)
    return pretrain


def fit(shards: str, system: str, **layout: Any) -> tuple[Pretrain, ShardData, dict[str, float]]:
    """Two steps and a validation; the logged metrics."""
    from train.runs import quiet, trainer

    quiet()
    run, shard_data = module(system), data(shards, system)
    fitter = trainer(2, [Measure(samples=16, retrieval=8)], val_check_interval=1.0, limit_train_batches=2, **layout)
    fitter.fit(run, datamodule=shard_data)
    return run, shard_data, {name: float(value) for name, value in fitter.callback_metrics.items()}


def main() -> None:
    import mmpretrain.train.strategies  # noqa: F401  registers the names

    out, shards, system, strategy, devices = sys.argv[1:]
    found = fit(shards, system, strategy=strategy, devices=int(devices))[2]
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
