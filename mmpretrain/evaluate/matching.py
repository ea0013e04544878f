"""Image-text matching: does the model tell true sentences from false ones?

Two questions, two numbers. ``accuracy``: the sign of the log-odds, on as many true as false pairs (fusion models only; chance 50 %, for
labelled statements the share of the more frequent label). ``preferred``: of a true and a false caption of one image, does the true one
score higher (all models; chance 50 %, a tie counts one half).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmpretrain.evaluate.pretrained import Pretrained
from mmpretrain.evaluate.result import Result, Stamp
from mmpretrain.evaluate.retrieval import tie_tolerance
from mmpretrain.evaluate.samples import EvalSet, chosen, picture, single_image
from mmpretrain.random import key_of, stream
from mmpretrain.types import Sample, Tokens

_OTHER = stream("evaluate/matching/other")
_EDIT = stream("evaluate/matching/edit")


class _Pairs(NamedTuple):
    """A true and a false text for the same image, with what makes the text false."""

    image: list[int]
    true: list[str]
    false: list[str]
    kind: list[str]


def matching(pretrained: Pretrained, data: EvalSet, limit: int | None = 1000) -> list[Result]:
    """Accuracy on random negatives, on minimal edits (all and by kind), and on labelled statements, as far as the data have them.

    Args:
        pretrained: a dual encoder or a fusion model with a matching head.
        data: samples with one image; captions and ``meta["edits"]``, or statements.
        limit: at most so many samples, evenly spread over the set; None for all.

    Returns:
        an empty list when no sample has captions or statements.
    """
    samples = [sample for sample in chosen(data, limit, single_image) if sample.captions or sample.statements]
    pixels = [picture(pretrained, sample) for sample in samples]
    results = []
    if sum(1 for sample in samples if sample.captions) > 1:
        results += _compare(pretrained, data, pixels, random_pairs(samples), "random", "a caption of another image")
        edits = edit_pairs(samples)
        if edits.image:
            results += _compare(pretrained, data, pixels, edits, "edits", "the caption with one minimal edit")
    return results + _statements(pretrained, data, samples, pixels)


def random_pairs(samples: Sequence[Sample]) -> _Pairs:
    """For each image one of its captions and a caption of another image that is none of its own."""
    owners = [i for i, sample in enumerate(samples) if sample.captions]
    pairs = _Pairs([], [], [], [])
    for place, i in enumerate(owners):
        own = samples[i]
        true = own.captions[key_of(_OTHER, i, 0) % len(own.captions)]
        for attempt in range(1, 9):
            other = samples[owners[(place + 1 + key_of(_OTHER, i, attempt) % (len(owners) - 1)) % len(owners)]]
            false = other.captions[key_of(_OTHER, i, attempt, 1) % len(other.captions)]
            if false not in own.captions:
                pairs.image.append(i), pairs.true.append(true), pairs.false.append(false), pairs.kind.append("random")
                break
    return pairs


def edit_pairs(samples: Sequence[Sample]) -> _Pairs:
    """For each image and each kind of edit that it has, one caption and its edit."""
    pairs = _Pairs([], [], [], [])
    for i, sample in enumerate(samples):
        by_kind: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for caption, edits in zip(sample.captions, sample.meta.get("edits") or (), strict=False):
            for edit in edits:
                by_kind[str(edit["kind"])].append((caption, edit["text"]))
        for kind in sorted(by_kind):
            true, false = by_kind[kind][key_of(_EDIT, i, stream(kind)) % len(by_kind[kind])]
            pairs.image.append(i), pairs.true.append(true), pairs.false.append(false), pairs.kind.append(kind)
    return pairs


def scores(pretrained: Pretrained, pixels: Sequence[Tensor], image_P: Sequence[int], texts: Sequence[str]) -> np.ndarray:
    """Cosines or log-odds of pairs: float64 (P,)."""
    tokens: list[Tokens] = pretrained.tokenize(list(texts))
    image_P = np.asarray(image_P, dtype=np.int64)
    if pretrained.dual:
        found = (pretrained.encode_pixels(pixels)[image_P] * pretrained.encode_tokens(tokens)).sum(dim=1)
    else:
        found = pretrained.match(pixels, tokens, image_P, np.arange(len(tokens)))
    if not bool(torch.isfinite(found).all()):
        raise ValueError("matching: the model gives scores that are not finite")
    return found.double().numpy()


def _compare(pretrained: Pretrained, data: EvalSet, pixels: Sequence[Tensor], pairs: _Pairs, name: str, what: str) -> list[Result]:
    both = scores(pretrained, pixels, [*pairs.image, *pairs.image], [*pairs.true, *pairs.false])
    true, false = np.split(both, 2)
    difference, tolerance = true - false, tie_tolerance(pretrained)
    preferred = np.where(np.abs(difference) <= tolerance, 0.5, difference > 0)
    correct = ((true > 0).astype(float) + (false <= 0)) / 2
    protocol = f"a true caption against {what}"
    kinds = np.asarray(pairs.kind)
    groups: Mapping[str, Any] = {"": np.ones(len(kinds), dtype=bool)}
    if name != "random":
        groups |= {f"/{kind}": kinds == kind for kind in sorted(set(pairs.kind))}
    results = []
    for suffix, chosen_P in groups.items():
        stamp = Stamp(f"{data.name}@{data.fingerprint}", protocol, pretrained.precision, int(chosen_P.sum()), pretrained.weights)
        prefix = f"matching/{data.name}/{name}{suffix}"
        if not pretrained.dual:
            half = stamp._replace(protocol=f"{protocol}; sign of the log-odds, half the pairs true", count=2 * stamp.count)
            results.append(Result(f"{prefix}/accuracy", float(correct[chosen_P].mean()), 0.5, half))
        results.append(Result(f"{prefix}/preferred", float(preferred[chosen_P].mean()), 0.5, stamp))
    return results


def _statements(pretrained: Pretrained, data: EvalSet, samples: Sequence[Sample], pixels: Sequence[Tensor]) -> list[Result]:
    rows = [(i, s.text, s.label) for i, sample in enumerate(samples) for s in sample.statements]
    if not rows or pretrained.dual:
        return []
    image, text, label = zip(*rows, strict=True)
    correct = (scores(pretrained, pixels, image, text) > 0) == np.asarray(label)
    share = float(np.mean(label))
    protocol = "labelled statements, sign of the log-odds; chance is the share of the more frequent label"
    stamp = Stamp(f"{data.name}@{data.fingerprint}", protocol, pretrained.precision, len(rows), pretrained.weights)
    return [Result(f"matching/{data.name}/statements/accuracy", float(correct.mean()), max(share, 1 - share), stamp)]
