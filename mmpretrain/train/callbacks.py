"""Metrics of a run: losses, rates, speed, waiting for data and memory, into ``metrics.jsonl`` and the loggers."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from mmpretrain.train import distributed, events
from mmpretrain.train.atomic import write_text
from mmpretrain.train.loggers import tolerate
from mmpretrain.train.module import Pretrain
from mmpretrain.train.trainer import run_steps
from mmpretrain.types import Batch


def memory_gib() -> float:
    """Resident memory of this process in GiB."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**30
    import resource

    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**30


class Metrics(pl.Callback):
    """Writes every ``trainer.log_every_n_steps`` optimiser steps: ``train/loss``, ``train/<objective>/loss`` and its other metrics,
    ``train/grad_norm``, ``train/lr``, ``train/value/model.temperature`` and the like (ramps of ``model.phases``), ``speed/samples_per_s``,
    ``speed/tokens_per_s`` (real tokens, no padding), ``data/wait_share``, ``memory/rss_gib``; and after each validation the ``val/...``
    metrics. Means are exact over ranks and over the interval. Warns, once and after a validation, of an objective that had no term so far.

    Args:
        directory: where ``metrics.jsonl`` goes; None: the trainer's ``default_root_dir``.
    """

    def __init__(self, directory: str | None = None) -> None:
        self.directory = directory
        self.path: Path | None = None
        self.latest: dict[str, float] = {}  # newest value of every metric, for the final table
        self._empty: set[str] = set()  # what had no count in some interval
        self._journal: events.Journal | None = None
        self._restored: dict[str, float] = {}
        self._device = torch.device("cpu")
        self._rate = 0.0  # of the step under way
        self._reset()

    def state_dict(self) -> dict[str, float]:
        """What was counted since the last line, so that the first line after a resumption is of a whole interval. Every rank calls it."""
        samples, tokens = self._work()
        return {"wait": self._wait, "busy": self._busy, "samples": samples, "tokens": tokens}

    def _work(self) -> list[float]:
        """Samples and tokens since the last line, over all ranks."""
        return distributed.sum_(torch.tensor([self._samples, self._tokens], dtype=torch.float64, device=self._device)).tolist()

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self._restored = dict(state_dict)

    def _reset(self) -> None:
        self._wait = self._busy = 0.0
        self._samples = self._tokens = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        tolerate(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Pretrain) -> None:
        self._reset()
        self._device = torch.device("cpu") if pl_module.device.type == "mps" else pl_module.device
        if self._restored and trainer.is_global_zero:  # all ranks' sums
            self._wait, self._busy = self._restored["wait"], self._restored["busy"]
            self._samples, self._tokens = int(self._restored["samples"]), int(self._restored["tokens"])
        self._restored = {}
        self._last = run_steps(trainer)
        self._free_since = time.perf_counter()
        if trainer.is_global_zero:
            self.path = Path(self.directory or trainer.default_root_dir) / "metrics.jsonl"
            self.path.parent.mkdir(parents=True, exist_ok=True)
            forget_after(self.path, trainer.global_step)
            self._journal = events.Journal(self.path)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Pretrain, batch: Any, batch_idx: int) -> None:
        self._began, self._rate = time.perf_counter(), max(group["lr"] for group in trainer.optimizers[0].param_groups)
        self._wait += pl_module.fetched_at - self._free_since if pl_module.fetched_at > self._free_since else 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Pretrain, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._busy += time.perf_counter() - self._began
        batches = (batch,) if isinstance(batch, Batch) else batch
        self._samples += sum(b.size for b in batches)
        self._tokens += pl_module.tokens(batches)
        if trainer.global_step % trainer.log_every_n_steps == 0 or trainer.global_step == self._last:
            self._write_training(trainer, pl_module)

    def _write_training(self, trainer: pl.Trainer, module: Pretrain) -> None:
        device = module.device
        samples, tokens = self._work()
        seconds = max(self._wait + self._busy, 1e-9)
        values = module.meter.read(device)
        self._empty.update(module.meter.empty)
        values |= {f"train/value/{name}": value for name, value in module.phases.ramped.items()}
        values["train/grad_norm"] = module.grad_norm.item()
        values["train/lr"] = self._rate
        values["speed/samples_per_s"], values["speed/tokens_per_s"] = samples / seconds, tokens / seconds
        values["data/wait_share"], values["memory/rss_gib"] = self._wait / seconds, memory_gib()
        if device.type == "cuda":
            values["memory/cuda_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        values |= {f"events/{name}": float(count) for name, count in events.counts(trainer).items()}
        values |= getattr(getattr(trainer, "datamodule", None), "metrics", dict)()
        self._reset()
        shown = {name: values[name] for name in ("train/loss", "speed/samples_per_s") if name in values}
        module.log_dict(shown, prog_bar=True, logger=False, sync_dist=False)
        self.write(trainer, values)
        for logger in trainer.loggers:
            logger.log_metrics(dict(values), step=trainer.global_step)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Pretrain) -> None:
        self._free_since = time.perf_counter()
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            fresh = trainer._logger_connector.metrics["callback"]  # ``callback_metrics`` keeps those that this validation did not log
            self.write(trainer, {name: float(value) for name, value in fresh.items() if name.startswith("val/")})
            self._warn(pl_module)

    def _warn(self, module: Pretrain) -> None:
        """Of objectives that were computed and had no term so far."""
        resting = [name for name in module.root.objectives if f"train/{name}/loss" in self._empty - self.latest.keys()]
        if resting and "train/loss" in self.latest:
            what = "the data have nothing for it (tags, second captions, questions, graphs): see docs/objectives.md"
            pl.utilities.rank_zero_warn(f"{', '.join(resting)}: no term in any step so far, so nothing is learned from it; {what}")
        self._empty.difference_update(f"train/{name}/loss" for name in resting)

    def write(self, trainer: pl.Trainer, values: Mapping[str, float]) -> None:
        """Append one line (rank 0). Other callbacks use it for metrics of their own."""
        if not values:
            return
        self.latest.update(values)
        if trainer.is_global_zero and self._journal is not None:
            line = {"step": trainer.global_step, "epoch": trainer.current_epoch, "time": time.time(), **values}
            if not self._journal.append(line):
                events.note(trainer, "logger_failed", logger="metrics.jsonl")

    def free(self) -> None:
        """Called when a step with all its callbacks is over: from here on the loop waits for data."""
        self._free_since = time.perf_counter()


def forget_after(path: Path, step: int) -> None:
    """Drop the lines of ``metrics.jsonl`` beyond ``step`` (a killed run wrote them, the resumed one will again) and a torn last line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if entry.get("step", 0) <= step:
            kept.append(line)
    write_text(path, "".join(line + "\n" for line in kept))
