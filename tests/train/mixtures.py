"""ViLT on a mixture of pairs, texts alone and pictures alone; also a script for ranks: ``mixtures.py OUT FOLDER STRATEGY:MICROS...``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from helpers.shards import caption, picture, write_shards, write_tar
from torch import Tensor
from train.runs import Recorder, full, quiet, trainer
from train.systems import VOCAB, build

from mmpretrain.data.image import ImageTransform
from mmpretrain.data.mixture import TrainSource
from mmpretrain.data.module import ShardData
from mmpretrain.data.text import TextOptions
from mmpretrain.objectives.base import Objective
from mmpretrain.objectives.itm import ITM
from mmpretrain.objectives.mlm import MLM
from mmpretrain.train.callbacks import Metrics
from mmpretrain.train.data_health import DataHealth
from mmpretrain.train.module import Pretrain
from mmpretrain.types import Batch, Score, Spec, Vocabulary


class Bright(Objective):
    """Regression of the mean brightness of a picture: something to learn from pictures alone."""

    kind = "fused"

    def bind(self, spec: Spec, vocabulary: Vocabulary | None) -> None:
        self.head = torch.nn.Linear(spec.width, 1)

    def count(self, batch: Batch) -> Tensor:
        return torch.tensor(float(batch.size))

    def forward(self, hidden: Any, batch: Batch) -> Score:
        target_B = torch.stack(
            [p[:, :h, :w].float().mean() / 255 for p, (h, w) in zip(batch.image.pixels_BCHW, batch.image.sizes, strict=True)]
        )
        error_B = self.head(hidden.pooled_BD)[:, 0] - target_B
        return Score((error_B**2).sum(), self.count(batch), {})


class Sources(pl.Callback):
    """The source and the modalities of every step."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bool, bool]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: Pretrain, outputs: Any, batch: Any, index: int) -> None:
        self.seen.append((batch[0].source, batch[0].text is not None, batch[0].image is not None))


def write(folder: Path) -> Path:
    """24 pairs, 20 texts, 16 pictures."""
    write_shards(folder / "pairs", (13, 11))
    write_tar(folder / "books" / "0.tar", [(f"b{n:03d}.txt", caption(n).encode()) for n in range(20)])
    write_tar(folder / "photos" / "0.tar", [(f"p{n:03d}.png", picture(n)) for n in range(16)])
    return folder


def data(folder: Path, **more: Any) -> ShardData:
    """Eight samples to a step, half of the steps pairs."""
    train = {
        "pairs": TrainSource(str(folder / "pairs"), weight=2.0),
        "books": TrainSource(str(folder / "books"), weight=1.0, reads="texts"),
        "photos": TrainSource(str(folder / "photos"), weight=1.0, reads="images", max_epochs=1),
    }
    val = {"held_out": str(folder / "pairs"), "books": str(folder / "books")}
    image = ImageTransform("vilt", 16, 8, decoder="pil")
    options = {"val_batch_size": 4, "max_tokens": 24, "workers": 0, "mix": "batch", **more}
    return ShardData(train, val, 8, TextOptions(tokenizer="wordpiece", vocab_size=VOCAB), image=image, **options)


def module() -> Pretrain:
    """MLM on pairs and texts, matching on pairs, brightness on pictures."""
    made = build("vilt")
    objectives = {
        "mlm": MLM(view="mlm", sources=("pairs", "books")),
        "itm": ITM({"image": 1.0}, sources=("pairs",)),
        "bright": Bright(view="bright", sources=("photos",)),
    }
    torch.manual_seed(1)
    return Pretrain(made.root.model, objectives, made.optimizer, made.schedule)


def fit(
    folder: Path, steps: int = 10, out: Path | None = None, ckpt: str | None = None, save: str | None = None, **flags: Any
) -> dict[str, Any]:
    """Train; what was seen and what came out."""
    quiet()
    recorder, sources, system = Recorder(), Sources(), module()
    callbacks = [recorder, sources, *([DataHealth(), Metrics(str(out))] if out is not None else [])]
    fitter = trainer(steps, callbacks, log_every_n_steps=1, **flags)
    fitter.fit(system, datamodule=data(folder), ckpt_path=ckpt, weights_only=True)
    if save is not None:
        fitter.save_checkpoint(save)
    parameters = {name: full(p) for name, p in system.root.named_parameters()}
    metrics = {name: float(value) for name, value in fitter.callback_metrics.items()}
    return {"losses": recorder.losses, "seen": sources.seen, "parameters": parameters, "metrics": metrics}


def main() -> None:
    """See the docstring of the module."""
    target, folder, *rest = sys.argv[1:]
    found = {}
    for layout in rest:
        strategy, micros = layout.split(":")
        found[layout] = fit(Path(folder), strategy=strategy, devices=2, accumulate_grad_batches=int(micros))
    if torch.distributed.get_rank() == 0:
        torch.save(found, target)


if __name__ == "__main__":
    main()
