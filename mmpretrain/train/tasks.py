"""Which objectives a step computes: a pure function of (seed, step) and of the source that its batch comes from, so alike on every rank."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from mmpretrain.random import key_of, stream
from mmpretrain.train.pretraining import Pretraining


def drawable(root: Pretraining) -> list[str]:
    """The views that ``sample`` draws from: those whose output no other reads."""
    read = {view.after for view in root.views.values()}
    return [name for name in root.views if name not in read]


def checked(root: Pretraining, schedule: str, weights: Mapping[str, float] | None) -> Mapping[str, float] | None:
    """The weights.

    Raises:
        ValueError: they name what is not drawn, are no shares, or nothing is drawn.
    """
    if weights is None:
        return None
    if schedule != "sample":
        raise ValueError(f"model.task_weights goes with model.task_schedule=sample, not {schedule}; set model.task_weights: null")
    names = drawable(root)
    if unknown := [name for name in weights if name not in names]:
        raise ValueError(f"model.task_weights: there is no view {unknown[0]!r} to draw; views are {', '.join(names)}")
    if any(not 0 <= weight < math.inf for weight in weights.values()) or not any(weights.get(name, 1.0) > 0 for name in names):
        raise ValueError(f"model.task_weights={dict(weights)}: relative frequencies of at least 0, one of them above")
    return weights


def tasks(root: Pretraining, step: int, source: str, seed: int, schedule: str, weights: Mapping[str, float] | None) -> list[str]:
    """The objectives of optimiser step ``step``, out of those that read ``source``.

    Args:
        root: the model and its objectives.
        step: of the optimiser.
        source: of the batch; ``""``: one without a name, which all objectives read.
        seed: of the draw.
        schedule: ``all`` or ``sample`` (one view, with those whose output it reads).
        weights: view -> relative frequency for ``sample``; equal if None.
    """
    reading = root.reading(source)
    if schedule == "all":
        return reading
    names = [name for name in drawable(root) if set(root.views[name].names) & set(reading)]
    if not names:
        return reading
    shares = torch.tensor([float((weights or {}).get(name, 1.0)) for name in names], dtype=torch.float64)
    if not shares.sum() > 0:
        raise ValueError(f"model.task_weights: the views that read {source or 'a batch'} have no weight: {', '.join(names)}")
    point = (key_of(seed, step, stream("train/task")) & ((1 << 53) - 1)) / (1 << 53) * shares.sum()
    drawn: str | None = names[min(int(torch.searchsorted(shares.cumsum(0), point, right=True)), len(names) - 1)]
    chosen: list[str] = []
    while drawn is not None:
        chosen = [*root.views[drawn].names, *chosen]
        drawn = root.views[drawn].after
    return [name for name in chosen if name in reading]
