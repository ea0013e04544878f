"""Lightning's Trainer with three flags that keep their meaning although the step is ours.

Lightning refuses ``gradient_clip_val`` and ``accumulate_grad_batches`` in manual optimisation. They are taken here and read by
``Pretrain``: the norm is clipped by our clipper, and an item of the loader holds the micro-batches of one optimiser step.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning.pytorch as pl
from lightning.pytorch.plugins.precision import HalfPrecision

from mmpretrain.data import working
from mmpretrain.train import distributed
from mmpretrain.train.checkpoint import Checkpoints, resolve
from mmpretrain.train.half import Half
from mmpretrain.train.watchdog import loaders


def run_steps(trainer: pl.Trainer) -> int | None:
    """Optimiser steps of the whole run: what ``max_steps`` or ``max_epochs`` allows, whichever ends first; None: it has no end.

    Where the data say how long an epoch is, ``trainer.estimated_stepping_batches`` is not asked: it would start the loader too early.
    """
    limits = [trainer.max_steps] if trainer.max_steps > 0 else []
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        steps = getattr(getattr(trainer, "datamodule", None), "steps_per_epoch", None)
        if steps is None:
            total = trainer.estimated_stepping_batches
            return None if total == float("inf") else int(total)
        limit = trainer.limit_train_batches
        steps = min(steps, limit) if isinstance(limit, int) else int(steps * (1.0 if limit is None else limit))
        limits.append(steps * trainer.max_epochs)
    return min(limits, default=None)


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Signal handlers are afterwards what they were: Lightning takes its own back only when a run ends without an error."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: not set from Python, and not ours to change
                signal.signal(number, handler)


class EngineFlags(NamedTuple):
    """Trainer flags that the step carries out."""

    gradient_clip_val: float | None = None
    gradient_clip_algorithm: Literal["norm", "value"] = "norm"
    accumulate: int = 1


class Trainer(pl.Trainer):
    """A Trainer for ``Pretrain``.

    Args:
        gradient_clip_val: largest total norm (or absolute value) of the gradients of a step; None or 0: no clipping.
        gradient_clip_algorithm: ``norm`` or ``value``.
        accumulate_grad_batches: micro-batches per optimiser step; the global batch stays what the data module says.
        use_distributed_sampler: must stay False; our loaders split by rank themselves, and Lightning's sampler always shuffles.
        overfit_batches: must stay 0: the batches follow the position in the data.
        **kwargs: as for Lightning's Trainer.

    Raises:
        ValueError: a flag is out of range.
    """

    def __init__(
        self,
        *,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: Literal["norm", "value"] | None = None,
        accumulate_grad_batches: int = 1,
        use_distributed_sampler: bool = False,
        overfit_batches: int | float = 0.0,
        **kwargs: Any,
    ) -> None:
        if accumulate_grad_batches < 1:
            raise ValueError(f"trainer.accumulate_grad_batches={accumulate_grad_batches} must be at least 1")
        if gradient_clip_val is not None and gradient_clip_val < 0:
            raise ValueError(f"trainer.gradient_clip_val={gradient_clip_val} must not be negative")
        if use_distributed_sampler:
            raise ValueError("trainer.use_distributed_sampler must stay false: the loaders of mmpretrain split by rank themselves")
        if overfit_batches:
            raise ValueError(
                f"trainer.overfit_batches={overfit_batches} must stay 0: batches follow the position in the data; "
                "write a shard of a few samples and train on it (data.train)"
            )
        if kwargs.get("log_every_n_steps") == 0:
            raise ValueError("trainer.log_every_n_steps=0 must be at least 1; bad samples are counted as often, too")
        self.engine = EngineFlags(gradient_clip_val or None, gradient_clip_algorithm or "norm", accumulate_grad_batches)
        self.loading: str | None = None  # the checkpoint of the command under way
        super().__init__(
            gradient_clip_val=None, gradient_clip_algorithm=None, accumulate_grad_batches=1, use_distributed_sampler=False, **kwargs
        )
        if isinstance(self.precision_plugin, HalfPrecision):
            self.strategy.precision_plugin = Half(self.precision_plugin.precision)

    def fit(self, model: Any, *args: Any, ckpt_path: Any = None, **kwargs: Any) -> None:
        """As Lightning's; ``ckpt_path`` may be ``last``, ``best``, a run folder, a checkpoint folder or a file."""
        with handlers_kept(), distributed.left_at_exit():
            try:
                super().fit(model, *args, ckpt_path=self.checkpoint(ckpt_path), **kwargs)
            except BaseException:  # Lightning then leaves the data open and, in a validation, the workers of training alive
                working.end(loaders(self))
                if (data := getattr(self, "datamodule", None)) is not None:
                    data.teardown("fit")
                raise

    def validate(self, *args: Any, ckpt_path: Any = None, **kwargs: Any) -> Any:
        """As Lightning's, with the paths of ``fit``."""
        with distributed.left_at_exit():
            return super().validate(*args, ckpt_path=self.checkpoint(ckpt_path), **kwargs)

    def test(self, *args: Any, ckpt_path: Any = None, **kwargs: Any) -> Any:
        """As Lightning's, with the paths of ``fit``."""
        with distributed.left_at_exit():
            return super().test(*args, ckpt_path=self.checkpoint(ckpt_path), **kwargs)

    def predict(self, *args: Any, ckpt_path: Any = None, **kwargs: Any) -> Any:
        """As Lightning's, with the paths of ``fit``."""
        with distributed.left_at_exit():
            return super().predict(*args, ckpt_path=self.checkpoint(ckpt_path), **kwargs)

    def checkpoint(self, spec: Any) -> str | None:
        """The path for a ``ckpt_path`` as a user writes it.

        Raises:
            CheckpointError: there is none.
        """
        self.loading = None
        if spec is None:
            return None
        keepers = [callback for callback in self.callbacks if isinstance(callback, Checkpoints)]
        folder = keepers[0].given if keepers and keepers[0].given else os.path.join(self.default_root_dir, "checkpoints")
        path = resolve(str(spec), Path(folder))
        self.loading = None if path is None else str(path)
        return self.loading
