"""Masked-word accuracy, with the image (or its regions) in sight and without it: the difference is what the image tells."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from mmpretrain.evaluate.pretrained import Pretrained
from mmpretrain.evaluate.result import Result, Stamp
from mmpretrain.evaluate.samples import EvalSet, chosen, chunks, with_visuals
from mmpretrain.random import key_of, stream
from mmpretrain.types import Batch, Sample

_MASK = stream("evaluate/mlm")


def true_text(sample: Sample) -> str | None:
    """The first caption, or the first true statement, or None."""
    true = [*sample.captions, *(statement.text for statement in sample.statements if statement.label)]
    return true[0] if true else None


def masked_accuracy(pretrained: Pretrained, data: EvalSet, limit: int | None = 1000, batch_size: int = 32, seed: int = 0) -> list[Result]:
    """Share of the chosen tokens that the masked-word head gets right, by the masking rule of the recipe with fixed draws.

    Args:
        pretrained: a fusion model with a masked-language objective; others give an empty list.
        data: samples with one image and a true text.
        limit: at most so many samples, evenly spread over the set; None for all.
        batch_size: samples of one forward.
        seed: of the masks; the same masks for every model with this tokenizer.

    Returns:
        ``mlm/<set>/accuracy`` and ``mlm/<set>/accuracy_without_image``; nothing where no token was chosen.
    """
    name = next((n for n in pretrained.objectives if _is_mlm(pretrained.objectives[n])), None)
    if name is None:
        return []
    wanted = chosen(data, limit, lambda sample: pretrained.shows(sample) and true_text(sample) is not None)
    totals, seen = {"": [0.0, 0.0], "_without_image": [0.0, 0.0]}, 0
    for part in chunks(with_visuals(pretrained, wanted), batch_size):
        keys = torch.tensor([key_of(_MASK, seed, seen + i) for i in range(len(part))], dtype=torch.int64, device=pretrained.device)
        text = pretrained.text(pretrained.tokenize([true_text(sample) or "" for sample, _ in part]))
        shown = pretrained.visuals([found for _, found in part])
        batch = Batch(keys=tuple(sample.key for sample, _ in part), draw_keys_B=keys, text=text, **shown)
        for suffix, given in (("", batch), ("_without_image", batch._replace(image=None, regions=None))):
            right, count = pretrained.run(partial(_step, name=name, batch=given))
            totals[suffix][0] += right
            totals[suffix][1] += count
        seen += len(part)
    if not totals[""][1]:
        return []
    protocol = f"{seen} texts, tokens chosen by the recipe's masking rule with seed {seed}, count is tokens"
    stamp = Stamp(f"{data.name}@{data.fingerprint}", protocol, pretrained.precision, int(totals[""][1]), pretrained.weights)
    return [Result(f"mlm/{data.name}/accuracy{suffix}", right / count, None, stamp) for suffix, (right, count) in totals.items()]


def _is_mlm(objective: Any) -> bool:
    return getattr(objective, "kind", None) == "fused" and hasattr(objective, "predict") and hasattr(objective, "whole_word")


def _step(model: torch.nn.Module, objectives: Mapping[str, Any], name: str, batch: Batch) -> tuple[float, float]:
    objective = objectives[name]
    corrupted = objective.corrupt(batch, {})
    right, count = objective(model(corrupted, "fused"), corrupted).stats["accuracy"]
    return float(right), float(count)
