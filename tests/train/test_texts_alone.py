"""Texts without pictures beside regions with captions, as VL-BERT mixes them (arXiv 1908.08530 section 3.3): one MLM reads both sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers.regions import write_regions
from helpers.shards import caption, write_tar
from torch import nn
from train.runs import quiet, trainer

from mmpretrain.data.errors import DataError
from mmpretrain.data.mixture import TrainSource
from mmpretrain.data.module import ShardData
from mmpretrain.data.text import TextOptions
from mmpretrain.nn.hidden import Fused
from mmpretrain.nn.ragged import Layout, Ragged
from mmpretrain.objectives.itm import ITM
from mmpretrain.objectives.mlm import MLM
from mmpretrain.train.module import Pretrain
from mmpretrain.train.optim import Optimizer
from mmpretrain.train.schedule import WarmupLinear
from mmpretrain.types import Batch, Spec

VOCAB, WIDTH = 96, 12


class WordsAndRegions(nn.Module):
    """Words see the mean of the regions of their sample, or a vector of its own where there are none."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.nothing = nn.Embedding(VOCAB, WIDTH), nn.Embedding(1, WIDTH)
        self.project, self.mix = nn.Linear(5, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.calls: list[tuple[bool, bool]] = []

    @property
    def spec(self) -> Spec:
        return Spec(WIDTH, ("fused",), VOCAB, self.words)

    def blocks(self) -> list[nn.Module]:
        return [self.mix]

    def forward(self, batch: Batch, kind: str = "fused") -> Fused:
        self.calls.append((batch.text is not None, batch.regions is not None))
        layout = Layout(batch.text.lengths)
        seen_BD, image = self.nothing.weight.expand(batch.size, -1), None
        if batch.regions is not None:
            regions = Layout(batch.regions.lengths)
            image = Ragged(self.project(batch.regions.features_NF), regions)
            total_BD = torch.zeros(batch.size, WIDTH).index_add(0, regions.sample_N(image.x_ND.device), image.x_ND)
            seen_BD = total_BD / torch.tensor(regions.lengths)[:, None]
        words_ND = self.words(layout.pack(batch.text.ids_BT)) + seen_BD[layout.sample_N(seen_BD.device)]
        text = Ragged(torch.tanh(self.mix(words_ND)), layout)
        return Fused(text, image, text.x_ND[layout.first_B(seen_BD.device)] if image is not None else None)


class Steps(pl.Callback):
    """The source of every step, what it shows, and the objectives that it computes."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bool, bool]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: Pretrain, outputs: Any, batch: Any, index: int) -> None:
        self.seen.append((batch[0].source, batch[0].regions is not None, batch[0].text is not None))


def data(folder: Path, **more: Any) -> ShardData:
    """As many texts alone as captions."""
    train = {
        "pairs": TrainSource(str(folder / "pairs"), weight=1.0),
        "books": TrainSource(str(folder / "books"), weight=1.0, reads="texts"),
    }
    options = {"max_tokens": 24, "workers": 0, "mix": "batch", "show": "regions", **more}
    return ShardData(
        train, {"books": str(folder / "books"), "held_out": str(folder / "pairs")}, 4, TextOptions(vocab_size=VOCAB), **options
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("texts")
    write_regions(made / "pairs", (8, 8), image=False)
    write_tar(made / "books" / "0.tar", [(f"b{n:03d}.txt", caption(n).encode()) for n in range(16)])
    return made


def module() -> Pretrain:
    torch.manual_seed(0)
    objectives = {"mlm": MLM(prob=0.5, sources=("pairs", "books")), "itm": ITM({"text": 1.0}, sources=("pairs",))}
    return Pretrain(WordsAndRegions(), objectives, Optimizer(lr=1e-3), WarmupLinear(warmup=1, total=8))


def test_one_objective_reads_both(folder: Path) -> None:
    quiet()
    steps, system = Steps(), module()
    before = system.root.model.nothing.weight.clone()
    fitter = trainer(8, [steps], log_every_n_steps=1)
    fitter.fit(system, datamodule=data(folder), weights_only=True)
    sources = [source for source, *_ in steps.seen]
    assert sources.count("pairs") == sources.count("books") == 4
    assert all((regions, text) == (source == "pairs", True) for source, regions, text in steps.seen)
    assert (True, False) in system.root.model.calls and (True, True) in system.root.model.calls
    assert not torch.equal(system.root.model.nothing.weight, before)  # the steps of texts alone have a gradient
    names = fitter.callback_metrics
    assert {"val/held_out/mlm/loss", "val/held_out/itm/loss", "val/books/mlm/loss"} <= names.keys() or {"val/mlm/loss"} <= names.keys()
    assert "val/books/itm/loss" not in names


def test_masks_of_texts_alone_follow_the_same_rule(folder: Path) -> None:
    made = data(folder)
    made.configure(sources={"mlm": ("pairs", "books")})
    made.setup("fit")
    mlm = MLM(prob=0.5, mask=1.0, random=0.0)
    mlm.bind(Spec(WIDTH, ("fused",), VOCAB, nn.Embedding(VOCAB, WIDTH)), made.vocabulary)
    masked, free = {"pairs": 0, "books": 0}, {"pairs": 0, "books": 0}
    for item in made.train_dataloader():
        for batch in item:
            target = mlm.corrupt(batch, {}).targets["mlm"]
            masked[batch.source] += target.rows_R.numel()
            free[batch.source] += int(target.maskable)
        made.advance()
    assert all(abs(masked[name] - 0.5 * free[name]) < 4 * (0.25 * free[name]) ** 0.5 and free[name] > 50 for name in masked)


def test_texts_alone_do_not_go_into_a_batch_of_regions(folder: Path) -> None:
    with pytest.raises(DataError, match=r"set data\.mix=batch"):
        data(folder, mix="sample").setup("fit")
