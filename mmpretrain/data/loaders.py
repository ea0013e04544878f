"""Loaders whose items are optimiser steps, and how many processes decode for them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import Dataset, Sampler

from mmpretrain.data import working
from mmpretrain.data.cursor import Cursor
from mmpretrain.data.feed import Item
from mmpretrain.data.mapped import more_files
from mmpretrain.data.plan import micro_batch
from mmpretrain.types import Preparer


class StepSampler(Sampler[Item]):
    """The batches from the position of the data on: the rest of its epoch, or ``limit`` steps across epochs."""

    def __init__(self, cursor: Cursor, limit: int | None) -> None:
        self.cursor, self.limit = cursor, limit

    def __len__(self) -> int:
        return self.cursor.feed.steps

    def __iter__(self) -> Iterator[Item]:
        ahead = self.cursor.copy()
        for _ in range(self.limit if self.limit is not None else len(self) - ahead.step):
            yield ahead.item()
            ahead.advance()


class StepLoader(working.Loader):
    """Lightning warns of mid-epoch checkpoints unless the loader has a state. Ours lies in the data module, so this one is empty."""

    def __init__(self, dataset: Dataset, **options: Any) -> None:
        super().__init__(dataset, **options)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Nothing to load: the data module has the position."""


def as_is(item: Any) -> Any:
    """The loader's own conversion would turn the tuples of a batch into lists."""
    return item


def default_workers(local_world: int) -> int:
    """Decoding processes for one of ``local_world`` training processes of a machine: its share of the cores less one, from 1 to 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, cores // max(1, local_world) - 1))


def loader_options(workers: int | None, local_world: int, items: int, prefetch: int, timeout: float) -> dict[str, Any]:
    """Arguments of a DataLoader with ``items`` items: see ``ShardData`` for the others."""
    workers = min(default_workers(local_world) if workers is None else workers, items)
    more: dict[str, Any] = {"prefetch_factor": prefetch, "persistent_workers": True, "timeout": timeout} if workers else {}
    if workers:
        more_files()  # a tensor on its way from a worker takes a descriptor
        more["worker_init_fn"] = working.Board(workers)
    return {"batch_size": None, "collate_fn": as_is, "num_workers": workers, "pin_memory": torch.cuda.is_available(), **more}


def epoch_limit(trainer: pl.Trainer | None, steps: int) -> int | None:
    """Steps of an epoch of the Trainer where ``limit_train_batches`` makes it shorter than one of the data, of ``steps`` steps."""
    limit = trainer.limit_train_batches if trainer is not None else None
    if limit is None or (limit == 1.0 and isinstance(limit, float)):
        return None
    wanted = int(steps * limit) if isinstance(limit, float) else limit
    return wanted if wanted < steps else None


def check_shared_draws(preparers: Mapping[str, Preparer], batch_size: int, world: int, accumulate: int) -> None:
    """That micro-batches are whole, and a warning where they part samples that an objective draws for together.

    Raises:
        DataError: the global batch cannot be cut evenly.
    """
    micro = micro_batch(batch_size, world, accumulate)
    for name, preparer in preparers.items():
        if micro % (shared := getattr(preparer, "shared_by", 1)):
            rank_zero_warn(
                f"data: {name} draws for {shared} neighbouring samples together (exact halves), a micro-batch of {micro} parts them; "
                f"make data.batch_size a multiple of {shared * world * accumulate}"
            )
