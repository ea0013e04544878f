"""ViLT and CLIP at a few thousand parameters on a dozen real shards; also a script for ranks and for runs that are killed.

``systems.py parity OUT SHARDS LAYOUT...`` writes traces; ``systems.py resume DIR SHARDS SYSTEM STEPS SECONDS`` fits and continues.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from train.resume import Slow
from train.runs import Recorder, Trace, full, quiet, trainer

from mmpretrain.data.image import ImageTransform
from mmpretrain.data.module import ShardData
from mmpretrain.data.text import TextOptions
from mmpretrain.models.clip import CLIP, TextTower, ViTTower
from mmpretrain.models.vilt import ViLT
from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.embed import PatchEmbedder, TextEmbedder
from mmpretrain.objectives.contrastive import Contrastive
from mmpretrain.objectives.itm import ITM
from mmpretrain.objectives.mlm import MLM
from mmpretrain.objectives.sigmoid import Sigmoid
from mmpretrain.objectives.wpa import WPA
from mmpretrain.train.callbacks import Metrics
from mmpretrain.train.checkpoint import Checkpoints
from mmpretrain.train.module import Pretrain
from mmpretrain.train.optim import Optimizer
from mmpretrain.train.schedule import WarmupLinear
from mmpretrain.train.strategies import FSDP2Strategy  # noqa: F401  registers the names

VOCAB = 96


def data(shards: Path, system: str) -> ShardData:
    """24 samples, 8 to a step."""
    options: dict[str, Any] = {"mode": "vilt", "multiple": 8} if system == "vilt" else {"mode": "clip"}
    image = ImageTransform(**options, size=16, decoder="pil")
    text = TextOptions(tokenizer="wordpiece", vocab_size=VOCAB)
    sources = {"held_out": str(shards)}
    return ShardData(str(shards), sources, 8, text, max_tokens=24, image=image, workers=0, val_batch_size=4, val_samples=8)


def build(system: str, dropout: float = 0.0, **settings: Any) -> Pretrain:
    """The same parameters every time."""
    torch.manual_seed(0)
    if system == "vilt":
        text = TextEmbedder(VOCAB, 16, 24, segments=2, dropout=dropout)
        model: torch.nn.Module = ViLT(text, PatchEmbedder(16, 8, grid=2, dropout=dropout), Transformer(16, 2, 2, dropout=dropout))
        objectives = {"mlm": MLM(view="mlm"), "itm": ITM({"image": 1.0, "edit": 1.0}), "wpa": WPA(iterations=10)}
    else:
        bias = -2.0 if system == "siglip" else None
        model = CLIP(ViTTower(16, 8, 16, 2, 2), TextTower(VOCAB, 24, 16, 2, 2), 16, logit_bias_init=bias)
        objectives = {"contrastive": Sigmoid() if system == "siglip" else Contrastive()}
    decay = "vilt" if system == "vilt" else "clip"
    return Pretrain(model, objectives, Optimizer(lr=1e-3, decay=decay), WarmupLinear(warmup=2, total=10), **settings)


def fit(system: str, shards: Path, steps: int = 10, **flags: Any) -> Trace:
    """Ten steps over three epochs, clipped."""
    quiet()
    recorder, module = Recorder(), build(system, **flags.pop("module", {}))
    fitter = trainer(steps, [recorder], gradient_clip_val=0.5, **flags)
    fitter.fit(module, datamodule=data(shards, system))
    head = module.root.objectives["mlm"] if system == "vilt" else None
    tied = head is None or head.head.weight is module.root.model.text.words.weight
    metrics = {name: float(value) for name, value in fitter.callback_metrics.items()}
    return Trace(recorder.losses, recorder.norms, {n: full(p) for n, p in module.root.named_parameters()}, metrics, tied)


def resumable(folder: Path, shards: Path, system: str, steps: int, seconds: float = 0.0) -> None:
    """Fit with dropout, saving every second step, from ``last`` if there is one."""
    quiet()
    callbacks = [Metrics(), Slow(seconds), Checkpoints(every_n_steps=2)]
    fitter = trainer(steps, callbacks, default_root_dir=folder, enable_checkpointing=True, log_every_n_steps=1)
    module = build(system, dropout=0.1)
    fitter.fit(module, datamodule=data(shards, system), ckpt_path="last")
    torch.save(module.root.state_dict(), folder / "end.pt")


def main() -> None:
    """See the module's docstring."""
    task, target, shards, *rest = sys.argv[1:]
    if task == "resume":
        resumable(Path(target), Path(shards), rest[0], int(rest[1]), float(rest[2]))
        return
    traces = {}
    for layout in rest:
        strategy, system, micros = layout.split(":")
        extra = {"module": {"backward": "cached"}} if system != "vilt" and micros != "1" else {}
        trace = fit(system, Path(shards), strategy=strategy, devices=2, accumulate_grad_batches=int(micros), **extra)
        traces[layout] = trace._asdict()
    if torch.distributed.get_rank() == 0:
        torch.save(traces, target)


if __name__ == "__main__":
    main()
