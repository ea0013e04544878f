"""Encoder, decoder and bottlenecks of a discrete autoencoder (DALL-E, Ramesh et al. 2021, arXiv 2102.12092, sections 2.1 and A, and the
released encoder and decoder).

Shapes: C channels of the picture, H x W its size, h x w the grid of codes, K codes, D values of a code's vector.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpretrain import random
from mmpretrain.nn.layers import Conv2d, Init
from mmpretrain.nn.misfit import Misfit
from mmpretrain.types import Pixels

EPSILON = 0.1  # of the pixel map, section A.3
GUMBEL = random.stream("nn/dvae/gumbel")
DRAWS = 1 << 24  # random numbers made at a time
FADED = 1e-5  # an average count that says nothing any more


def map_pixels(x: Tensor) -> Tensor:
    """Pixels in 0 to 1 -> 0.1 to 0.9, so that no logarithm of the likelihood is of 0 (equation 3)."""
    return (1 - 2 * EPSILON) * x + EPSILON


def unmap_pixels(x: Tensor) -> Tensor:
    """The inverse of ``map_pixels``, cut to 0 to 1."""
    return ((x - EPSILON) / (1 - 2 * EPSILON)).clamp(0, 1)


def unit_pixels(image: Pixels) -> Tensor:
    """The pictures of a batch in 0 to 1, fp32 (B, 3, H, W), whatever they are normalised by.

    Raises:
        ValueError: they differ in size.
    """
    height, width = image.pixels_BCHW.shape[2:]
    for i, (h, w) in enumerate(image.sizes):
        if (h, w) != (height, width):
            raise Misfit(
                f"image {i} of the batch is {h} x {w} pixels, another one up to {height} x {width}: codes are of pictures of one size, "
                "set data.image.mode to dalle, clip or squash"
            )
    if not image.pixels_BCHW.is_floating_point():
        return image.pixels_BCHW.float() / 255
    x_BCHW = image.pixels_BCHW.float()
    if image.mean is None or image.std is None:
        return x_BCHW
    mean, std = (torch.tensor(v, device=x_BCHW.device).view(3, 1, 1) for v in (image.mean, image.std))
    return (x_BCHW * std + mean).clamp(0, 1)


def conv(n_in: int, n_out: int, kernel: int) -> Conv2d:
    """A convolution that keeps the size: weights N(0, 1 / sqrt(n_in kernel^2)), biases 0."""
    return Conv2d(n_in, n_out, kernel, padding=kernel // 2, bias=True, init=Init("normal", (n_in * kernel**2) ** -0.5))


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class WideConv(Conv2d):
    """A 1x1 convolution in fp32 whatever autocast or the type of the weights says: the last one of the encoder, whose output is logits, and
    the first one of the decoder, whose input is probabilities."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out, 1, bias=True, init=Init("normal", n_in**-0.5))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        assert self.bias is not None
        with torch.autocast(x_BCHW.device.type, enabled=False):
            return F.conv2d(_wide(x_BCHW), _wide(self.weight), _wide(self.bias))


