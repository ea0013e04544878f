"""Does the image help to guess masked words? The loss with the right image against that with the image of another statement.

    python benchmarks/image_gain.py RUN [RUN ...] --data nlvr_val

For every sample with a true text, tokens are masked by the rule of the run's recipe with fixed draws; the loss of the same tokens is taken
with the sample's own image and with that of a sample with another text. The gain is the mean difference for each masked token, in nats; its
standard error is that of a ratio over samples, however often each is masked anew (``--draws``). Works for every fusion model with a
masked-language objective, on pixels or on regions.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

import mmpretrain
from mmpretrain.cli.resume import find_checkpoint
from mmpretrain.evaluate.mlm import true_text
from mmpretrain.evaluate.samples import EvalSet, chosen, open_set, with_visuals
from mmpretrain.nn.ragged import Layout
from mmpretrain.random import key_of, stream
from mmpretrain.types import Batch, Sample, Visual

MASK = stream("benchmarks/image_gain")


class Gain(NamedTuple):
    """Nats for each masked token."""

    own: float
    other: float
    error: float  # standard error of other - own
    tokens: int

    @property
    def gain(self) -> float:
        return self.other - self.own


def losses(model: torch.nn.Module, objectives: Mapping[str, Any], name: str, batch: Batch) -> tuple[Tensor, Tensor]:
    """Summed loss and number of the masked tokens of each sample: float64 (B,) and (B,)."""
    objective = objectives[name]
    corrupted = objective.corrupt(batch, {})
    target = corrupted.targets[name]
    logits_RV = objective.logits(model(corrupted, "fused"), corrupted).double()
    loss_R = F.cross_entropy(logits_RV, target.labels_R, reduction="none")
    sample_R = Layout(corrupted.text.lengths).sample_N(loss_R.device).index_select(0, target.rows_R)
    zero_B = loss_R.new_zeros(batch.size)
    return zero_B.index_add(0, sample_R, loss_R), zero_B.index_add(0, sample_R, torch.ones_like(loss_R))


def others(samples: Sequence[tuple[Sample, Visual]]) -> list[Visual]:
    """For every sample what one with another text shows, half the set further on where that will do.

    Raises:
        ValueError: all texts are the same.
    """
    texts, count = [true_text(sample) for sample, _ in samples], len(samples)
    found = []
    for place, text in enumerate(texts):
        places = ((place + count // 2 + step) % count for step in range(count))
        other = next((at for at in places if texts[at] != text), None)
        if other is None:
            raise ValueError("all samples have one text; the image of another statement is not there")
        found.append(samples[other][1])
    return found


def image_gain(pretrained: Any, data: EvalSet, limit: int | None = None, batch_size: int = 32, seed: int = 0, draws: int = 1) -> Gain:
    """The gain of a checkpoint on a set, over so many draws of the masks of every sample.

    Raises:
        ValueError: the checkpoint has no masked-language objective, or no token was masked.
    """
    name = next((name for name, one in pretrained.objectives.items() if hasattr(one, "whole_word")), None)
    if name is None:
        raise ValueError(f"{pretrained.source}: no masked-language objective")
    wanted = chosen(data, limit, lambda sample: pretrained.shows(sample) and true_text(sample) is not None)
    samples = list(with_visuals(pretrained, wanted))
    swapped, rows = others(samples), []
    for draw, start in itertools.product(range(draws), range(0, len(samples), batch_size)):
        part = samples[start : start + batch_size]
        keys = torch.tensor([key_of(MASK, seed + draw, start + i) for i in range(len(part))], dtype=torch.int64, device=pretrained.device)
        tokens = pretrained.tokenize([true_text(sample) or "" for sample, _ in part])
        text = pretrained.text([pretrained.told(one, visual) for one, (_, visual) in zip(tokens, part, strict=True)])
        batch = Batch(keys=tuple(sample.key for sample, _ in part), draw_keys_B=keys, text=text)
        own, other = (
            pretrained.run(partial(losses, name=name, batch=batch._replace(**pretrained.visuals(shown))))
            for shown in ([visual for _, visual in part], swapped[start : start + batch_size])
        )
        rows.append(torch.stack([own[0], other[0], own[1]]))
    own_S, other_S, count_S = torch.cat(rows, dim=1).cpu().view(3, draws, -1).sum(1)
    count = float(count_S.sum())
    if not count:
        raise ValueError("no token was masked")
    gain = float((other_S - own_S).sum()) / count
    rest_S = other_S - own_S - gain * count_S
    error = math.sqrt(float((rest_S**2).sum()) * len(count_S) / max(len(count_S) - 1, 1)) / count
    return Gain(float(own_S.sum()) / count, float(other_S.sum()) / count, error, int(count))


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", help="checkpoints, or folders of runs")
    parser.add_argument("--data", required=True, help="a set with captions or labelled statements")
    parser.add_argument("--limit", type=int, help="at most so many samples")
    parser.add_argument("--draws", type=int, default=1, help="of the masks of every sample; more lessen the error")
    options = parser.parse_args(args)
    data = open_set("data", options.data)
    print(f"{'run':40s} {'own image':>10s} {'another':>10s} {'gain':>8s} {'error':>8s} {'errors':>7s} {'tokens':>7s}")
    for run in options.runs:
        found = image_gain(mmpretrain.load(find_checkpoint(run)), data, options.limit, draws=options.draws)
        nats = f"{found.own:10.4f} {found.other:10.4f} {found.gain:8.4f} {found.error:8.4f}"
        print(f"{run:40s} {nats} {found.gain / found.error:7.1f} {found.tokens:7d}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
