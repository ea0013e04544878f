"""CLIP: sizes, invariances, the end of text, inits."""

import open_clip
import pytest
import torch
from helpers import tiny

from mmpretrain.models.clip import CLIP, ResNetTower, TextTower, ViTTower
from mmpretrain.types import Pixels, Text
from mmpretrain.weights.clip_config import build, system_from_open_clip

SQUARE = ((32, 32),) * 4


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336"])
def test_parameter_counts_are_open_clips(name: str) -> None:
    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        ours, theirs = build(system_from_open_clip(config)), open_clip.CLIP(**config)
    assert count(ours) == count(theirs)
    if name == "ViT-B-32":
        assert count(ours) == 151_277_313


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_company_order_and_padding_do_not_matter(attention: str) -> None:
    model, batch = tiny.clip(attention=attention), tiny.batch(SQUARE)
    whole = model(batch)
    order = [2, 0]
    text = Text(torch.nn.functional.pad(batch.text.ids_BT[order], (0, 3), value=58), tuple(batch.text.lengths[i] for i in order))
    image = Pixels(torch.nn.functional.pad(batch.image.pixels_BCHW[order], (0, 16, 0, 8), value=9.0), SQUARE[:2])
    part = model(batch._replace(keys=("a", "b"), text=text, image=image))
    torch.testing.assert_close(part.image_BE, whole.image_BE[order], atol=1e-5, rtol=0)
    torch.testing.assert_close(part.text_BE, whole.text_BE[order], atol=1e-5, rtol=0)


@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_features_have_length_one_also_under_autocast(tower: str) -> None:
    model = tiny.clip(tower, attention="sdpa")
    batch = tiny.batch(SQUARE if tower == "vit" else ((64, 64),) * 4)
    plain = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(batch)
    for x, y in ((out.image_BE, plain.image_BE), (out.text_BE, plain.text_BE)):
        assert x.dtype == torch.float32
        torch.testing.assert_close(x.norm(dim=1), torch.ones(4))
        assert (x * y).sum(1).min() > 0.98


def test_one_modality_alone() -> None:
    model, batch = tiny.clip(), tiny.batch(SQUARE)
    assert model(batch._replace(image=None)).image_BE is None
    assert model(batch._replace(text=None)).text_BE is None
    with pytest.raises(ValueError, match="text, images or both"):
        model(batch._replace(text=None, image=None))


def test_mistakes_are_named() -> None:
    model = tiny.clip()
    with pytest.raises(ValueError, match="image 0 of the batch is 24 x 40"):
        model(tiny.batch())
    with pytest.raises(ValueError, match="paired"):
        model(tiny.batch(SQUARE), "fused")
    with pytest.raises(ValueError, match="projects to 48, embed_dim is 32"):
        CLIP(ResNetTower(64, (1, 1, 1, 1), 8, 4, 48), TextTower(60, 16, 64, 1, 1), 32)
    with pytest.raises(ValueError, match="does not divide image_size"):
        ViTTower(30, 8)


def test_initial_values_are_the_papers() -> None:
    torch.manual_seed(0)
    model = CLIP(ViTTower(64, 16, 128, 2, 2), TextTower(500, 40, 256, 6, 4), 64)
    text, image = model.text, model.image
    expected = [
        (text.embed.words.weight, 0.02),
        (text.embed.positions.weight, 0.01),
        (text.transformer.blocks[0].attention.qkv.weight, 256**-0.5),
        (text.transformer.blocks[0].attention.out.weight, 256**-0.5 * 12**-0.5),
        (text.transformer.blocks[3].mlp.up.weight, 512**-0.5),
        (text.transformer.blocks[3].mlp.down.weight, 256**-0.5 * 12**-0.5),
        (model.text_projection.weight, 256**-0.5),
        (model.image_projection.weight, 128**-0.5),
        (image.embed.positions, 128**-0.5),
        (image.transformer.blocks[0].attention.qkv.weight, (2 / (4 * 128)) ** 0.5),
        (image.transformer.blocks[0].mlp.up.weight, (3 * 128) ** -0.5),
    ]
    for weight, std in expected:
        assert abs(weight.std().item() / std - 1) < 0.06, (tuple(weight.shape), std)
    assert image.transformer.blocks[0].attention.qkv.bias.abs().max() == 0
    assert image.transformer.blocks[0].mlp.up.bias.abs().max() > 0
    assert model.logit_scale.shape == (1,)
    assert model.logit_scale.exp().item() == pytest.approx(1 / 0.07)
    resnet = ResNetTower(64, (1, 1, 1, 1), 16, 8, 32)
    assert all(block.bn3.weight.abs().max() == 0 for stage in resnet.trunk.stages for block in stage)


def test_spec_blocks_and_birth_on_meta() -> None:
    for tower, blocks in (("vit", 4), ("resnet", 2)):
        model = tiny.clip(tower, bias=-10.0)
        assert len(model.blocks()) == blocks
        assert model.spec.embed_dim == 48
        assert model.spec.token_table is model.text.embed.words
        assert all(p.dim() > 0 for p in model.parameters())
        empty = model.to("meta").to_empty(device="cpu")
        for module in empty.modules():
            own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            assert not own or hasattr(module, "reset_parameters"), type(module)
            if own:
                module.reset_parameters()
        assert empty.logit_scale.item() == pytest.approx(2.6592600369)
        assert empty.logit_bias.item() == -10.0
        assert all(p.isfinite().all() for p in empty.parameters())
