"""Zero-shot classification: class names in prompt templates, the best scoring class wins (CLIP, arXiv 2103.00020 section 3.1).

Dual encoders: the features of a class are the normalised mean of the normalised features of its prompts. Fusion models: the matching
head scores every prompt, log-odds are averaged. Equal scores count as random order, as in retrieval.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmpretrain.evaluate.pretrained import Pretrained
from mmpretrain.evaluate.ranking import chance_recall, dense_standing
from mmpretrain.evaluate.result import Result, Stamp
from mmpretrain.evaluate.retrieval import PAIRS, tie_tolerance
from mmpretrain.evaluate.samples import EvalSet, chosen, chunks, with_visuals
from mmpretrain.types import Sample, Visual

TEMPLATES = (
    "{}",
    "a {}",
    "a picture of a {}",
    "a photo of a {}",
    "an image of a {}",
    "a drawing of a {}",
    "a close-up of a {}",
    "a small picture of a {}",
    "a bright picture of a {}",
    "a dark picture of a {}",
    "a blurred picture of a {}",
    "a scene with a {}",
    "there is a {} in the picture",
    "this is a {}",
    "the picture shows a {}",
)


class Classes(NamedTuple):
    """Class names, and where a sample says which are right."""

    names: tuple[str, ...]
    label: str = "label"  # key of KEY.json: a name, a number from 0, or a list of them

    def of(self, sample: Sample) -> set[int]:
        """The right classes of a sample; empty where it has no such key.

        Raises:
            ValueError: it names a class that is not in the list.
        """
        value = sample.meta.get(self.label)
        given = [] if value is None else value if isinstance(value, list) else [value]
        found = set()
        for one in given:
            number = self.names.index(one) if one in self.names else one
            if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < len(self.names):
                raise ValueError(f"zero-shot: {sample.key!r} has {self.label}={one!r}, which is none of the {len(self.names)} classes")
            found.add(number)
        return found


def fill(templates: Sequence[str], name: str) -> list[str]:
    """The prompts of a class; "a" before a vowel becomes "an".

    Raises:
        ValueError: a template without ``{}``.
    """
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"zero-shot: the template {template!r} has no {{}} for the class name")
    vowel = name[:1].lower() in "aeiou"
    return [(re.sub(r"\b([aA]) \{\}", r"\1n {}", template) if vowel else template).replace("{}", name) for template in templates]


def classifier(pretrained: Pretrained, classes: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Tensor:
    """One vector of length 1 per class, float32 (C, E): mean of the prompts' vectors, renormalised. Dual encoders only."""
    prompts = [fill(templates, name) for name in classes]
    flat_E = pretrained.encode_text([prompt for group in prompts for prompt in group])
    mean_CE = flat_E.view(len(classes), len(templates), -1).mean(dim=1)
    return torch.nn.functional.normalize(mean_CE, dim=-1)


def class_scorer(pretrained: Pretrained, classes: Sequence[str], templates: Sequence[str]) -> Callable[[Sequence[Tensor | Visual]], Tensor]:
    """A function from transformed images, or what samples show, to scores with every class, float32 (images, C). Texts are read once."""
    if pretrained.dual:
        weight_EC = classifier(pretrained, classes, templates).T
        return lambda visuals: pretrained.encode_pixels(visuals) @ weight_EC
    tokens = pretrained.tokenize([prompt for name in classes for prompt in fill(templates, name)])

    def score(visuals: Sequence[Tensor | Visual]) -> Tensor:
        image_P, text_P = np.divmod(np.arange(len(visuals) * len(tokens)), len(tokens))
        return pretrained.match(visuals, tokens, image_P, text_P).view(len(visuals), len(classes), len(templates)).mean(dim=2)

    return score


def zeroshot(
    pretrained: Pretrained,
    data: EvalSet,
    classes: Sequence[str],
    labels: Callable[[Sample], Collection[int]],
    templates: Sequence[str] = TEMPLATES,
    limit: int | None = None,
    name: str = "zeroshot",
) -> list[Result]:
    """Top-1 and top-5 accuracy of zero-shot classification.

    Args:
        pretrained: a dual encoder, or a fusion model with a matching head.
        data: samples with what the model is shown.
        classes: names, each once.
        labels: the classes that are right for a sample; any of them counts. Samples without one are left out.
        templates: with ``{}`` where the class name goes.
        limit: at most so many samples, evenly spread over the set; None for all (256 for fusion models).
        name: first part of the metric's name.

    Returns:
        an empty list when no sample has a label.
    """
    if len(set(classes)) != len(classes) or len(classes) < 2:
        raise ValueError("zero-shot: needs at least two classes, each named once")
    limit = 256 if limit is None and not pretrained.dual else limit
    wanted = chosen(data, limit, lambda sample: pretrained.shows(sample) and bool(labels(sample)))
    right: list[list[int]] = []
    parts: list[Tensor] = []
    scorer = class_scorer(pretrained, classes, templates)
    size = 256 if pretrained.dual else min(256, max(1, PAIRS // (len(classes) * len(templates))))
    for part in chunks(with_visuals(pretrained, wanted), size):
        right.extend(sorted(set(labels(sample))) for sample, _ in part)
        parts.append(scorer([visual for _, visual in part]))
    if not parts:
        return []
    right_IC = torch.zeros(len(right), len(classes), dtype=torch.bool)
    for i, found in enumerate(right):
        right_IC[i, found] = True
    standing = dense_standing(torch.cat(parts), right_IC, tie_tolerance(pretrained))
    matches = right_IC.sum(dim=1).numpy()
    protocol = f"{len(classes)} classes, {len(templates)} templates, any right class counts, ties in random order{pretrained.how}"
    stamp = Stamp(f"{data.name}@{data.fingerprint}", protocol, pretrained.precision, len(right), pretrained.weights)
    ks = (1, 5) if len(classes) > 5 else (1,)
    return [
        Result(f"{name}/{data.name}/top{k}", float(standing.recall(k).mean()), chance_recall(matches, len(classes), k), stamp) for k in ks
    ]
