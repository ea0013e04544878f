"""Carries out ``model.transforms``: once, alike on every rank, and nothing that a checkpoint is about to overwrite."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from mmpretrain.methods.transform import Around, ModelTransform
from mmpretrain.train import distributed
from mmpretrain.train.pretraining import Pretraining


def transform(root: Pretraining, transforms: Sequence[ModelTransform], trainer: Any) -> None:
    """Apply the transforms to the model of ``root``, in order.

    Args:
        root: with heads bound.
        transforms: those that only initialise are left out where ``trainer`` loads a checkpoint.
        trainer: Lightning's, or None.

    Raises:
        ValueError, OSError: what a transform says on this rank.
        RuntimeError: what one says on another rank, or ranks that do not hold the same values afterwards.
    """
    loading = getattr(trainer, "loading", None) is not None
    chosen = [one for one in transforms if not (loading and one.initialises)]
    if not chosen:
        return
    backend = getattr(getattr(getattr(trainer, "datamodule", None), "tokenizer", None), "backend", None)
    around = Around(root.objectives, None if backend is None else backend.get_vocab(True))
    failure: Exception | None = None
    try:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)  # not where the process's own generator happens to be
            for one in chosen:
                root.model = one(root.model, around)
                if one.said:
                    rank_zero_info(f"model: {one.said}")
    except (ValueError, OSError) as error:
        failure = error
    failures = distributed.gather_objects(None if failure is None else f"{failure}")
    if failure is not None:
        raise failure
    if any(failures):
        rank, said = next((i, one) for i, one in enumerate(failures) if one)
        raise RuntimeError(f"model.transforms failed on rank {rank}: {said}")
    if distributed.is_distributed():
        distributed.agree({"the parameters that model.transforms left": digest(root)})


def digest(module: nn.Module) -> str:
    """A short hash of the sums of all tensors: other values have another one."""
    sums = [(float(t.double().sum()), float(t.double().abs().sum())) for t in module.state_dict().values()]
    return hashlib.sha256(repr(sums).encode()).hexdigest()[:16]
