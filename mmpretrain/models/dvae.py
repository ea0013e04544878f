"""The discrete variational autoencoder of DALL-E's first stage (Ramesh et al. 2021, https://arxiv.org/abs/2102.12092, sections 2.1 and A):
a picture as a grid of codes, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpretrain.nn.dvae import Block, Codebook, Decoder, Encoder, map_pixels, one_hot, relaxed, unit_pixels, unmap_pixels
from mmpretrain.nn.hidden import Coded
from mmpretrain.nn.misfit import Misfit
from mmpretrain.types import Batch, Spec

Sample = Literal["relaxed", "straight_through", "nearest"]


class DVAE(nn.Module):
    """Encoder, bottleneck, decoder.

    In training the decoder reads a sample of the codes; in evaluation it reads the most probable ones, as later stages do.

    Args:
        widths: channels of each group of blocks, from the picture on, multiples of 4; the released model has (256, 512, 1024, 2048). Each
            group but the first works at half the resolution of the one before.
        blocks: of each group.
        codes: K, the codes that a position may have.
        code_width: values of the vector that the decoder's first convolution makes of a code.
        image_size: side of the square pictures that the model is trained on; it runs on any size that is a multiple of ``factor``.
        sample: what the decoder reads in training. ``relaxed``: a Gumbel-softmax sample (the paper); ``straight_through``: the same made
            one-hot, with the gradient of the relaxed one; ``nearest``: no logits but the nearest of K vectors, with the gradient passed
            straight through (VQ-VAE, arXiv 1711.00937), which needs the objective ``commitment.Commitment``.
        temperature: of the Gumbel-softmax; an attribute, which ``model.phases`` may set.
        decay: of the moving averages of the vectors of ``nearest``.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(
        self,
        widths: Sequence[int] = (256, 512, 1024, 2048),
        blocks: int = 2,
        codes: int = 8192,
        code_width: int = 128,
        image_size: int = 256,
        sample: Sample = "relaxed",
        temperature: float = 1.0,
        decay: float = 0.99,
    ) -> None:
        super().__init__()
        widths = tuple(widths)
        if not widths or any(width < 4 or width % 4 for width in widths) or blocks < 1:
            raise ValueError(f"DVAE: widths={list(widths)} must be multiples of 4, blocks={blocks} at least 1")
        if codes < 2 or code_width < 1 or not temperature > 0 or not 0 < decay < 1:
            raise ValueError(
                f"DVAE: codes={codes} must be at least 2, code_width={code_width} at least 1, temperature={temperature} positive, "
                f"decay={decay} between 0 and 1"
            )
        if sample not in get_args(Sample):
            raise ValueError(f"DVAE: sample={sample!r}; choose one of {', '.join(get_args(Sample))}")
        self.widths, self.block_count, self.codes, self.code_width = widths, blocks, codes, code_width
        self.image_size, self.sample, self.temperature = image_size, sample, float(temperature)
        self.factor = 2 ** (len(widths) - 1)
        if image_size < self.factor or image_size % self.factor:
            raise ValueError(f"DVAE: image_size={image_size} must be a multiple of {self.factor}, which {len(widths)} groups divide it by")
        near = sample == "nearest"
        self.encoder = Encoder(widths, blocks, code_width if near else codes)
        self.decoder = Decoder(widths, blocks, None if near else codes, code_width)
        self.codebook = Codebook(codes, code_width, decay) if near else None

    @property
    def spec(self) -> Spec:
        side = self.image_size // self.factor
        return Spec(self.code_width, ("coded",), 0, patch_size=self.factor, codes=self.codes, code_grid=(side, side))

    def blocks(self) -> list[nn.Module]:
        """The residual blocks: units of sharding, activation checkpointing and compilation."""
        return [module for module in self.modules() if isinstance(module, Block)]

    def forward(self, batch: Batch, kind: str = "coded") -> Coded:
        """Pictures through the bottleneck.

        Raises:
            ValueError: another kind is asked for, or the batch has no pictures, or some of several sizes or of a size that the factor does
                not divide.
        """
        if kind != "coded":
            raise ValueError(f"DVAE offers kind 'coded', not {kind!r}")
        if batch.image is None:
            raise ValueError("DVAE needs a batch with pictures")
        pixels_BCHW = unit_pixels(batch.image)
        if self.codebook is not None:
            return self._nearest(pixels_BCHW)
        logits_BKhw = self._encoded(pixels_BCHW)
        if not self.training:
            ids_Bhw = logits_BKhw.argmax(1)
            output_BCHW = self.decoder.body(self.decoder.vectors(ids_Bhw))
            return Coded(logits_BKhw, one_hot(ids_Bhw, self.codes), output_BCHW, pixels_BCHW)
        code_BKhw = relaxed(logits_BKhw, batch.draw_keys_B, self.temperature, self.sample == "straight_through")
        return Coded(logits_BKhw, code_BKhw, self.decoder(code_BKhw), pixels_BCHW)

    def _nearest(self, pixels_BCHW: Tensor) -> Coded:
        """In ``aux`` the states of the encoder, ``state_BDhw``, with gradient, and the vectors that they took, ``vector_BDhw``, without."""
        assert self.codebook is not None
        z_BDhw = self._encoded(pixels_BCHW)
        logits_BKhw = self.codebook.logits(z_BDhw)
        vector_BDhw = self.codebook.vectors(logits_BKhw.argmax(1)).to(z_BDhw.dtype)
        output_BCHW = self.decoder(z_BDhw + (vector_BDhw - z_BDhw).detach())
        return Coded(logits_BKhw, None, output_BCHW, pixels_BCHW, {"state_BDhw": z_BDhw, "vector_BDhw": vector_BDhw})

    def _encoded(self, pixels_BCHW: Tensor) -> Tensor:
        """What the encoder makes of pictures in 0 to 1: logits of the codes, or states."""
        height, width = pixels_BCHW.shape[2:]
        if height % self.factor or width % self.factor:
            raise Misfit(f"pictures of {height} x {width} pixels are no multiples of {self.factor}: set data.image.size to one")
        return self.encoder(map_pixels(pixels_BCHW).to(self.encoder.input.weight.dtype))

    @torch.no_grad()
    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """The most probable codes, int64 (B, h, w), of pictures in 0 to 1 (B, 3, H, W).

        Raises:
            ValueError: a size that ``factor`` does not divide.
        """
        found = self._encoded(pixels_BCHW)
        return (found if self.codebook is None else self.codebook.logits(found)).argmax(1)

    @torch.no_grad()
    def decode(self, ids_Bhw: Tensor) -> Tensor:
        """The pictures of codes: fp32 in 0 to 1, (B, 3, h * factor, w * factor)."""
        table = self.decoder if self.codebook is None else self.codebook
        return pictures(self.decoder.body(table.vectors(ids_Bhw)))


def pictures(output_BCHW: Tensor) -> Tensor:
    """The pictures that the decoder's output (B, 6, H, W) stands for: the middle of the likelihood, its width ignored (section A.3)."""
    return unmap_pixels(F.sigmoid(output_BCHW[:, : output_BCHW.shape[1] // 2].float()))
