"""A few steps of a small DALL-E under a layout. Executed as a script by each rank of a test: ``causal_run.py OUT STRATEGY...``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from helpers.dense_dalle import CODES, GRID, KERNEL, POSITIONS, VOCAB
from train.fakes import FakeData, Remaining, Steps
from train.runs import Trace, run

from mmpretrain import random
from mmpretrain.models.dalle import DALLE
from mmpretrain.objectives.next_token import NextCode, NextText
from mmpretrain.train.module import Pretrain
from mmpretrain.train.optim import Optimizer
from mmpretrain.train.plateau import Plateau
from mmpretrain.types import Batch, CodeBatch, Text, Vocabulary

N = GRID[0] * GRID[1]
WORD, CODE = random.stream("causal/word"), random.stream("causal/code")


def samples(positions: list[int]) -> Batch:
    """The samples at these global positions: texts of every length from none to all positions."""
    keys_B = torch.tensor([random.key_of(7, p) for p in positions], dtype=torch.int64)
    text = Text(5 + random.integers(keys_B, WORD, POSITIONS, VOCAB - 5), tuple(p % (POSITIONS + 1) for p in positions))
    codes = CodeBatch(random.integers(keys_B, CODE, N, CODES).flatten(), (GRID,) * len(positions))
    return Batch(tuple(f"s{p}" for p in positions), keys_B, text, codes=codes)


def as_it_is(item: Any) -> Any:
    """torch's own function would make lists of tuples."""
    return item


class Data(FakeData):
    def __init__(self) -> None:
        super().__init__()
        self.vocabulary = Vocabulary(VOCAB, 1, None, None, None, (0, 1), codes=CODES)

    def step(self, epoch: int, index: int) -> tuple[Batch, ...]:
        ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        size = self.batch_size // ranks
        start = (epoch * self.steps_per_epoch + index) * self.batch_size + rank * size
        return (samples(list(range(start, start + size))),)

    def val_dataloader(self) -> torch.utils.data.DataLoader:
        ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        batches = [samples([10_000 + 4 * i + j for j in range(4)]) for i in range(4)]
        return torch.utils.data.DataLoader(batches[rank::ranks], batch_size=None, collate_fn=as_it_is)

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        return torch.utils.data.DataLoader(Steps(self, self.done), batch_size=None, sampler=Remaining(self), collate_fn=as_it_is)


def execute(**layout: Any) -> Trace:
    """Six steps with dropped captions, recomputed blocks and a rate that drops."""
    torch.manual_seed(0)
    model = DALLE(16, 4, 2, VOCAB, CODES, POSITIONS, GRID, kernel=KERNEL, gain=1.0)
    objectives = {"text": NextText(dropout=0.3), "code": NextCode()}
    schedule = Plateau(warmup=1, total=6, window=2, patience=1, threshold=0.9)
    optimizer = Optimizer(lr=1e-2, betas=(0.9, 0.96), weight_decay=4.5e-2, decay="standard")
    module = Pretrain(model, objectives, optimizer, schedule, activation_checkpointing=True)
    return run(module, 6, data=Data(), gradient_clip_val=4.0, **layout)


def main() -> None:
    """Traces of all layouts, written by rank 0."""
    import mmpretrain.train.strategies  # noqa: F401  registers the names

    out, *strategies = sys.argv[1:]
    traces = {strategy: execute(strategy=strategy, devices=2)._asdict() for strategy in strategies}
    if torch.distributed.get_rank() == 0:
        torch.save(traces, Path(out))


if __name__ == "__main__":
    main()
