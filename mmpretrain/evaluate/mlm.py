"""Masked-word accuracy with the image in sight, with that of another sample, and without any: the differences are what the image tells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmpretrain.evaluate.pretrained import Pretrained
from mmpretrain.evaluate.result import Result, Stamp
from mmpretrain.evaluate.samples import EvalSet, chosen, chunks, with_visuals
from mmpretrain.random import key_of, stream
from mmpretrain.types import Batch, Sample, Visual

_MASK = stream("evaluate/mlm")


def true_text(sample: Sample) -> str | None:
    """The first caption, or the first true statement, or None."""
    true = [*sample.captions, *(statement.text for statement in sample.statements if statement.label)]
    return true[0] if true else None


def masked_accuracy(pretrained: Pretrained, data: EvalSet, limit: int | None = 1000, batch_size: int = 32, seed: int = 0) -> list[Result]:
    """Share of the chosen tokens that the masked-word head gets right, by the masking rule of the recipe with fixed draws.

    The text and what is masked of it are the same with every image; tags, where texts are told with them, stay those of the own image.

    Args:
        pretrained: a fusion model with a masked-language objective; others give an empty list.
        data: samples with what the model is shown and a true text.
        limit: at most so many samples, evenly spread over the set; None for all.
        batch_size: samples of one forward.
        seed: of the masks; the same masks for every model with this tokenizer.

    Returns:
        ``mlm/<set>/accuracy``, whose chance is the share of the most frequent token among the chosen; ``mlm/<set>/accuracy_other_image``,
        with that of another sample in its place, where there is another; ``mlm/<set>/accuracy_without_image`` of models that read text
        alone. Nothing where no token was chosen.
    """
    name = next((n for n in pretrained.objectives if _is_mlm(pretrained.objectives[n])), None)
    if name is None:
        return []
    wanted = chosen(data, limit, lambda sample: pretrained.shows(sample) and true_text(sample) is not None)
    totals, labels, seen = dict[str, list[float]](), torch.zeros(0, dtype=torch.int64), 0
    for part, others in _with_others(with_visuals(pretrained, wanted), batch_size):
        keys = torch.tensor([key_of(_MASK, seed, seen + i) for i in range(len(part))], dtype=torch.int64, device=pretrained.device)
        tokens = pretrained.tokenize([true_text(sample) or "" for sample, _ in part])
        text = pretrained.text([pretrained.told(one, visual) for one, (_, visual) in zip(tokens, part, strict=True)])
        batch = Batch(keys=tuple(sample.key for sample, _ in part), draw_keys_B=keys, text=text)
        views = {"": batch._replace(**pretrained.visuals([visual for _, visual in part]))}
        views |= {"_other_image": batch._replace(**pretrained.visuals(others))} if others else {}
        views |= {"_without_image": batch} if pretrained.model.spec.alone else {}
        for suffix, given in views.items():
            total = totals.setdefault(suffix, [0.0, 0.0])
            right, count, found = pretrained.run(partial(_step, name=name, batch=given))
            total[0], total[1] = total[0] + right, total[1] + count
            labels = torch.cat([labels, found]) if suffix == "" else labels
        seen += len(part)
    protocol = f"{seen} texts, tokens chosen by the recipe's masking rule with seed {seed}, count is tokens{pretrained.how}"
    results = []
    for suffix, (right, count) in totals.items():
        stamp = Stamp(f"{data.name}@{data.fingerprint}", protocol, pretrained.precision, int(count), pretrained.weights)
        results += [Result(f"mlm/{data.name}/accuracy{suffix}", right / count, most_frequent(labels), stamp)] if count else []
    return results


def _with_others(
    samples: Iterable[tuple[Sample, Visual]], batch_size: int
) -> Iterator[tuple[list[tuple[Sample, Visual]], list[Visual]]]:
    """Batches with, for each sample, what another one shows: that half a batch further on. None where the only sample is alone."""
    before: list[Visual] = []
    for part in chunks(samples, batch_size):
        visuals = [visual for _, visual in part]
        half = len(visuals) // 2
        yield part, visuals[half:] + visuals[:half] if half else before[-1:]
        before = visuals


def _is_mlm(objective: Any) -> bool:
    return getattr(objective, "kind", None) == "fused" and hasattr(objective, "predict") and hasattr(objective, "whole_word")


def most_frequent(labels_R: Tensor) -> float | None:
    """The share of the most frequent one: the chance level of guessing them. None where there is none."""
    return float(labels_R.bincount().max()) / len(labels_R) if len(labels_R) else None


def _step(model: torch.nn.Module, objectives: Mapping[str, Any], name: str, batch: Batch) -> tuple[float, float, Tensor]:
    """Right guesses, guesses, and the tokens that stood there."""
    objective = objectives[name]
    corrupted = objective.corrupt(batch, {})
    right, count = objective(model(corrupted, "fused"), corrupted).stats["accuracy"]
    return float(right), float(count), corrupted.targets[name].labels_R.cpu()
