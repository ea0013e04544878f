"""Systems that train a convolutional network along, on any layout; also the script of ranks: ``pixels.py OUT STRATEGY:SYSTEM:MICROS...``.

Pictures of three sizes are dealt out so that ranks and micro-batches have different numbers of sizes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from train.fakes import VOCAB, FakeData, Remaining, Steps, sample_batch
from train.runs import Recorder, Trace, full, quiet, trainer

from mmpretrain.models.pixelbert import PixelBERT
from mmpretrain.models.vlbert import VLBERT
from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.cnn import ResNet
from mmpretrain.nn.embed import TextEmbedder
from mmpretrain.nn.pixels import PixelEmbedder
from mmpretrain.nn.roi import BoxFeatures
from mmpretrain.nn.vlbert import VLBERTEmbedder
from mmpretrain.objectives.mlm import MLM
from mmpretrain.objectives.mrc import MRC
from mmpretrain.objectives.region_masking import RegionMasker
from mmpretrain.train.module import Pretrain
from mmpretrain.train.optim import Optimizer
from mmpretrain.train.schedule import Milestones
from mmpretrain.types import Batch, Pixels, RegionBatch

SIZES = ((64, 128), (128, 64), (64, 64), (64, 128), (64, 64), (64, 128), (64, 128), (64, 128))
PUBLISHED = {"kind": "sgd", "lr": 1e-2, "betas": (0.9, 0.999), "weight_decay": 5e-4, "decay": "all"}  # Pixel-BERT's network


def pictured(positions: list[int], regions: bool) -> Batch:
    """Samples of the fake data with pictures made from their positions, and boxes."""
    batch = sample_batch(positions)
    sizes = tuple(SIZES[p % len(SIZES)] for p in positions)
    pixels, boxes, probs, counts = torch.zeros(len(positions), 3, 128, 128), [], [], []
    for i, (p, (h, w)) in enumerate(zip(positions, sizes, strict=True)):
        g = torch.Generator().manual_seed(p)
        pixels[i, :, :h, :w] = torch.randn(3, h, w, generator=g)
        counts.append(1 + p % 3)
        boxes.append(torch.rand(counts[-1], 2, 2, generator=g).sort(1).values.flatten(1) * torch.tensor([w, h, w, h]))
        probs.append(torch.rand(counts[-1], 5, generator=g))
    made = RegionBatch(torch.zeros(sum(counts), 2), torch.cat(boxes), tuple(counts), sizes, class_probs_NC=torch.cat(probs).softmax(1))
    return batch._replace(image=Pixels(pixels, sizes), regions=made if regions else None)


def as_it_is(batches: Any) -> Any:
    return batches


class Pictures(FakeData):
    """The fake data with pictures."""

    def __init__(self, regions: bool) -> None:
        super().__init__()
        self.regions = regions

    def step(self, epoch: int, index: int) -> tuple[Batch, ...]:
        plain = super().step(epoch, index)
        return tuple(pictured([int(key[1:]) for key in batch.keys], self.regions) for batch in plain)

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        steps = Steps(self, self.done)
        return torch.utils.data.DataLoader(steps, batch_size=None, sampler=Remaining(self), collate_fn=as_it_is)  # tuples stay tuples

    def val_dataloader(self) -> list[Any]:
        return []


def build(system: str) -> Pretrain:
    """The same parameters every time."""
    torch.manual_seed(0)
    blocks = Transformer(16, 2, 2, norm="post", final_norm=False, eps=1e-12, init="normal")
    if system == "pixelbert":
        model: torch.nn.Module = PixelBERT(TextEmbedder(VOCAB, 16, 8, segments=2), PixelEmbedder(ResNet("tiny"), 16), blocks)
        objectives: dict[str, Any] = {"mlm": MLM(prob=0.4)}
        parts = {"model.image.cnn": Optimizer(**PUBLISHED)}
    else:
        cnn = ResNet("tiny", norm="fixed", freeze=2, dilated=True)
        model = VLBERT(VLBERTEmbedder(VOCAB, 16, 256, 9, 16, 0.0, 0.0, mask_visual=False), blocks, BoxFeatures(cnn, cells=4))
        torch.nn.init.ones_(model.embed.object_norm.weight)  # what is silent at first would hide mistakes
        torch.nn.init.ones_(model.embed.text_norm.weight)
        masker = RegionMasker(prob=0.5)
        objectives = {"mlm": MLM(prob=0.4), "mrc": MRC("soft", classes=5, norm_in_head=False, masker=masker)}
        parts = {}
    return Pretrain(model, objectives, Optimizer(lr=3e-3, decay="standard", parts=parts), Milestones([0.5], warmup=1))


def fit(system: str, steps: int = 6, **flags: Any) -> Trace:
    """A few steps, clipped."""
    quiet()
    recorder, module = Recorder(), build(system)
    fitter = trainer(steps, [recorder], gradient_clip_val=0.5, limit_val_batches=0, **flags)
    fitter.fit(module, datamodule=Pictures(system == "vlbert"))
    tied = module.root.objectives["mlm"].head.weight is module.root.model.spec.token_table.weight
    return Trace(recorder.losses, recorder.norms, {name: full(p) for name, p in module.root.named_parameters()}, {}, tied)


def main() -> None:
    """Layouts on this rank; rank 0 writes the traces."""
    import mmpretrain.train.strategies  # noqa: F401  registers the names

    out, *layouts = sys.argv[1:]
    traces = {}
    for layout in layouts:
        strategy, system, micros = layout.split(":")
        traces[layout] = fit(system, strategy=strategy, devices=2, accumulate_grad_batches=int(micros))._asdict()
    if torch.distributed.get_rank() == 0:
        torch.save(traces, Path(out))


if __name__ == "__main__":
    main()
