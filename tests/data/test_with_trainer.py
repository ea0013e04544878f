"""The data module under a Trainer: epochs follow each other, checkpoints resume in the middle of one, limits continue the order."""

from __future__ import annotations

import warnings
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers.shards import write_shards

from mmpretrain.data.image import ImageTransform
from mmpretrain.data.mixture import TrainSource
from mmpretrain.data.module import ShardData
from mmpretrain.data.text import TextOptions


class Watch(pl.LightningModule):
    """Records the keys of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.steps: list[tuple[str, ...]] = []
        self.validated: list[str] = []

    def training_step(self, batches, index: int) -> None:
        self.steps.append(tuple(key for batch in batches for key in batch.keys))
        optimizer = self.optimizers()
        optimizer.step()
        self.trainer.datamodule.advance()

    def validation_step(self, batch, index: int, dataloader_idx: int = 0) -> None:
        self.validated.extend(batch.keys)

    def configure_optimizers(self):
        return torch.optim.SGD([self.weight], lr=0.0)

    def preparers(self) -> dict:
        return {}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("twenty"), (11, 9))  # 5 steps of 4


def made(shards, workers: int = 0, train: Any = None) -> ShardData:
    text, image = TextOptions(vocab_size=300), ImageTransform("squash", 8)
    return ShardData(train or str(shards), val={"v": str(shards)}, batch_size=4, text=text, image=image, workers=workers)


def run(shards, ckpt: str | None = None, save: str | None = None, workers: int = 0, data: ShardData | None = None, **flags) -> Watch:
    data, watch = data or made(shards, workers), Watch()
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", devices=1, use_distributed_sampler=False, num_sanity_val_steps=0, **silent, **flags)
    trainer.fit(watch, datamodule=data, ckpt_path=ckpt, weights_only=True)
    if save:
        trainer.save_checkpoint(save)
    return watch


@pytest.fixture(scope="module")
def straight(shards) -> Watch:
    return run(shards, max_steps=13, max_epochs=-1)


@pytest.mark.parametrize("mixed", [False, True])
def test_another_run_with_one_data_module_starts_at_the_beginning(shards, tmp_path, mixed):
    train = {"a": TrainSource(str(shards), weight=2.0), "b": TrainSource(str(shards / "00001.tar"), weight=1.0)} if mixed else None
    data, path = made(shards, train=train), str(tmp_path / "three.ckpt")
    first = run(shards, data=data, save=path, max_steps=3, max_epochs=-1)
    data.bad.add(10, [("00000.tar", "k", "damaged", "damaged")])
    assert run(shards, data=data, max_steps=3, max_epochs=-1).steps == first.steps and not data.bad.total
    rest = run(shards, data=data, ckpt=path, max_steps=5, max_epochs=-1)
    assert data.cursor.steps == 5 and not set(rest.steps) & set(first.steps)
    assert run(shards, data=data, max_steps=5, max_epochs=-1).steps == [*first.steps, *rest.steps]
    position = data.state_dict()
    data.load_state_dict(position)  # by hand
    assert run(shards, data=data, max_steps=1, max_epochs=-1).steps and data.cursor.steps == 6


def test_epochs_differ_and_are_whole(straight):
    assert len(straight.steps) == 13
    for epoch in (0, 1):
        keys = [key for step in straight.steps[5 * epoch : 5 * epoch + 5] for key in step]
        assert len(set(keys)) == 20
    assert straight.steps[:5] != straight.steps[5:10] and len(straight.validated) == 2 * 20


@pytest.mark.fault(34, 36)
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("stop", [3, 5, 7, 10])
def test_a_checkpoint_resumes_where_it_was(shards, straight, tmp_path, stop, workers):
    first = run(shards, save=str(tmp_path / "a.ckpt"), max_steps=stop, max_epochs=-1, workers=workers)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not resumable.*")
        rest = run(shards, ckpt=str(tmp_path / "a.ckpt"), max_steps=13, max_epochs=-1, workers=workers)
    assert first.steps + rest.steps == straight.steps


@pytest.mark.fault(37)
def test_three_resumes_in_one_epoch(shards, straight, tmp_path):
    steps, ckpt = [], None
    for stop in (1, 2, 4, 13):
        steps += run(shards, ckpt=ckpt, save=str(tmp_path / f"{stop}.ckpt"), max_steps=stop, max_epochs=-1).steps
        ckpt = str(tmp_path / f"{stop}.ckpt")
    assert steps == straight.steps


@pytest.mark.fault(42)
def test_limited_epochs_continue_the_order(shards, straight):
    limited = run(shards, max_epochs=4, limit_train_batches=3)
    assert limited.steps == straight.steps[:12]
    half = run(shards, max_epochs=2, limit_train_batches=0.5)
    assert half.steps == straight.steps[:4]


@pytest.mark.fault(41)
def test_validation_in_the_middle_does_not_move_the_order(shards, straight):
    watched = run(shards, max_steps=13, max_epochs=-1, val_check_interval=2, check_val_every_n_epoch=None)
    assert watched.steps == straight.steps and len(watched.validated) == 6 * 20
