"""How well a left-to-right model predicts texts and codes, and how much of a picture its text tells: with the own text, with that of
another sample, and without any."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from mmpretrain.evaluate.mlm import most_frequent, true_text
from mmpretrain.evaluate.pretrained import Pretrained
from mmpretrain.evaluate.result import Result, Stamp
from mmpretrain.evaluate.samples import EvalSet, chosen, chunks, with_visuals
from mmpretrain.types import Batch, Sample, Text, Tokens, Visual

OWN, OTHER, NONE = "", "_other_text", "_without_text"


def likelihood(pretrained: Pretrained, data: EvalSet, limit: int | None = 1000, batch_size: int = 32) -> list[Result]:
    """Mean loss of every objective that predicts the next token, in nats for each token.

    Args:
        pretrained: a model of the kind ``causal``; others give an empty list.
        data: samples with codes and a true text.
        limit: at most so many samples, evenly spread over the set; None for all.
        batch_size: samples of one forward.

    Returns:
        for each objective ``likelihood/<set>/<objective>/loss``, ``/perplexity`` (its exponential) and ``/accuracy`` (of the most probable
        token; its chance is the share of the most frequent one). Of those that predict codes ``/loss_other_text``, under the text of
        another sample, where there is another, and ``/loss_without_text``, under no text: what the picture is predicted from by guidance,
        of little meaning where no captions were dropped in training. Nothing where no token counts.
    """
    names = [name for name in pretrained.objectives if hasattr(pretrained.objectives[name], "surprisal")]
    if pretrained.kind != "causal" or not names:
        return []
    wanted = chosen(data, limit, lambda sample: pretrained.shows(sample) and true_text(sample) is not None)
    totals, labels, seen = dict[tuple[str, str], torch.Tensor](), {name: torch.zeros(0, dtype=torch.int64) for name in names}, 0
    for part, others in _with_others(pretrained, with_visuals(pretrained, wanted), batch_size):
        text = pretrained.text([tokens for _, _, tokens in part])
        keys = torch.zeros(len(part), dtype=torch.int64, device=pretrained.device)
        batch = Batch(tuple(sample.key for sample, _, _ in part), keys, text, **pretrained.visuals([visual for _, visual, _ in part]))
        views = {OWN: batch, NONE: batch._replace(text=Text(text.ids_BT, (0,) * len(part)))}
        views |= {OTHER: batch._replace(text=pretrained.text(others))} if others else {}
        for suffix, given in views.items():
            for name, found in pretrained.run(partial(_step, names=names, batch=given, only_codes=suffix != OWN)).items():
                totals[name, suffix] = totals.get((name, suffix), torch.zeros(3, dtype=torch.float64)) + found
        for name in names:
            labels[name] = torch.cat([labels[name], pretrained.objectives[name].targets(batch).cpu()])
        seen += len(part)
    protocol = f"{seen} first true texts, count is tokens{pretrained.how}"
    rows: list[tuple[str, float, float | None, int]] = []
    for (name, suffix), (loss, count, right) in ((key, value.tolist()) for key, value in sorted(totals.items()) if value[1] > 0):
        values = {f"loss{suffix}": loss / count}
        values |= {"perplexity": math.exp(loss / count), "accuracy": right / count} if suffix == OWN else {}
        chance = most_frequent(labels[name])
        rows += [(f"{name}/{what}", value, chance if what == "accuracy" else None, int(count)) for what, value in values.items()]
    stamp = partial(Stamp, f"{data.name}@{data.fingerprint}", protocol, pretrained.precision, weights=pretrained.weights)
    return [Result(f"likelihood/{data.name}/{name}", value, chance, stamp(count=count)) for name, value, chance, count in rows]


def _with_others(
    pretrained: Pretrained, samples: Iterator[tuple[Sample, Visual]], batch_size: int
) -> Iterator[tuple[list[tuple[Sample, Visual, Tokens]], list[Tokens]]]:
    """Batches with the tokens of each text, and those of another one for each: that half a batch further on. None where the only sample is
    alone."""
    before: list[Tokens] = []
    for part in chunks(samples, batch_size):
        tokens = pretrained.tokenize([true_text(sample) or "" for sample, _ in part])
        half = len(tokens) // 2
        whole = [(sample, visual, one) for (sample, visual), one in zip(part, tokens, strict=True)]
        yield whole, tokens[half:] + tokens[:half] if half else before[-1:]
        before = tokens


def _step(
    model: torch.nn.Module, objectives: Mapping[str, Any], names: Sequence[str], batch: Batch, only_codes: bool
) -> dict[str, torch.Tensor]:
    """Objective -> float64 (loss, count, right), on the CPU."""
    hidden = model(batch, "causal")
    names = [name for name in names if objectives[name].predicts == "codes"] if only_codes else names
    return {name: torch.stack(objectives[name].surprisal(hidden, batch)).detach().double().cpu() for name in names}
