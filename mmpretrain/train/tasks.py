"""Which objectives a step computes: a pure function of (seed, step) and of the source that its batch comes from, so alike on every rank."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from mmpretrain.random import key_of, stream
from mmpretrain.train.pretraining import Pretraining


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
    read = {view.after for view in root.views.values()}
    names = [name for name, view in root.views.items() if name not in read and set(view.names) & set(reading)]
    if not names:
        return reading
    shares = torch.tensor([float((weights or {}).get(name, 1.0)) for name in names], dtype=torch.float64)
    point = (key_of(seed, step, stream("train/task")) & ((1 << 53) - 1)) / (1 << 53) * shares.sum()
    drawn: str | None = names[min(int(torch.searchsorted(shares.cumsum(0), point, right=True)), len(names) - 1)]
    chosen: list[str] = []
    while drawn is not None:
        chosen = [*root.views[drawn].names, *chosen]
        drawn = root.views[drawn].after
    return [name for name in chosen if name in reading]
