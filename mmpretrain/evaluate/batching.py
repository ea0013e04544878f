"""How inputs of a model are sorted and cut into batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from torch import Tensor

from mmpretrain.types import Visual

T = TypeVar("T")

TOKENS_PER_BATCH = 16384  # packed tokens of one forward, image patches included


def as_visual(image: Tensor | Visual) -> Visual:
    """What a sample shows; a transformed picture alone is that of a sample without regions."""
    return image if isinstance(image, Visual) else Visual(image)


def size_of(visual: Visual, text: int = 0) -> tuple[int, ...]:
    """By what inputs are sorted, so that neighbours are alike: sides of the picture, tokens of text and regions, regions alone."""
    regions = 0 if visual.regions is None else len(visual.regions.boxes)
    return (*(() if visual.image is None else visual.image.shape), text + regions, regions)


def cut(order: Sequence[T], cost: Sequence[int], budget: int = TOKENS_PER_BATCH) -> Iterator[Sequence[T]]:
    """Consecutive groups whose padded cost (group size times largest) stays within the budget; a group has at least one item."""
    start, largest = 0, 0
    for i, item in enumerate(cost):
        largest = max(largest, item)
        if i > start and largest * (i - start + 1) > budget:
            yield order[start:i]
            start, largest = i, item
    if start < len(order):
        yield order[start:]
