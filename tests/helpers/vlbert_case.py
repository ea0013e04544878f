"""Small inputs of VL-BERT in closed form, for its golden file."""

from __future__ import annotations

from typing import NamedTuple

import torch
from helpers import closed_form
from torch import Tensor


class Case(NamedTuple):
    """Captions with pictures, and texts alone. All packed but the ids, which are padded with 0."""

    ids: Tensor
    alone: Tensor
    features: Tensor
    boxes: Tensor
    lengths: tuple[int, ...]  # regions
    sizes: tuple[tuple[int, int], ...]
    removed: Tensor
    pixels: Tensor  # normalised, of one size

    def rows(self, i: int) -> slice:
        """The regions of sample ``i``."""
        start = sum(self.lengths[:i])
        return slice(start, start + self.lengths[i])


def ids(lengths: tuple[int, ...], salt: int) -> Tensor:
    """Tokens 5 to 59, padded with 0."""
    rows = [(closed_form.uniform(n, salt + i) * 27.5 + 32.5).astype(int) for i, n in enumerate(lengths)]
    return torch.nn.utils.rnn.pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True)


def case(name: str) -> Case:
    """``precomputed``: three captions, features of 2048 values; ``end_to_end``: two captions and their pictures of 64 x 96 pixels."""
    small = name == "end_to_end"
    lengths = (2, 1) if small else (3, 5, 2)
    sizes = ((64, 96),) * 2 if small else ((480, 640), (300, 200), (64, 96))
    corners = [closed_form.tensor((n, 2, 2), 50 + i, 0.45, 0.5).sort(1).values.flatten(1) for i, n in enumerate(lengths)]
    boxes = torch.cat([c * torch.tensor([w - 1.0, h - 1.0] * 2) for c, (h, w) in zip(corners, sizes, strict=True)])
    removed = torch.tensor([False, True, True] if small else [True, False, False, False, True, False, True, False, False, False])
    features = closed_form.tensor((sum(lengths), 2048), 70).abs()
    texts = (7, 4) if small else (7, 4, 9)
    return Case(ids(texts, 30), ids((6, 10), 40), features, boxes, lengths, sizes, removed, closed_form.tensor((2, 3, 64, 96), 80, 1.5))
