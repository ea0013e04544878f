"""Leaves out what Lightning says at every start and nobody acts upon; everything else it says is kept."""

from __future__ import annotations

import logging
import warnings

SAYINGS = ("Tip:", "GPU available", "TPU available", "HPU available", "`weights_only` was not set", "`Trainer.fit` stopped", "Seed set to")
WARNINGS = (
    ".*isinstance.treespec, LeafSpec.* is deprecated.*",
    ".*You have overridden .on_before_batch_transfer.*",  # on purpose: the step owns the transfer
    ".*does not have many workers.*",
    ".*num_workers. argument.*",
    ".*It is recommended to use .self.log.*sync_dist=True.*",  # what is logged is alike on every rank already, or is summed by us
)
LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
    "lightning.pytorch.trainer.connectors.checkpoint_connector",
)


def _kept(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not any(saying in text for saying in SAYINGS)


def one_line(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """A warning as a user reads it: without the place in the code, and without the line of code."""
    return f"warning: {message}\n"


def quieten() -> None:
    """Install the filters; harmless when called again."""
    warnings.formatwarning = one_line
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if _kept not in logger.filters:
            logger.addFilter(_kept)
    for text in WARNINGS:
        warnings.filterwarnings("ignore", message=text)
