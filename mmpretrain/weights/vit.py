"""ViLT and the image tower of a CLIP that start as a ViT (Dosovitskiy et al., arXiv 2010.11929) from a file with timm's names.

ViLT's paper (arXiv 2102.03334, section 4.2) starts from ViT-B/32 trained on ImageNet, whose blocks become its only blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpretrain.methods.transform import Around, ModelTransform
from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.embed import PatchEmbedder
from mmpretrain.weights.files import WeightsError, read_state
from mmpretrain.weights.keymap import KeyMap, KeyMapError, Row, Rule, Stack
from mmpretrain.weights.layout import load_model

_BLOCK = "blocks.{i}."
_LEAVES = {
    "attention.qkv": "attn.qkv", "attention.out": "attn.proj", "norm1": "norm1", "norm2": "norm2", "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}  # fmt: skip
TIMM = KeyMap(
    [
        Rule("embed.projection.{p}", "patch_embed.proj.{p}"),
        Rule("embed.class_token", "cls_token", Row(2)),
        Rule(("embed.class_position", "embed.positions"), "pos_embed", Stack(1)),
        Rule("pre_norm.{p}", "norm_pre.{p}", optional=True),
        *(Rule(f"{_BLOCK}{ours}.{{p}}", f"{_BLOCK}{theirs}.{{p}}") for ours, theirs in _LEAVES.items()),
        Rule("norm.{p}", "norm.{p}"),
    ],
    "timm's ViT",
)
_HEADS = ("head.", "fc_norm.", "pre_logits.")  # of the classifier


class Tower(NamedTuple):
    """What of a model a ViT can fill."""

    embed: PatchEmbedder
    stack: Transformer
    pre_norm: nn.Module | None


def tower_of(model: nn.Module) -> Tower:
    """
    Raises:
        ValueError: the model cuts no patches, or has no blocks as a ViT has.
    """
    image = getattr(model, "image", None)
    embed = image if isinstance(image, PatchEmbedder) else getattr(image, "embed", None)
    stack = getattr(model if isinstance(image, PatchEmbedder) else image, "transformer", None)
    name = type(model).__name__
    if not isinstance(embed, PatchEmbedder) or not isinstance(stack, Transformer):
        raise ValueError(f"FromViT: {name} has no patches with blocks over them, as ViLT and CLIP with a ViT have")
    if any(block.post for block in stack.blocks) or not isinstance(stack.norm, nn.LayerNorm):
        raise ValueError(f"FromViT: the blocks of {name} must be a ViT's: set norm: pre and final_norm: true")
    return Tower(embed, stack, getattr(image, "pre_norm", None))


def resized(positions_ND: Tensor, grid: int) -> Tensor:
    """A square table of positions on another grid, (grid * grid, D): bicubic with antialiasing, as timm resizes it.

    Raises:
        WeightsError: the table is not square.
    """
    old = round(len(positions_ND) ** 0.5)
    if old * old != len(positions_ND):
        raise WeightsError(f"FromViT: {len(positions_ND)} positions are no square grid")
    if old == grid:
        return positions_ND
    table = positions_ND.float().view(1, old, old, -1).permute(0, 3, 1, 2)
    table = F.interpolate(table, (grid, grid), mode="bicubic", antialias=True)
    return table.permute(0, 2, 3, 1).reshape(grid * grid, -1)


class FromViT(ModelTransform):
    """The image path starts as a ViT: patch projection, class token, positions on the grid of the model, blocks, final norm.

    A projection without a bias (CLIP's) gets that of the file through the positions, which is the same function. The heads of the file are
    left out; number of heads and activation are not in a file of weights, so that the model must have those of the ViT.

    Args:
        file: timm's names, ``.safetensors`` or a state dict of ``torch.save``.
    """

    initialises: ClassVar[bool] = True

    def __init__(self, file: str) -> None:
        self.file = file

    @torch.no_grad()
    def __call__(self, model: nn.Module, around: Around = Around()) -> nn.Module:  # noqa: B008
        """
        Raises:
            ValueError: the model is of another kind or size than the ViT, or the file holds none.
        """
        tower = tower_of(model)
        state = {name: t for name, t in read_state(self.file).items() if not name.startswith(_HEADS)}
        try:
            found = TIMM.to_ours(state)
        except KeyMapError as error:
            raise WeightsError(f"FromViT: {self.file}: {error}") from None
        if found.leftover:
            raise WeightsError(f"FromViT: {self.file} has {', '.join(found.leftover[:4])}, for which a plain ViT has no place")
        there = 1 + max(int(name.split(".")[1]) for name in found.state if name.startswith("blocks."))
        _check(tower, found.state, there, self.file)
        _embedder(tower.embed, found.state)
        kept = {name: t for name, t in found.state.items() if name.startswith("norm.") or _number(name) < tower.stack.depth}
        blocks = {name: t for name, t in kept.items() if name.startswith(("norm.", "blocks."))}
        load_model(tower.stack, blocks, f"FromViT: {self.file}")
        if tower.pre_norm is not None and "pre_norm.weight" in found.state:
            tower.pre_norm.load_state_dict({leaf: found.state[f"pre_norm.{leaf}"] for leaf in ("weight", "bias")})
        self.said = f"{type(model).__name__} starts as {self.file}: {tower.stack.depth} of its {there} blocks"
        return model


def _number(name: str) -> int:
    """The block that a tensor belongs to; beyond all blocks for other tensors."""
    return int(name.split(".")[1]) if name.startswith("blocks.") else 1 << 30


def _check(tower: Tower, state: Mapping[str, Tensor], there: int, file: str) -> None:
    """
    Raises:
        WeightsError: the ViT has another size.
    """
    projection, patch = state["embed.projection.weight"], tower.embed.patch_size
    facts = {
        "width": (tower.embed.width, projection.shape[0]),
        "patch_size": (patch, projection.shape[-1]),
        "number of channels": (tower.embed.projection.in_channels, projection.shape[1]),
        "hidden width of the MLP": (tower.stack.hidden, state["blocks.0.mlp.up.weight"].shape[0]),
    }
    for what, (mine, theirs) in facts.items():
        if mine != theirs:
            raise WeightsError(f"FromViT: {what} is {mine} here and {theirs} in {file}: make them equal")
    if tower.stack.depth > there:
        raise WeightsError(f"FromViT: the model has {tower.stack.depth} blocks, {file} {there}: lower depth")
    if "pre_norm.weight" in state and tower.pre_norm is None:
        raise WeightsError(f"FromViT: {file} norms its patches before the blocks (norm_pre), which the model does not")


def _embedder(embed: PatchEmbedder, state: Mapping[str, Tensor]) -> None:
    """Fill the patch embedder."""
    positions, bias = resized(state["embed.positions"], embed.grid), state.get("embed.projection.bias")
    embed.projection.weight.copy_(state["embed.projection.weight"])
    if embed.projection.bias is None:
        positions = positions if bias is None else positions + bias
    elif bias is None:
        embed.projection.bias.zero_()
    else:
        embed.projection.bias.copy_(bias)
    embed.positions.copy_(positions)
    embed.class_token.copy_(state["embed.class_token"])
    embed.class_position.copy_(state["embed.class_position"])