class Block(nn.Module):
    """x + gain * f(x), where f is four times ReLU and convolution with a quarter of the channels between; a 1x1 convolution on the way past
    f where the channels change.

    Args:
        n_in, n_out: channels; ``n_out`` is a multiple of 4.
        kernels: sides of the four convolutions.
        gain: 1 / layers^2 of the whole network.
    """

    def __init__(self, n_in: int, n_out: int, kernels: Sequence[int], gain: float) -> None:
        super().__init__()
        widths = (n_in, *[n_out // 4] * (len(kernels) - 1), n_out)
        self.gain = gain
        self.shortcut = conv(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        self.convs = nn.ModuleList(conv(a, b, k) for (a, b), k in zip(itertools.pairwise(widths), kernels, strict=True))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y = x_BCHW
        for one in self.convs:
            y = one(F.relu(y))
        return self.shortcut(x_BCHW) + self.gain * y


def _groups(n_in: int, widths: Sequence[int], blocks: int, kernels: Sequence[int]) -> nn.ModuleList:
    gain, made, before = (len(widths) * blocks) ** -2.0, [], n_in
    for width in widths:
        made.append(nn.Sequential(*(Block(before if i == 0 else width, width, kernels, gain) for i in range(blocks))))
        before = width
    return nn.ModuleList(made)


class Encoder(nn.Module):
    """Pictures (B, C, H, W) -> (B, ``out``, H / f, W / f), f = 2 ** (groups - 1).

    A 7x7 convolution, groups of blocks with 2x2 max-pooling between them, ReLU, a 1x1 convolution in fp32.

    Args:
        widths: channels of each group, from the picture on.
        blocks: of each group.
        out: channels that come out.
        channels: C.
    """

    def __init__(self, widths: Sequence[int], blocks: int, out: int, channels: int = 3) -> None:
        super().__init__()
        self.input = conv(channels, widths[0], 7)
        self.groups = _groups(widths[0], widths, blocks, (3, 3, 3, 1))
        self.output = WideConv(widths[-1], out)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x = self.input(x_BCHW.contiguous(memory_format=torch.channels_last))
        for i, group in enumerate(self.groups):
            x = group(F.max_pool2d(x, 2) if i else x)
        return self.output(F.relu(x))


class Decoder(nn.Module):
    """Codes (B, K, h, w), one-hot or relaxed, -> (B, 2 C, h f, w f).

    A 1x1 convolution in fp32, whose weight is the codebook, groups of blocks with nearest-neighbour enlargement between them, ReLU, a 1x1
    convolution.

    Args:
        widths: channels of each group, from the picture on, as of the encoder: the last one is the first to be run.
        blocks: of each group.
        codes: K; None: vectors (B, D, h, w) come in, and there is no first convolution.
        code_width: D.
        channels: C.
    """

    def __init__(self, widths: Sequence[int], blocks: int, codes: int | None, code_width: int, channels: int = 3) -> None:
        super().__init__()
        self.input = WideConv(codes, code_width) if codes is not None else None
        self.groups = _groups(code_width, tuple(reversed(widths)), blocks, (1, 3, 3, 3))
        self.output = conv(widths[0], 2 * channels, 1)

    def forward(self, code_BKhw: Tensor) -> Tensor:
        return self.body(code_BKhw if self.input is None else self.input(code_BKhw))

    def vectors(self, ids_Bhw: Tensor) -> Tensor:
        """What the first convolution makes of one-hot codes, (B, D, h, w), by a look into its weight."""
        assert self.input is not None and self.input.bias is not None
        table_KD = _wide(self.input.weight).flatten(1).t()
        return (F.embedding(ids_Bhw, table_KD) + _wide(self.input.bias)).permute(0, 3, 1, 2)

    def body(self, x_BDhw: Tensor) -> Tensor:
        """Vectors of codes (B, D, h, w) -> (B, 2 C, H, W)."""
        x = x_BDhw.to(self.output.weight.dtype).contiguous(memory_format=torch.channels_last)
        for i, group in enumerate(self.groups):
            x = group(F.interpolate(x, scale_factor=2.0, mode="nearest") if i else x)
        return self.output(F.relu(x))


def gumbel(keys_B: Tensor, shape: Sequence[int]) -> Tensor:
    """Gumbel noise, fp32 (B, *shape): a pure function of the keys of the samples, whatever batch, rank or device they are on."""
    count, parts = math.prod(shape), []
    for keys in keys_B.split(max(1, DRAWS // count)):
        halves = random.bits(keys, GUMBEL, (count + 1) // 2).view(torch.int32)[:, :count]  # two draws of each 64 bits
        u = ((halves >> 8) & 0xFFFFFF).float().mul_(2.0**-24).add_(2.0**-25).clamp_(max=1 - 2.0**-24)  # in (0, 1)
        parts.append(u.neg_().log1p_().neg_().log_().neg_())
    return torch.cat(parts).view(len(keys_B), *shape)


def relaxed(logits_BKhw: Tensor, keys_B: Tensor, temperature: float, straight_through: bool = False) -> Tensor:
    """A sample of codes (B, K, h, w) by the Gumbel-softmax (Jang et al. 2016, arXiv 1611.01144; Maddison et al. 2016, arXiv 1611.00712).

    Args:
        logits_BKhw: of the codes.
        keys_B: keys of the draws.
        temperature: of the softmax; towards 0 the sample is one-hot.
        straight_through: one-hot, with the gradient of the relaxed sample.
    """
    with torch.autocast(logits_BKhw.device.type, enabled=False):
        logits = _wide(logits_BKhw)
        soft = ((logits + gumbel(keys_B, logits.shape[1:])) / temperature).softmax(1)
        return one_hot(soft.argmax(1), soft.shape[1]) - soft.detach() + soft if straight_through else soft


def one_hot(ids_Bhw: Tensor, codes: int) -> Tensor:
    """fp32 (B, K, h, w)."""
    return torch.zeros(ids_Bhw.shape[0], codes, *ids_Bhw.shape[1:], device=ids_Bhw.device).scatter_(1, ids_Bhw[:, None], 1.0)


class Codebook(nn.Module):
    """Vectors of which a state takes the nearest one (VQ-VAE, van den Oord et al. 2017, arXiv 1711.00937). They are moving averages of the
    states that took them (appendix A.1 there), buffers without gradients.

    Args:
        codes: K.
        width: D.
        decay: of the averages.
    """

    vectors_KD: Tensor
    count_K: Tensor
    total_KD: Tensor

    def __init__(self, codes: int, width: int, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("vectors_KD", torch.empty(codes, width))
        self.register_buffer("count_K", torch.empty(codes))
        self.register_buffer("total_KD", torch.empty(codes, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Vectors from N(0, 1) that nothing has taken: the first step puts each at the mean of the states that take it, and restarts the
        others."""
        nn.init.normal_(self.vectors_KD)
        self.count_K.zero_()
        self.total_KD.zero_()

    def logits(self, z_BDhw: Tensor) -> Tensor:
        """Minus the squared distance to each vector, (B, K, h, w), without gradient."""
        with torch.no_grad(), torch.autocast(z_BDhw.device.type, enabled=False):
            z, e = _wide(z_BDhw), self.vectors_KD.to(_wide(z_BDhw).dtype)
            cross = torch.einsum("bdhw,kd->bkhw", z, e)
            return 2 * cross - e.square().sum(1)[:, None, None] - z.square().sum(1, keepdim=True)

    def vectors(self, ids_Bhw: Tensor) -> Tensor:
        """The vectors of codes, (B, D, h, w)."""
        return F.embedding(ids_Bhw, self.vectors_KD).permute(0, 3, 1, 2)

    @torch.no_grad()
    def update(self, count_K: Tensor, total_KD: Tensor) -> None:
        """One step of the averages. Numbers that are not finite change nothing, and a vector that nothing has taken for so long that its
        average has faded stays where it is.

        Args:
            count_K: how many states took each vector in the step, over all ranks and micro-batches.
            total_KD: the sum of those states.
        """
        sound = torch.isfinite(total_KD).all() & torch.isfinite(count_K).all()
        for average, new in ((self.count_K, count_K), (self.total_KD, total_KD)):
            average.copy_(torch.where(sound, torch.lerp(new.to(average), average, self.decay), average))
        alive_K1 = (self.count_K > FADED)[:, None]
        self.vectors_KD.copy_(torch.where(alive_K1, self.total_KD / self.count_K.clamp(min=FADED)[:, None], self.vectors_KD))

    @torch.no_grad()
    def restart(self, states_KD: Tensor, below: float) -> None:
        """Put every vector that fewer than ``below`` states a step took, on average, where a state is (random restarts, Dhariwal et al.
        2020, arXiv 2005.00341), as if so many had taken it.

        Args:
            states_KD: for each vector a state of the step, drawn alike on every rank.
            below: the average count.
        """
        dead_K1 = ((self.count_K < below) & torch.isfinite(states_KD).all(1))[:, None]
        self.vectors_KD.copy_(torch.where(dead_K1, states_KD.to(self.vectors_KD), self.vectors_KD))
        self.total_KD.copy_(torch.where(dead_K1, below * self.vectors_KD, self.total_KD))
        self.count_K.copy_(torch.where(dead_K1[:, 0], torch.full_like(self.count_K, below), self.count_K))
