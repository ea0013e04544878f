"""CLIP (Radford et al. 2021, https://arxiv.org/abs/2103.00020): an image tower and a text tower that meet in one space.

With ``logit_bias_init`` the same model serves SigLIP's sigmoid loss (Zhai et al. 2023, https://arxiv.org/abs/2303.15343).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.embed import PatchEmbedder, TextEmbedder
from mmpretrain.nn.hidden import Paired
from mmpretrain.nn.layers import Init, LayerNorm, Linear
from mmpretrain.nn.misfit import Misfit
from mmpretrain.nn.ragged import Ragged
from mmpretrain.nn.resnet import AttentionPool, ModifiedResNet
from mmpretrain.types import Batch, Pixels, Spec, Text


def _check_size(image: Pixels, size: int) -> None:
    for i, (h, w) in enumerate(image.sizes):
        if (h, w) != (size, size):
            found = f"image {i} of the batch is {h} x {w} pixels, the tower takes {size} x {size}"
            raise Misfit(f"{found}: set data.image.size={size}, and data.image.mode to clip or squash")


class ViTTower(nn.Module):
    """Vision transformer with a norm before the blocks; reads the class token.

    Args:
        image_size: side of the square input in pixels.
        patch_size: must divide ``image_size``.
        width, depth, heads, mlp_ratio: of the transformer; CLIP's heads are always width / 64.
        activation: ``quick_gelu`` (OpenAI) or ``gelu`` (OpenCLIP's default).
        eps: of every LayerNorm.
        attention: backend of the transformer.
    """

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 32,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        activation: str = "quick_gelu",
        eps: float = 1e-5,
        attention: str = "auto",
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"patch_size={patch_size} does not divide image_size={image_size}")
        self.image_size, self.patch_size, self.width, self.embed_dim = image_size, patch_size, width, None
        self.embed = PatchEmbedder(width, patch_size, image_size // patch_size, bias=False, init="torch", std=width**-0.5)
        self.pre_norm = LayerNorm(width, eps=eps)
        self.transformer = Transformer(
            width, depth, heads, mlp_ratio, activation, eps=eps, attention=attention, init="torch"
        )  # its final norm is CLIP's ln_post, on the class token only

    def forward(self, image: Pixels) -> Tensor:
        """Features (B, width) of the class token after the final norm."""
        _check_size(image, self.image_size)
        x = self.embed(image)
        return self.transformer(Ragged(self.pre_norm(x.x_ND), x.layout), only="first").x_ND

    def tokens(self, image: Pixels) -> Ragged:
        """All states after the final norm, class token first."""
        _check_size(image, self.image_size)
        x = self.embed(image)
        return self.transformer(Ragged(self.pre_norm(x.x_ND), x.layout))


class ResNetTower(nn.Module):
    """Modified ResNet with attention pooling, which projects to the shared space itself.

    Args:
        image_size: side of the square input in pixels, a multiple of 32.
        layers: blocks of the four stages.
        width: channels of the stem.
        heads: of the attention pooling; CLIP's are always width * 32 / 64.
        embed_dim: of the output.
    """

    def __init__(
        self,
        image_size: int = 224,
        layers: tuple[int, int, int, int] = (3, 4, 6, 3),
        width: int = 64,
        heads: int = 32,
        embed_dim: int = 1024,
    ) -> None:
        super().__init__()
        if image_size % 32:
            raise ValueError(f"image_size={image_size} is not a multiple of 32")
        self.image_size, self.width, self.heads, self.embed_dim = image_size, width, heads, embed_dim
        first, second, third, fourth = layers
        self.layers = (first, second, third, fourth)
        self.patch_size = None
        self.trunk = ModifiedResNet(self.layers, width)
        self.pool = AttentionPool((image_size // 32) ** 2, width * 32, heads, embed_dim)

    def forward(self, image: Pixels) -> Tensor:
        """Features (B, embed_dim)."""
        _check_size(image, self.image_size)
        return self.pool(self.trunk(image.floats(self.trunk.conv1.weight.dtype)))


class TextTower(nn.Module):
    """Causal transformer; reads the last valid token, which is the end of text.

    Args:
        vocab_size, positions: of the embedding (49408 and 77 in the paper's code).
        width, depth, heads, mlp_ratio: of the transformer.
        activation: ``quick_gelu`` or ``gelu``.
        eps: of every LayerNorm.
        attention: backend of the transformer.
    """

    def __init__(
        self,
        vocab_size: int = 49408,
        positions: int = 77,
        width: int = 512,
        depth: int = 12,
        heads: int = 8,
        mlp_ratio: float = 4.0,
        activation: str = "quick_gelu",
        eps: float = 1e-5,
        attention: str = "auto",
    ) -> None:
        super().__init__()
        self.width = width
        self.embed = TextEmbedder(vocab_size, width, positions, norm_eps=None, std_positions=0.01)
        self.transformer = Transformer(
            width, depth, heads, mlp_ratio, activation, eps=eps, causal=True, attention=attention, init="clip"
        )

    def forward(self, text: Text) -> Tensor:
        """Features (B, width) of the last valid token after the final norm."""
        return self.transformer(self.embed(text), only="last").x_ND

    def tokens(self, text: Text) -> Ragged:
        """All states after the final norm."""
        return self.transformer(self.embed(text))


class CLIP(nn.Module):
    """Two towers, two bias-free projections, a learned logit scale.

    Args:
        image: ``ViTTower`` or ``ResNetTower``.
        text: ``TextTower``.
        embed_dim: E, of the shared space.
        logit_scale_init: natural logarithm of the factor on cosines: ln(1 / 0.07) = 2.65926 in CLIP, ln 10 in SigLIP.
        logit_bias_init: None (CLIP) or the bias added to logits (SigLIP: -10).

    Raises:
        ValueError: the image tower projects to another dimension.
    """

    def __init__(
        self,
        image: ViTTower | ResNetTower,
        text: TextTower,
        embed_dim: int,
        logit_scale_init: float = 2.6592600369327779,
        logit_bias_init: float | None = None,
    ) -> None:
        super().__init__()
        if image.embed_dim not in (None, embed_dim):
            raise ValueError(f"the image tower projects to {image.embed_dim}, embed_dim is {embed_dim}: make them equal")
        self.image, self.text, self.embed_dim = image, text, embed_dim
        self.logit_scale_init, self.logit_bias_init = logit_scale_init, logit_bias_init
        projects = image.embed_dim is None
        self.image_projection = Linear(image.width, embed_dim, bias=False, init=Init("normal", image.width**-0.5)) if projects else None
        self.text_projection = Linear(text.width, embed_dim, bias=False, init=Init("normal", text.width**-0.5))
        self.logit_scale = nn.Parameter(torch.empty(1))
        self.logit_bias = nn.Parameter(torch.empty(1)) if logit_bias_init is not None else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Logit scale and bias to their starting values."""
        nn.init.constant_(self.logit_scale, self.logit_scale_init)
        if self.logit_bias is not None:
            nn.init.constant_(self.logit_bias, self.logit_bias_init)

    @property
    def spec(self) -> Spec:
        words = self.text.embed.words
        visual = None if self.image.patch_size is None else self.image.width
        return Spec(self.text.width, ("paired",), words.num_embeddings, words, self.image.patch_size, self.embed_dim, visual_width=visual)

    def blocks(self) -> list[nn.Module]:
        """The units of sharding, activation checkpointing and compilation: transformer blocks. A ResNet stays with the root, because
        recomputing its blocks would update the running statistics of its norms twice."""
        stacks = [self.text.transformer]
        if isinstance(self.image, ViTTower):
            stacks.insert(0, self.image.transformer)
        return [block for stack in stacks for block in stack.blocks]

    def forward(self, batch: Batch, kind: str = "paired") -> Paired:
        """Features of length 1, in fp32 under autocast.

        Raises:
            ValueError: another kind is asked for, or the batch has neither text nor image.
        """
        if kind != "paired":
            raise ValueError(f"CLIP offers kind 'paired', not {kind!r}")
        if batch.image is None and batch.text is None:
            raise ValueError("CLIP needs a batch with text, images or both")
        image_BE = None if batch.image is None else self._project(self.image(batch.image), self.image_projection)
        text_BE = None if batch.text is None else self._project(self.text(batch.text), self.text_projection)
        return Paired(image_BE, text_BE, self.logit_scale, self.logit_bias)

    def _project(self, x_BD: Tensor, projection: Linear | None) -> Tensor:
        x_BE = x_BD if projection is None else projection(x_BD)
        dtype = torch.float32 if x_BE.dtype in (torch.float16, torch.bfloat16) else x_BE.dtype
        return F.normalize(x_BE.to(dtype), dim=-1)
