"""Heads that objectives and models share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpretrain.nn.layers import Init, LayerNorm, Linear

POOLER_ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu}
FUSIONS = ("mul", "sum", "text")


class Pooler(nn.Module):
    """Linear and an activation on one state per sample: (B, D) -> (B, ``width_out``).

    Args:
        width: of the states.
        std: of the normal initialisation.
        width_out: of the pooled state; None: ``width``.
        activation: ``tanh`` (BERT) or ``relu`` (ViLBERT).

    Raises:
        ValueError: an unknown activation.
    """

    def __init__(self, width: int, std: float = 0.02, width_out: int | None = None, activation: str = "tanh") -> None:
        super().__init__()
        if activation not in POOLER_ACTIVATIONS:
            raise ValueError(f"pooler activation={activation!r}; choose tanh or relu")
        self.dense = Linear(width, width_out or width, init=Init("normal", std))
        self.activation = activation

    def forward(self, first_BD: Tensor) -> Tensor:
        return POOLER_ACTIVATIONS[self.activation](self.dense(first_BD))


class PairPooler(nn.Module):
    """One pooled state of a two-stream model (ViLBERT, arXiv 1908.02265 section 3.2): a pooler per stream and what becomes of the two.

    Args:
        text_width, image_width: of the states.
        width: of the pooled state.
        fusion: ``mul``: their product; ``sum``; ``text``: that of the text alone, and the image has no pooler.
        activation: ``relu`` or ``tanh``.
        std: of the normal initialisation.

    Raises:
        ValueError: an unknown fusion or activation.
    """

    def __init__(
        self, text_width: int, image_width: int, width: int, fusion: str = "mul", activation: str = "relu", std: float = 0.02
    ) -> None:
        super().__init__()
        if fusion not in FUSIONS:
            raise ValueError(f"fusion={fusion!r}; choose one of {', '.join(FUSIONS)}")
        self.width, self.fusion = width, fusion
        self.text = Pooler(text_width, std, width, activation)
        self.image = Pooler(image_width, std, width, activation) if fusion != "text" else None

    def forward(self, text_BD: Tensor, image_BD: Tensor) -> Tensor:
        """The first state of each text and of each image, each of its own width -> (B, ``width``)."""
        pooled_BD = self.text(text_BD)
        if self.image is None:
            return pooled_BD
        return pooled_BD * self.image(image_BD) if self.fusion == "mul" else pooled_BD + self.image(image_BD)


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
