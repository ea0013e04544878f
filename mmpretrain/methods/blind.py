"""What objectives reach without looking: the trivial baseline of each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mmpretrain.methods.transform import Around, ModelTransform


class Blind(ModelTransform):
    """Every hidden state of the model is zero, and its parameters stay as they are: only heads learn, and all that they can learn is one
    answer for everything. Masked words are guessed by their frequency (unigram), classes by theirs (majority), features by their mean,
    pairs by the share of true ones. A model that is trained must beat that by what it sees.

    The heads' biases need a high rate to get there in a short run, for example ``--model.optimizer.lr 0.03`` with ``kind: adamw``.
    """

    def __call__(self, model: nn.Module, around: Around = Around()) -> nn.Module:  # noqa: B008  (immutable)
        model.requires_grad_(False)
        model.register_forward_hook(_zeros)
        self.said = "blind: hidden states are zero, only heads are trained"
        return model


def _zeros(module: nn.Module, inputs: Any, hidden: Any) -> Any:
    """The hidden states with zeros in place of every number."""
    return tree_map(lambda one: torch.zeros_like(one) if isinstance(one, Tensor) and one.is_floating_point() else one, hidden)
