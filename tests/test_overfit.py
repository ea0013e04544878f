"""Each recipe's system, objectives and optimiser fit one batch of 8 fixed pairs (with fixed masks and negatives) in a few dozen steps."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from train.runs import quiet, trainer

from mmpretrain.cli.train import prepare
from mmpretrain.data_tools import scenes
from mmpretrain.train.callbacks import Metrics
from mmpretrain.types import Batch

TINY = ["--data.batch_size", "8", "--data.workers", "0", "--data.text.vocab_size", "300", "--loggers", "[]", "--trainer.accelerator", "cpu"]


class Wanted(NamedTuple):
    """What the end of a recipe's run must show; every accuracy must be 1."""

    steps: int
    below: dict[str, float]  # objective -> its loss
    accurate: tuple[str, ...]  # objectives
    options: tuple[str, ...] = ()


RATE = ("--model.optimizer.lr", "5e-4")  # the recipe's is for 128 pairs
WANTED = {
    "vilt.yaml": Wanted(70, {"mlm": 1.0, "itm": 0.1}, ("mlm", "itm"), ("--model.schedule.init_args.warmup", "7")),
    "clip.yaml": Wanted(80, {"contrastive": 0.05}, ("contrastive",), RATE),
    "clip-rn50.yaml": Wanted(30, {"contrastive": 0.05}, ("contrastive",)),
    # -10 is the best start for batches of 22,000, -ln 7 for 8 pairs
    "siglip.yaml": Wanted(180, {"sigmoid": 0.5}, ("sigmoid",), (*RATE, "--model.system.init_args.logit_bias_init", "-1.95")),
}


class Same:
    """The same optimiser step again and again."""

    def __init__(self, step: tuple[Batch, ...], times: int) -> None:
        self.step, self.times = step, times

    def __len__(self) -> int:
        return self.times

    def __iter__(self) -> Iterator[tuple[Batch, ...]]:
        return iter([self.step] * self.times)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight generated scenes."""
    return scenes.write(tmp_path_factory.mktemp("pairs"), 8, 0, "train", shard_size=8, progress=False)


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMPRETRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MMPRETRAIN_RUN_DIR", raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    os.environ.pop("MMPRETRAIN_RUN_DIR", None)


@pytest.mark.parametrize("recipe", WANTED)
def test_eight_fixed_pairs_are_fitted(recipe: str, pairs: Path, tmp_path: Path) -> None:
    quiet()
    wanted = WANTED[recipe]
    command = prepare("fit", ["--config", recipe, "--config", "debug.yaml", "--data.train", str(pairs), *TINY, *wanted.options])
    module, data = command.model, command.datamodule
    data.configure(preparers=module.preparers())
    data.setup("fit")
    module.vocabulary = data.vocabulary
    (item,) = data.train_dataloader()
    assert sum(batch.size for batch in item) == 8
    fitter = trainer(wanted.steps, [Metrics()], log_every_n_steps=1, default_root_dir=tmp_path / "out")
    fitter.fit(module, train_dataloaders=Same(item, wanted.steps))
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    first, last = rows[0], rows[-1]
    assert last["step"] == wanted.steps
    for name, limit in wanted.below.items():
        assert last[f"train/{name}/loss"] < limit < first[f"train/{name}/loss"], name
    for name in wanted.accurate:
        assert last[f"train/{name}/accuracy"] == 1.0, name
