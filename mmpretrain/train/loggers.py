"""Trackers that fail do not end a run: one warning for each, every failure counted."""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from mmpretrain.train import events

METHODS = ("log_metrics", "log_hyperparams", "log_graph", "save", "finalize", "after_save_checkpoint")
MOST = 10  # failures in a row after which a logger is asked no more: each may cost a time-out


def tolerate(trainer: pl.Trainer) -> None:
    """Guard every method by which training reaches its loggers. May be called again."""
    for logger in trainer.loggers:
        if "mmpretrain_failures" not in logger.__dict__:
            logger.__dict__["mmpretrain_failures"] = [0, 0]  # in all, in a row
            for name in METHODS:
                if callable(method := getattr(logger, name, None)):
                    setattr(logger, name, partial(_call, trainer, logger, method))


def _call(trainer: pl.Trainer, logger: Any, method: Any, *args: Any, **kwargs: Any) -> Any:
    failures = logger.__dict__["mmpretrain_failures"]
    if failures[1] >= MOST:
        return None
    before = vars(logger).get("failures", 0)  # of a logger that guards itself
    try:
        found = method(*args, **kwargs)
    except Exception as error:  # noqa: BLE001  a tracker that fails, in whatever way, must not end a run
        failures[0], failures[1] = failures[0] + 1, failures[1] + 1
        events.note(trainer, "logger_failed", logger=type(logger).__name__, error=f"{type(error).__name__}: {error}"[:300])
        if failures[0] == 1:
            rank_zero_warn(f"{type(logger).__name__} failed, training goes on: {type(error).__name__}: {error}")
        return None
    failures[1] = 0
    if vars(logger).get("failures", 0) > before:
        events.note(trainer, "logger_failed", logger=type(logger).__name__)
    return found
