"""Heads that objectives and models share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpretrain.nn.layers import Init, LayerNorm, Linear


class Pooler(nn.Module):
    """Linear and tanh on one state per sample: (B, D) -> (B, D).

    Args:
        width: of the states.
        std: of the normal initialisation.
    """

    def __init__(self, width: int, std: float = 0.02) -> None:
        super().__init__()
        self.dense = Linear(width, width, init=Init("normal", std))

    def forward(self, first_BD: Tensor) -> Tensor:
        return torch.tanh(self.dense(first_BD))


class VocabularyHead(nn.Module):
    """BERT's prediction head: dense, GELU, LayerNorm, decoder with a free bias. Give it the rows that matter only.

    Args:
        width: of the states.
        vocab_size: of the logits.
        tied_to: the word table whose weight is the decoder; None for a decoder of its own. A tied head keeps a reference to the module, not
            to the parameter, and does not own it: whatever replaces the table's weight (sharding, moving off the meta device) replaces the
            decoder's too, and the weight appears once in the state dict.
        eps: of the LayerNorm.

    Raises:
        ValueError: the table does not have ``vocab_size`` rows of ``width``.
    """

    def __init__(self, width: int, vocab_size: int, tied_to: nn.Embedding | None, eps: float = 1e-12) -> None:
        super().__init__()
        if tied_to is not None and tuple(tied_to.weight.shape) != (vocab_size, width):
            raise ValueError(f"cannot tie a head of {vocab_size} x {width} to a word table of {tuple(tied_to.weight.shape)}")
        self.dense = Linear(width, width, init=Init("normal"))
        self.norm = LayerNorm(width, eps=eps)
        self.decoder = Linear(width, vocab_size, bias=False, init=Init("normal")) if tied_to is None else None
        self._table = (tied_to,)  # a tuple, so that the table is not registered twice
        self.bias = nn.Parameter(torch.empty(vocab_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The free bias starts at zero."""
        nn.init.zeros_(self.bias)

    @property
    def tied(self) -> bool:
        """Whether the decoder is the word table."""
        return self.decoder is None

    @property
    def weight(self) -> Tensor:
        """The decoder's weight (vocabulary, D): the very parameter of the word table when tied."""
        return self._table[0].weight if self.decoder is None else self.decoder.weight

    def forward(self, x_RD: Tensor) -> Tensor:
        """States (R, D) -> logits (R, vocabulary)."""
        return F.linear(self.norm(F.gelu(self.dense(x_RD))), self.weight, self.bias)
