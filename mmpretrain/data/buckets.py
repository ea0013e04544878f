"""Batches of samples of one shape: what a sample costs, by its lengths in the index, and where the batches of a window end.

Nothing is read or decoded for it. Text tokens are counted from the bytes of the drawn text (``text_bytes`` bytes each, two more for the
special tokens, at most ``data.max_tokens``), those of a second text (tags, another caption) as :mod:`mmpretrain.data.seconds` estimates
them, patches from height and width as the transform will make them, regions as they are counted, at most ``data.regions.most``, image codes
by their grid. What is not read counts nothing; nor do texts that an objective exchanges, and the copies that it puts beside samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mmpretrain.data.errors import DataError
from mmpretrain.data.image import ImageTransform, vilt_size
from mmpretrain.data.units import Units

LENGTHS = ("image", "text", "regions", "codes")


@dataclass(frozen=True)
class Buckets:
    """Shape-aware batches. Inside a window of the order samples are put beside those of their shape; the batches of a window are shuffled.

    Args:
        window: batches of ``data.batch_size`` that are re-ordered together.
        tokens: a batch takes as many samples as fit: the longest of them times their number is at most so many tokens, over all ranks and
            micro-batches (UNITER's rule, arXiv 1909.11740: 10,240); None: batches of ``data.batch_size`` samples.
        by: which lengths count: ``image``, ``text``, ``regions``, ``codes``; each only where it is read.
        multiple: batches of a token budget have a multiple of so many samples, but for the last two of a window.
        text_bytes: bytes of text that make one token.

    Raises:
        DataError: an option out of its range.
    """

    window: int = 16
    tokens: int | None = None
    by: tuple[str, ...] = ("image", "text", "regions", "codes")
    multiple: int = 8
    text_bytes: float = 4.0

    def __post_init__(self) -> None:
        if self.window < 1 or self.multiple < 1 or self.text_bytes <= 0 or (self.tokens is not None and self.tokens < 1):
            raise DataError("data.buckets: window, tokens and multiple must be at least 1, text_bytes positive")
        if not self.by or not set(self.by) <= set(LENGTHS):
            raise DataError(f"data.buckets.by={list(self.by)}; take some of {', '.join(LENGTHS)}")


class Shapes(NamedTuple):
    """Of P samples, int64 each."""

    heights_P: np.ndarray  # of the picture, in pixels, as the model gets it; 0 without one
    widths_P: np.ndarray
    texts_P: np.ndarray  # tokens; 0 without a text
    cost_P: np.ndarray  # tokens, patches, regions and codes together, as ``by`` says


class Ruler:
    """Measures units of some sources.

    Args:
        options: of the buckets.
        image: the transform of pictures; its ``multiple`` is the side of a patch.
        max_tokens: longest text.
        units: of every source.
    """

    def __init__(self, options: Buckets, image: ImageTransform, max_tokens: int, units: Sequence[Units]) -> None:
        self.options, self.image, self.max_tokens, self.units = options, image, max_tokens, list(units)

    @property
    def identity(self) -> str:
        """What must be equal for batches to end at the same samples."""
        options, image = self.options, self.image
        size = f"{options.tokens} tokens in multiples of {options.multiple}" if options.tokens is not None else "batch_size"
        unread = {"regions": not any(one.reads_regions for one in self.units), "codes": not any(one.reads_codes for one in self.units)}
        by = [name for name in options.by if not unread.get(name)]
        shapes = f"{image.mode} {image.size}/{image.multiple}, {self.max_tokens} tokens of {options.text_bytes:g} bytes"
        most = {one.shown.regions.most for one in self.units if one.reads_regions}
        shapes += f", {'/'.join(map(str, sorted(most)))} regions" if most else ""
        told = dict.fromkeys(one.second.identity for one in self.units if one.second is not None)
        shapes += f", second texts: {'; '.join(told)}" if told else ""
        return f"{'+'.join(by)} in windows of {options.window}, {size}; {shapes}"

    @property
    def longest(self) -> int:
        """What a sample can cost at most."""
        patches = self._patches(*self._largest())

        def of(one: Units) -> int:
            most = {"text": self.max_tokens, "image": patches if one.shown.has_image else 0}
            most |= {"regions": one.most_regions, "codes": one.most_codes}
            return sum(most[name] for name in self.options.by)

        return max(map(of, self.units))

    def _largest(self) -> tuple[int, int]:
        if self.image.mode != "vilt":
            return self.image.size, self.image.size
        step = self.image.multiple
        return self.image.size // step * step, max(int(1333 / 800 * self.image.size) // step, 1) * step

    def _patches(self, height: int, width: int) -> int:
        side = min(self.image.multiple, height, width) or 1
        return (height // side) * (width // side)

    def measure(self, source_P: np.ndarray, shard_P: np.ndarray, unit_P: np.ndarray, keys_P: np.ndarray) -> tuple[Shapes, np.ndarray]:
        """The shapes of units, and the number of the text that each shows: int64, -1 without one.

        Args:
            keys_P: uint64, what the drawn text depends on; see ``draws.keys``.
        """
        rows = np.zeros((7, len(source_P)), dtype=np.int64)  # see ``Units.lengths``
        order = np.argsort(source_P << 32 | shard_P, kind="stable")
        borders = np.flatnonzero(np.diff((source_P << 32 | shard_P)[order], prepend=-1))
        for chosen in np.split(order, borders[1:]):
            source, shard = int(source_P[chosen[0]]), int(shard_P[chosen[0]])
            rows[:, chosen] = self.units[source].lengths(shard, unit_P[chosen], keys_P[chosen])
        sizes, inverse = np.unique(rows[0] << 32 | rows[1], return_inverse=True)
        made = np.asarray([self._size(size >> 32, size & 0xFFFFFFFF) for size in sizes.tolist()], dtype=np.int64).reshape(-1, 3)
        height_P, width_P, patches_P = made[inverse].T
        first_P, second_P = (np.ceil(row / self.options.text_bytes).astype(np.int64) for row in (rows[2], rows[6]))
        tokens_P = np.minimum(first_P + second_P + 2 + (second_P > 0), self.max_tokens) * (rows[4] >= 0)
        tokens_P[np.asarray([one.joined for one in self.units])[source_P]] = self.max_tokens
        parts = {"image": patches_P, "text": tokens_P, "regions": rows[3], "codes": rows[5]}
        cost_P = np.maximum(sum((parts[name] for name in self.options.by), start=np.zeros(len(source_P), dtype=np.int64)), 1)
        return Shapes(height_P, width_P, tokens_P, cost_P), rows[4]

    def _size(self, height: int, width: int) -> tuple[int, int, int]:
        """Height, width and patches of a picture as the model gets it."""
        if not height or not width:
            return 0, 0, 0
        if self.image.mode == "vilt":
            height, width = vilt_size(height, width, self.image.size, self.image.multiple)
        else:
            height = width = self.image.size
        return height, width, self._patches(height, width)


def ordered(shapes: Shapes) -> np.ndarray:
    """Positions of a window, those of like shape side by side: by size of the picture, then by cost. Ties keep their order."""
    return np.lexsort((np.arange(len(shapes.cost_P)), shapes.cost_P, shapes.widths_P, shapes.heights_P))


def ends_by_tokens(cost_P: np.ndarray, tokens: int, multiple: int) -> np.ndarray:
    """Where batches of ordered samples end under a token budget: int64, ascending, the last is the number of samples.

    A batch takes samples while the longest times their number is within ``tokens``, rounded down to a multiple. The last two share what
    they have evenly, so that none is much smaller than what the budget allows.

    Raises:
        DataError: one sample alone is longer than the budget.
    """
    if int(cost_P.max()) > tokens:
        raise DataError(f"data.buckets.tokens={tokens} is less than one sample of {int(cost_P.max())} tokens; raise it, or lower the sizes")
    ends, start = [], 0
    while start < len(cost_P):
        most = max(1, tokens // int(cost_P[start]))
        longest = np.maximum.accumulate(cost_P[start : start + most])
        count = int(np.searchsorted(longest * np.arange(1, len(longest) + 1), tokens, side="right"))
        if count > multiple and start + count < len(cost_P):
            count -= count % multiple
        start += count
        ends.append(start)
    if len(ends) > 1:
        before = ends[-3] if len(ends) > 2 else 0
        last = min((len(cost_P) - before) // 2, tokens // int(cost_P[before:].max()))
        if last > ends[-1] - ends[-2]:
            ends[-2] = ends[-1] - last
    return np.asarray(ends, dtype=np.int64)


def check_budget(options: Buckets, longest: int, parts: int) -> None:
    """That every batch can be cut into ``parts`` (ranks x micro-batches).

    Raises:
        DataError: a batch of the longest samples may have fewer samples than parts.
    """
    if options.tokens is None:
        return
    least = 4 * parts * max(longest, 1)  # a batch is rounded down to a multiple, and the last two of a window share
    if options.tokens < least:
        raise DataError(
            f"data.buckets.tokens={options.tokens} counts all ranks and micro-batches; a batch of the longest samples ({longest} tokens) "
            f"must be cut into {parts} parts; take at least {least}, or fewer micro-batches"
        )
