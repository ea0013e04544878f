"""ViLT and CLIP that start as timm's ViT compute what it computes on patches; positions are resized as timm resizes them."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import timm
import torch
from helpers import tiny
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from mmpretrain.models.vilt import ViLT
from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.embed import PatchEmbedder, TextEmbedder
from mmpretrain.types import Pixels
from mmpretrain.weights.vit import FromViT, resized


def vit(size: int = 32, depth: int = 3, width: int = 32, **options) -> nn.Module:
    made = timm.models.VisionTransformer(
        img_size=size, patch_size=8, embed_dim=width, depth=depth, num_heads=4, num_classes=5, norm_layer=None, **options
    )
    return tiny.shake(made, 4)


def saved(path: Path, model: nn.Module) -> str:
    if path.suffix == ".safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save({"model": model.state_dict(), "epoch": 3}, path)
    return str(path)


def pictures(n: int = 3, side: int = 32) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", ["vit.safetensors", "vit.pth"])
@torch.no_grad()
def test_the_image_path_of_vilt(name: str, tmp_path: Path) -> None:
    theirs, model = vit(), tiny.vilt(eps=1e-6)
    others = {key: t.clone() for key, t in model.state_dict().items() if key.startswith(("text.", "modal_types.", "pooler."))}
    FromViT(saved(tmp_path / name, theirs))(model)
    x = pictures()
    out = model.transformer(model.image(Pixels(x, ((32, 32),) * 3)))
    torch.testing.assert_close(out.pad(), theirs.forward_features(x), atol=1e-5, rtol=0)
    assert all(torch.equal(model.state_dict()[key], t) for key, t in others.items())


@torch.no_grad()
def test_fewer_blocks_and_another_grid(tmp_path: Path) -> None:
    theirs = vit(size=56, depth=5)
    model = tiny.vilt(eps=1e-6)  # a grid of 4, three blocks
    FromViT(saved(tmp_path / "vit.safetensors", theirs))(model)
    expected = resample_abs_pos_embed(theirs.pos_embed, (4, 4))[0]
    torch.testing.assert_close(model.image.positions, expected[1:], atol=1e-6, rtol=0)
    assert torch.equal(model.image.class_position, expected[:1])
    theirs.set_input_size((32, 32))
    theirs.blocks = theirs.blocks[:3]
    x = pictures()
    out = model.transformer(model.image(Pixels(x, ((32, 32),) * 3)))
    torch.testing.assert_close(out.pad(), theirs.forward_features(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("grid", [2, 5, 9])
def test_positions_of_other_grids(grid: int) -> None:
    table = torch.randn(36, 24, generator=torch.Generator().manual_seed(1))
    expected = resample_abs_pos_embed(table[None], (grid, grid), num_prefix_tokens=0)[0]
    torch.testing.assert_close(resized(table, grid), expected, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="35 positions are no square"):
        resized(table[1:], 2)


@torch.no_grad()
def test_the_image_tower_of_clip(tmp_path: Path) -> None:
    """With its norm before the blocks, and a projection without bias that a ViT's bias fits into."""
    with_norm = tiny.shake(timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=128, depth=2, num_heads=2, num_classes=0, pre_norm=True,
        norm_layer=functools.partial(nn.LayerNorm, eps=1e-5), act_layer="quick_gelu",
    ), 4)  # fmt: skip
    model, x = tiny.clip(), pictures()
    FromViT(saved(tmp_path / "clip.safetensors", with_norm))(model)
    expected = with_norm.forward_features(x)[:, 0]
    torch.testing.assert_close(model.image(Pixels(x, ((32, 32),) * 3)), expected, atol=1e-5, rtol=0)

    plain = tiny.shake(timm.models.VisionTransformer(img_size=32, patch_size=8, embed_dim=128, depth=2, num_heads=2), 4)
    gain = model.image.pre_norm.weight.clone()
    FromViT(saved(tmp_path / "plain.safetensors", plain))(model)
    assert torch.equal(model.image.pre_norm.weight, gain)
    tokens = model.image.embed(Pixels(x, ((32, 32),) * 3)).pad()
    torch.testing.assert_close(tokens, plain._pos_embed(plain.patch_embed(x)), atol=1e-5, rtol=0)


def test_mistakes(tmp_path: Path) -> None:
    model, path = tiny.vilt(), tmp_path / "vit.safetensors"
    with pytest.raises(ValueError, match="no such file"):
        FromViT(str(path))(model)
    saved(path, vit(width=64))
    with pytest.raises(ValueError, match="width is 32 here and 64 in"):
        FromViT(str(path))(model)
    saved(path, vit(depth=2))
    with pytest.raises(ValueError, match=r"has 3 blocks, .* 2: lower depth"):
        FromViT(str(path))(model)
    saved(path, vit(init_values=0.1))
    with pytest.raises(ValueError, match=r"blocks\.0\.ls1\.gamma.*no place"):
        FromViT(str(path))(model)
    saved(path, vit(in_chans=1))
    with pytest.raises(ValueError, match="number of channels is 3 here and 1 in"):
        FromViT(str(path))(model)
    saved(path, vit(qkv_bias=False))
    with pytest.raises(ValueError, match=r"vit\.safetensors has nothing for blocks\.0\.attention\.qkv\.bias"):
        FromViT(str(path))(model)
    saved(path, timm.create_model("resnet10t"))
    with pytest.raises(ValueError, match=r"nothing is called patch_embed"):
        FromViT(str(path))(model)
    text, image = TextEmbedder(9, 32, 8), PatchEmbedder(32, 16, 2)
    saved(path, vit())
    with pytest.raises(ValueError, match="patch_size is 16 here and 8 in"):
        FromViT(str(path))(ViLT(text, image, Transformer(32, 1, 4)))
    with pytest.raises(ValueError, match="norm: pre"):
        FromViT(str(path))(ViLT(text, PatchEmbedder(32, 8, 4), Transformer(32, 1, 4, norm="post", final_norm=False)))
    with pytest.raises(ValueError, match="CLIP has no patches"):
        FromViT(str(path))(tiny.clip("resnet"))
    torch.save(vit(), tmp_path / "whole.pth")
    with pytest.raises(ValueError, match="could run code"):
        FromViT(str(tmp_path / "whole.pth"))(model)
