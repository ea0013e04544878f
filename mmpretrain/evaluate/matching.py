"""Image-text matching: does the model tell true sentences from false ones?

Two questions, two numbers. ``accuracy``: the sign of the log-odds, on as many true as false pairs (fusion models only; chance 50 %, for
labelled statements the share of the more frequent label). ``preferred``: of a true and a false caption of one image, does the true one
score higher (all models; chance 50 %, a tie counts one half).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from mmpretrain.evaluate.pretrained import Pretrained
from mmpretrain.evaluate.result import Result, Stamp
from mmpretrain.evaluate.retrieval import tie_tolerance
from mmpretrain.evaluate.samples import EvalSet, Progress, chosen, onward, visual
from mmpretrain.random import key_of, stream
from mmpretrain.types import Sample, Visual

_OTHER = stream("evaluate/matching/other")
_EDIT = stream("evaluate/matching/edit")
_AGAINST = {"random": "a caption of another image", "edits": "the caption with one minimal edit"}
IMAGES = 256  # samples whose pictures or regions are held at a time


class _Pairs(NamedTuple):
    """A true and a false text for the same image, with what makes the text false."""

    image: list[int]
    true: list[str]
    false: list[str]
    kind: list[str]

    def add(self, image: int, true: str, false: str, kind: str) -> None:
        """One more pair."""
        self.image.append(image)
        self.true.append(true)
        self.false.append(false)
        self.kind.append(kind)


def matching(pretrained: Pretrained, data: EvalSet, limit: int | None = 1000, progress: Progress | None = None) -> list[Result]:
    """Accuracy on random negatives, on minimal edits (all and by kind), and on labelled statements, as far as the data have them.

    Args:
        pretrained: a dual encoder or a fusion model with a matching head.
        data: samples with what the model is shown; captions and ``meta["edits"]``, or statements.
        limit: at most so many samples, evenly spread over the set; None for all.
        progress: called with (done, total) pairs.

    Returns:
        an empty list when no sample has captions or statements.
    """
    samples = [sample for sample in chosen(data, limit, pretrained.shows) if sample.captions or sample.statements]
    pairs = {"random": random_pairs(samples), "edits": edit_pairs(samples)}
    told = [] if pretrained.dual else [(i, s.text, s.label) for i, sample in enumerate(samples) for s in sample.statements]
    image_P = [i for p in pairs.values() for i in (*p.image, *p.image)] + [i for i, _, _ in told]
    texts = [text for p in pairs.values() for text in (*p.true, *p.false)] + [text for _, text, _ in told]
    if not texts:
        return []
    found, results, start = scores(pretrained, samples, image_P, texts, progress), [], 0
    for name, p in pairs.items():
        true, false = np.split(found[start : start + 2 * len(p.image)], 2)
        start += 2 * len(p.image)
        results += _compare(pretrained, data, p, name, true, false)
    return results + _statements(pretrained, data, found[start:], np.asarray([label for _, _, label in told]))


def random_pairs(samples: Sequence[Sample]) -> _Pairs:
    """For each image one of its captions and a caption of another image that is none of its own."""
    owners = [i for i, sample in enumerate(samples) if sample.captions]
    pairs = _Pairs([], [], [], [])
    if len(owners) < 2:
        return pairs
    for place, i in enumerate(owners):
        own = samples[i]
        true = own.captions[key_of(_OTHER, i, 0) % len(own.captions)]
        for attempt in range(1, 9):
            other = samples[owners[(place + 1 + key_of(_OTHER, i, attempt) % (len(owners) - 1)) % len(owners)]]
            false = other.captions[key_of(_OTHER, i, attempt, 1) % len(other.captions)]
            if false not in own.captions:
                pairs.add(i, true, false, "random")
                break
    return pairs


def edit_pairs(samples: Sequence[Sample]) -> _Pairs:
    """For each image and each kind of edit that it has, one caption and its edit."""
    pairs = _Pairs([], [], [], [])
    for i, sample in enumerate(samples):
        by_kind: dict[str, list[tuple[str, str]]] = defaultdict(list)
        # not strict: data without edits, or with edits of its first captions only, give no pair for the other captions
        for caption, edits in zip(sample.captions, sample.meta.get("edits") or (), strict=False):
            for edit in edits:
                by_kind[str(edit["kind"])].append((caption, edit["text"]))
        for kind in sorted(by_kind):
            true, false = by_kind[kind][key_of(_EDIT, i, stream(kind)) % len(by_kind[kind])]
            pairs.add(i, true, false, kind)
    return pairs


def scores(
    pretrained: Pretrained, samples: Sequence[Sample], images: Sequence[int], texts: Sequence[str], progress: Progress | None = None
) -> np.ndarray:
    """Cosines or log-odds of text p with the image of sample ``images[p]``: float64 (P,), NaN where it cannot be decoded.

    Each image is decoded once, and only a part of them is held at a time.
    """
    tokens, image_P = pretrained.tokenize(list(texts)), np.asarray(images, dtype=np.int64)
    found = np.full(len(tokens), np.nan)
    text_PE, done = pretrained.encode_tokens(tokens) if pretrained.dual else None, 0
    for start in range(0, len(samples), IMAGES):
        inside = np.flatnonzero((image_P >= start) & (image_P < start + IMAGES))
        needed: dict[int, Visual | None] = {int(i): visual(pretrained, samples[i]) for i in np.unique(image_P[inside])}
        decoded = {i: found for i, found in needed.items() if found is not None}
        slot, visuals = {i: place for place, i in enumerate(decoded)}, list(decoded.values())
        inside = np.array([p for p in inside if int(image_P[p]) in slot], dtype=np.int64)
        if not len(inside):
            continue
        rows = np.array([slot[int(i)] for i in image_P[inside]])
        if text_PE is not None:
            part = (pretrained.encode_pixels(visuals)[rows] * text_PE[inside]).sum(dim=1)
            if progress is not None:
                progress(done + len(inside), len(tokens))
        else:
            told = onward(progress, done, len(tokens))
            part = pretrained.match(visuals, [tokens[p] for p in inside], rows, np.arange(len(inside)), told)
        done += len(inside)
        if not bool(torch.isfinite(part).all()):
            raise ValueError("matching: the model gives scores that are not finite")
        found[inside] = part.double().numpy()
    return found


def _compare(pretrained: Pretrained, data: EvalSet, pairs: _Pairs, name: str, true: np.ndarray, false: np.ndarray) -> list[Result]:
    seen = ~np.isnan(true)
    true, false, kinds = true[seen], false[seen], np.asarray(pairs.kind, dtype=str)[seen]
    if not len(true):
        return []
    difference = true - false
    preferred = np.where(np.abs(difference) <= tie_tolerance(pretrained), 0.5, difference > 0)
    correct = ((true > 0).astype(float) + (false <= 0)) / 2
    groups = {"": np.ones(len(true), dtype=bool)}
    if name == "edits":
        groups |= {f"/{kind}": kinds == kind for kind in sorted(set(kinds.tolist()))}
    results = []
    for suffix, group in groups.items():
        protocol = f"a true caption against {_AGAINST[name]}"
        name_of, how = f"{data.name}@{data.fingerprint}", pretrained.how
        stamp = Stamp(name_of, protocol + how, pretrained.precision, int(group.sum()), pretrained.weights)
        prefix = f"matching/{data.name}/{name}{suffix}"
        if not pretrained.dual:
            sign = f"{protocol}; sign of the log-odds, half the pairs true{how}"
            half = stamp._replace(protocol=sign, count=2 * stamp.count)
            results.append(Result(f"{prefix}/accuracy", float(correct[group].mean()), 0.5, half))
        results.append(Result(f"{prefix}/preferred", float(preferred[group].mean()), 0.5, stamp))
    return results


def _statements(pretrained: Pretrained, data: EvalSet, found: np.ndarray, labels: np.ndarray) -> list[Result]:
    seen = ~np.isnan(found)
    found, labels = found[seen], labels[seen]
    if not len(found):
        return []
    share = float(np.mean(labels))
    protocol = f"labelled statements, sign of the log-odds; chance is the share of the more frequent label{pretrained.how}"
    stamp = Stamp(f"{data.name}@{data.fingerprint}", protocol, pretrained.precision, len(found), pretrained.weights)
    return [Result(f"matching/{data.name}/statements/accuracy", float(((found > 0) == labels).mean()), max(share, 1 - share), stamp)]
