"""Samples as the measurements read them: a fixed choice of a set, its images decoded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from mmpretrain.evaluate.pretrained import Pretrained
from mmpretrain.types import Sample


class EvalSet(NamedTuple):
    """A named set of samples. ``samples`` reads one at a time: ``len`` and ``[i]``."""

    name: str
    samples: Sequence[Sample]
    fingerprint: str


def choose(size: int, limit: int | None) -> np.ndarray:
    """Indices of at most ``limit`` samples, evenly spread over the set, so that every shard has its part: int64, ascending."""
    if limit is None or limit >= size:
        return np.arange(size)
    if limit < 1:
        raise ValueError(f"a subset needs at least one sample, not {limit}")
    return np.arange(limit) * size // limit


def chosen(data: EvalSet, limit: int | None, keep: Callable[[Sample], bool] = lambda sample: True) -> Iterator[Sample]:
    """The samples of a subset that ``keep`` accepts, in order."""
    for index in choose(len(data.samples), limit):
        sample = data.samples[int(index)]
        if keep(sample):
            yield sample


def single_image(sample: Sample) -> bool:
    """Whether the sample has exactly one image."""
    return len(sample.images) == 1


def picture(pretrained: Pretrained, sample: Sample) -> Tensor:
    """The image of a sample as the model wants it: uint8 (3, H, W).

    Raises:
        ValueError: the image cannot be decoded; the message names the sample.
    """
    try:
        return pretrained.transform(sample.images[0])
    except (ValueError, OSError) as error:
        raise ValueError(f"sample {sample.key}: {error}") from None
