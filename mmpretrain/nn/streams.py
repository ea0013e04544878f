"""Text and image side by side: the walk of a two-stream model through its blocks, in whatever order the model has."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmpretrain.nn.attention import Plan, kernel_dtype, plan
from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.cross import CoAttention
from mmpretrain.nn.embed import TextEmbedder
from mmpretrain.nn.ragged import Layout, Ragged
from mmpretrain.nn.regions import RegionEmbedder
from mmpretrain.types import Spec


def firsts(x: Ragged) -> Tensor:
    """The state of the first token of each sample: (B, D)."""
    return x.x_ND.index_select(0, x.layout.first_B(x.x_ND.device))


def with_second(x: Ragged, token_BD: Tensor) -> Ragged:
    """A token more in each sample, behind its first one."""
    device, n = x.x_ND.device, x.layout.total
    layout = Layout(tuple(length + 1 for length in x.layout.lengths))
    slot_M, sample_M = layout.slot_N(device), layout.sample_N(device)
    own_M = torch.arange(layout.total, device=device) - sample_M - (slot_M > 1).long()
    rows_M = torch.where(slot_M == 1, n + sample_M, own_M)
    return Ragged(torch.cat([x.x_ND, token_BD.to(x.x_ND.dtype)]).index_select(0, rows_M), layout)


def without_second(x: Ragged) -> Ragged:
    """What ``with_second`` was given, or what has become of it."""
    device, layout = x.x_ND.device, Layout(tuple(length - 1 for length in x.layout.lengths))
    rows_N = torch.arange(layout.total, device=device) + layout.sample_N(device) + (layout.slot_N(device) > 0).long()
    return Ragged(x.x_ND.index_select(0, rows_N), layout)


def spec_of(
    text: TextEmbedder, regions: RegionEmbedder, eps: float, std: float, pooled_width: int | None = None, pooled_dropout: float = 0.0
) -> Spec:
    """What heads need to know of a model that returns states for text and regions, fused and pooled.

    Args:
        text, regions: its embedders.
        eps: of its LayerNorms.
        std, pooled_width, pooled_dropout: see ``Spec``.
    """
    return Spec(
        text.width,
        ("fused", "pooled"),
        text.vocab_size,
        token_table=text.words,
        norm_eps=eps,
        visual_width=regions.width,
        pooled_width=pooled_width,
        pooled_dropout=pooled_dropout,
        feature_width=regions.features,
        feature_projection=regions.feature_projection,
        std=std,
        alone=False,
    )


class TwoStreams:
    """The states of both streams; every method replaces them by what a block makes of them.

    Args:
        text, image: packed states after the embedders; the image's take the type of the text's.
        text_blocks, image_blocks: post-norm stacks whose blocks are called one by one.
        co_attention: blocks in which the streams read each other.
    """

    def __init__(self, text: Ragged, image: Ragged, text_blocks: Transformer, image_blocks: Transformer, co_attention: CoAttention) -> None:
        self.text, self.image = text, Ragged(image.x_ND.to(text.x_ND.dtype), image.layout)
        self._text_blocks, self._image_blocks, self._co_blocks = text_blocks.blocks, image_blocks.blocks, co_attention.blocks
        self._text_plan, self._image_plan = self._plan(text_blocks, self.text), self._plan(image_blocks, self.image)
        self._plans = co_attention.plans(self.text, self.image)

    @staticmethod
    def _plan(stack: Transformer, x: Ragged) -> Plan:
        dropping = stack.training and stack.attention_dropout > 0
        dtype, head = kernel_dtype(x.x_ND), stack.width // stack.heads
        return plan(x.layout, x.x_ND.device, stack.attention, dtype=dtype, dropping=dropping, width=stack.width, head=head)

    @staticmethod
    def _through(block: nn.Module, x: Ragged, table: Plan, first: bool) -> Ragged:
        if not first:
            return Ragged(block(x.x_ND, table), x.layout)
        return Ragged(block(x.x_ND, table, x.layout.first_B(x.x_ND.device)), Layout((1,) * x.layout.size))

    def text_block(self, i: int, first: bool = False) -> None:
        """Text through its block ``i``; ``first``: the first token of each text is all that is wanted from here on."""
        self.text = self._through(self._text_blocks[i], self.text, self._text_plan, first)

    def image_block(self, i: int, first: bool = False) -> None:
        """The image through its block ``i``; ``first``: its first token is all that is wanted from here on."""
        self.image = self._through(self._image_blocks[i], self.image, self._image_plan, first)

    def co_block(self, i: int) -> None:
        """Both streams through co-attention block ``i``."""
        text_ND, image_ND = self._co_blocks[i](self.text.x_ND, self.image.x_ND, *self._plans)
        self.text, self.image = Ragged(text_ND, self.text.layout), Ragged(image_ND, self.image.layout)


def check_streams(
    name: str, text: TextEmbedder, regions: RegionEmbedder, text_blocks: Transformer, image_blocks: Transformer, co_attention: CoAttention
) -> None:
    """Do the parts of the two-stream model ``name`` fit together?

    Raises:
        ValueError: parts of a stream differ in width; a stack is not post-norm, or has a norm of its own; the image has no token to pool.
    """
    widths = {"text": (text.width, text_blocks.width, co_attention.text_width)}
    widths["image"] = (regions.width, image_blocks.width, co_attention.image_width)
    for stream, found in widths.items():
        if len(set(found)) > 1:
            raise ValueError(f"{name}: embedder, blocks and co-attention of the {stream} must have one width, got {found}")
    for option, stack in (("text_blocks", text_blocks), ("image_blocks", image_blocks)):
        if stack.causal or not isinstance(stack.norm, nn.Identity) or not all(block.post for block in stack.blocks):
            raise ValueError(f"{name}: {option} must be BERT's: set norm: post, final_norm: false, causal: false")
    if regions.global_feature != "first":
        raise ValueError(f"{name} pools the global feature, which stands before the regions: set global_feature: first in regions")
