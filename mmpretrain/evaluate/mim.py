"""Accuracy of the codes of masked patches; of models that read text too, with the own text in sight, with that of another sample, and
without any: the differences are what the text tells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmpretrain.evaluate.mlm import most_frequent, true_text
from mmpretrain.evaluate.pretrained import Pretrained
from mmpretrain.evaluate.result import Result, Stamp
from mmpretrain.evaluate.samples import EvalSet, chosen, chunks, with_visuals
from mmpretrain.random import key_of, stream
from mmpretrain.types import Batch, Sample, Tokens, Visual

_MASK = stream("evaluate/mim")


def masked_codes(pretrained: Pretrained, data: EvalSet, limit: int | None = 1000, batch_size: int = 32, seed: int = 0) -> list[Result]:
    """Share of the masked patches whose code the head gets right, by the masks of the recipe with fixed draws.

    Args:
        pretrained: a model with an objective that predicts the codes of masked patches; others give an empty list.
        data: samples with a picture and codes, and a true text where the model reads text.
        limit: at most so many samples, evenly spread over the set; None for all.
        batch_size: samples of one forward.
        seed: of the masks; the same masks for every model with these patches.

    Returns:
        ``mim/<set>/accuracy``, whose chance is the share of the most frequent code among the masked patches; of models that read text
        ``mim/<set>/accuracy_other_text``, under that of another sample, where there is another, and ``mim/<set>/accuracy_without_text``.
        Nothing where no patch was masked.
    """
    name = next((n for n in pretrained.objectives if _is_mim(pretrained.objectives[n])), None)
    if name is None or not pretrained.shown.has_codes:
        return []
    reads = pretrained.model.spec.vocab_size > 0 and pretrained.tokenizer is not None
    wanted = chosen(data, limit, lambda sample: _fits(pretrained, sample) and (not reads or true_text(sample) is not None))
    totals, labels, seen = dict[str, list[float]](), torch.zeros(0, dtype=torch.int64), 0
    for part, texts, others in _batches(pretrained, with_visuals(pretrained, wanted), batch_size, reads):
        keys = torch.tensor([key_of(_MASK, seed, seen + i) for i in range(len(part))], dtype=torch.int64, device=pretrained.device)
        batch = Batch(tuple(sample.key for sample, _ in part), keys, **pretrained.visuals([visual for _, visual in part]))
        views = {"": batch if texts is None else batch._replace(text=pretrained.text(texts))}
        views |= {"_other_text": batch._replace(text=pretrained.text(others))} if others else {}
        views |= {"_without_text": batch} if texts is not None and pretrained.model.spec.alone else {}
        for suffix, given in views.items():
            right, count, found = pretrained.run(partial(_step, name=name, batch=given))
            total = totals.setdefault(suffix, [0.0, 0.0])
            total[0], total[1] = total[0] + right, total[1] + count
            labels = torch.cat([labels, found]) if suffix == "" else labels
        seen += len(part)
    protocol = f"{seen} pictures, patches chosen by the recipe's masks with seed {seed}, count is patches{pretrained.how}"
    results = []
    for suffix, (right, count) in totals.items():
        stamp = Stamp(f"{data.name}@{data.fingerprint}", protocol, pretrained.precision, int(count), pretrained.weights)
        results += [Result(f"mim/{data.name}/accuracy{suffix}", right / count, most_frequent(labels), stamp)] if count else []
    return results


def _is_mim(objective: Any) -> bool:
    return getattr(objective, "kind", None) == "fused" and getattr(objective, "predicts", None) == "codes"


def _fits(pretrained: Pretrained, sample: Sample) -> bool:
    return pretrained.shows(sample) and sample.codes is not None


def _batches(
    pretrained: Pretrained, samples: Iterator[tuple[Sample, Visual]], batch_size: int, reads: bool
) -> Iterator[tuple[list[tuple[Sample, Visual]], list[Tokens] | None, list[Tokens] | None]]:
    """Samples, their texts, and for each the text of another one: that half a batch further on. None where the model reads none, or the
    only sample is alone."""
    before: list[Tokens] = []
    for part in chunks(samples, batch_size):
        if not reads:
            yield part, None, None
            continue
        tokens = pretrained.tokenize([true_text(sample) or "" for sample, _ in part])
        half = len(tokens) // 2
        yield part, tokens, (tokens[half:] + tokens[:half] if half else before[-1:])
        before = tokens


def _step(model: torch.nn.Module, objectives: Mapping[str, Any], name: str, batch: Batch) -> tuple[float, float, Tensor]:
    """Right guesses, guesses, and the codes that stood there."""
    objective = objectives[name]
    corrupted = objective.corrupt(batch, {})
    right, count = objective(model(corrupted, "fused"), corrupted).stats["accuracy"]
    return float(right), float(count), corrupted.targets[name].labels_R.cpu()
