"""Loaders whose items are optimiser steps, and how many processes decode for them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, Dataset, Sampler

from mmpretrain.data.cursor import Cursor


class StepSampler(Sampler[tuple[int, int]]):
    """(epoch, step) from the position of the data on: the rest of its epoch, or ``limit`` steps across epochs."""

    def __init__(self, cursor: Cursor, steps: int, limit: int | None) -> None:
        self.cursor, self.steps, self.limit = cursor, steps, limit

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, step = self.cursor.epoch, self.cursor.step
        for _ in range(self.limit if self.limit is not None else self.steps - step):
            yield epoch, step
            epoch, step = (epoch, step + 1) if step + 1 < self.steps else (epoch + 1, 0)


class StepLoader(DataLoader):
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
