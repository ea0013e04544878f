"""BEiT: sizes, invariances, relative positions, stochastic depth, what stands for a picture."""

import pytest
import torch
from helpers.beit_case import batch, beit, part

from mmpretrain.models.beit import BEiT
from mmpretrain.nn.attention import plan
from mmpretrain.nn.embed import PatchEmbedder
from mmpretrain.nn.grids import relative
from mmpretrain.nn.misfit import Misfit
from mmpretrain.nn.ragged import Layout
from mmpretrain.nn.vit import RelativeBias, VisionTransformer
from mmpretrain.objectives.mim import CodeHead
from mmpretrain.types import Pixels

FORMS = {
    "shared": {},
    "block": {"relative": "block"},
    "absolute": {"relative": "none", "positions": True, "layer_scale": None, "key_bias": True},
    "both": {"positions": True, "layer_scale": 1e-5},
}


def rows(ragged, i: int) -> torch.Tensor:
    return ragged.x_ND[ragged.layout.starts[i] : ragged.layout.starts[i + 1]]


@pytest.mark.parametrize(("width", "depth", "heads", "count"), [(768, 12, 12, 91_965_776), (1024, 24, 16, 311_534_016)])
def test_parameter_counts_are_those_of_transformers(width: int, depth: int, heads: int, count: int) -> None:
    """With the head of 8,192 codes; the numbers are those of ``BeitForMaskedImageModeling``."""
    from transformers import BeitConfig, BeitForMaskedImageModeling

    sizes = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads, "intermediate_size": 4 * width}
    with torch.device("meta"):
        model = BEiT(PatchEmbedder(width, 16, 14, positions=False, mask_token=True), VisionTransformer(width, depth, heads))
        head = CodeHead(width, 8192, 0.02, 1e-6, transform=False)
        theirs = BeitForMaskedImageModeling(BeitConfig(**sizes, use_mask_token=True, use_shared_relative_position_bias=True))
    own = sum(p.numel() for part in (model, head) for p in part.parameters())
    assert own == count == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_company_order_and_padding_do_not_matter(form: str, training: bool, attention: str) -> None:
    """With stochastic depth too: its draws are keyed by the sample."""
    model, whole = beit(attention=attention, drop_path=0.6, **FORMS[form]).train(training), batch()
    out = model(whole)
    for order, grow in (([2, 0, 3, 1], 0), ([1], 2), ([3, 2], 1)):
        own = model(part(whole, order, grow))
        for place, i in enumerate(order):
            torch.testing.assert_close(rows(own.image, place), rows(out.image, i), atol=1e-5, rtol=0)
            torch.testing.assert_close(own.pooled_BD[place], out.pooled_BD[i], atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", FORMS)
def test_sdpa_has_the_gradients_of_the_plain_softmax(form: str) -> None:
    """Those of the tables of relative positions too."""
    found = []
    for attention in ("eager", "sdpa"):
        model = beit(attention=attention, **FORMS[form]).train()
        model(batch(((32, 32), (32, 32)) if form == "both" else ((32, 32), (16, 24)))).image.x_ND.square().sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    assert ("transformer.relative.table" in found[0]) == (form in ("shared", "both"))
    for name, grad in found[0].items():
        if name != "image.mask_token":
            torch.testing.assert_close(found[1][name], grad, atol=2e-4, rtol=2e-4, msg=name)
            assert grad.abs().sum() > 0


def test_relative_positions_by_a_plain_loop() -> None:
    for height, width, grid in ((4, 4, 4), (2, 3, 4), (1, 1, 2)):
        index, side = relative(height, width, grid), 2 * grid - 1
        places = [(y, x) for y in range(height) for x in range(width)]
        assert index[0, 0] == side**2 + 2 and (index[0, 1:] == side**2).all() and (index[1:, 0] == side**2 + 1).all()
        for i, (y, x) in enumerate(places, 1):
            for j, (v, u) in enumerate(places, 1):
                assert index[i, j] == (y - v + grid - 1) * side + (x - u + grid - 1)
    bias = RelativeBias(4, 2)
    assert not bias.table.any() and bias.table.shape == (52, 2)


def test_patches_are_told_apart_by_relative_positions_alone() -> None:
    """Without any position a permutation of patches is a permutation of states; with relative ones it is not, but the shift of a picture
    changes nothing for those that see the same."""
    model = beit()
    whole = batch(((32, 32),))
    turned = whole._replace(image=whole.image._replace(pixels_BCHW=whole.image.pixels_BCHW.flip(2)))
    assert (model(whole).pooled_BD - model(turned).pooled_BD).abs().max() > 1e-2
    with torch.no_grad():
        model.transformer.relative.table.zero_()
        blocks = lambda x: x.unfold(2, 8, 8).unfold(3, 8, 8).flatten(2, 3)  # (B, 3, 16, 8, 8)
        pixels = blocks(whole.image.pixels_BCHW)
        order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
        mixed = pixels[:, :, order].view(1, 3, 4, 4, 8, 8).transpose(3, 4).reshape(1, 3, 32, 32)
        out, other = model(whole).image.x_ND, model(whole._replace(image=Pixels(mixed, ((32, 32),)))).image.x_ND
    torch.testing.assert_close(other, out[order], atol=1e-5, rtol=0)


def test_stochastic_depth() -> None:
    """The first block is never skipped, the last one with the rate; what is kept is scaled up; evaluation keeps all."""
    stack = VisionTransformer(32, 3, 4, grid=4, drop_path=0.5).train()
    layout = Layout((5,) * 4000)
    keep = stack._keep(layout, torch.arange(4000) * 7919 + 13)
    assert keep.shape == (3, 20_000, 2)
    each = keep.view(3, 4000, 5, 2)
    assert torch.equal(each[:, :, :1].expand_as(each), each)  # a sample, not a token
    for block, rate in enumerate((0.0, 0.25, 0.5)):
        skipped = (each[block, :, 0] == 0).float()
        assert (skipped.mean(0) - rate).abs().max() < 4 * (rate * (1 - rate) / 4000) ** 0.5 + 1e-9
        kept = each[block, :, 0][skipped == 0]
        torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - rate)))
    assert ((each[2, :, 0, 0] == 0) & (each[2, :, 0, 1] == 0)).float().mean() < 0.3  # branches are drawn apart
    assert stack.eval()._keep(layout, None) is None
    with pytest.raises(ValueError, match="draw keys"):
        stack.train()._keep(layout, None)


def test_what_stands_for_a_picture() -> None:
    mean, cls = beit(), beit(pooling="cls")
    whole = batch()
    patches, states = mean(whole), cls(whole)
    assert patches.text is None and (patches.image_prefix, states.image_prefix) == (0, 1)
    assert patches.image.layout.lengths == (16, 8, 6, 12) and states.image.layout.lengths == (17, 9, 7, 13)
    for i in range(4):
        torch.testing.assert_close(rows(states.image, i)[1:], rows(patches.image, i))
        torch.testing.assert_close(states.pooled_BD[i], rows(states.image, i)[0])
        torch.testing.assert_close(patches.pooled_BD[i], rows(patches.image, i).mean(0))
    square = batch(((32, 32), (32, 32)))
    torch.testing.assert_close(mean(square).pooled_BD, mean(square).image.x_ND.view(2, 16, 32).mean(1))


@pytest.mark.parametrize("form", FORMS)
def test_trains_after_an_evaluation_in_inference_mode(form: str) -> None:
    """The table of pairs is kept between batches."""
    model, whole = beit(**FORMS[form]), batch(((8, 24), (24, 8), (16, 24)))  # sizes that no other test has
    with torch.inference_mode():
        model(whole)
    model(whole).pooled_BD.sum().backward()


@pytest.mark.parametrize("sizes", [((32, 32), (32, 32)), ((32, 32), (8, 16))])
def test_states_are_fp32_under_autocast_also_without_layer_scale(sizes: tuple) -> None:
    model, seen = beit(layer_scale=None), []
    for block in model.blocks():
        block.register_forward_hook(lambda _, inputs, output: seen.extend((inputs[0].dtype, output.dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        out = model(batch(sizes))
    assert set(seen) == {torch.float32} and out.pooled_BD.dtype == torch.float32


def test_initialisation() -> None:
    torch.manual_seed(0)
    stack = VisionTransformer(64, 4, 4, grid=4)
    for number, block in enumerate(stack.blocks, 1):
        for weight, std in (
            (block.attention.qkv.weight, 0.02), (block.mlp.up.weight, 0.02), (block.attention.out.weight, 0.02 / (2 * number) ** 0.5),
            (block.mlp.down.weight, 0.02 / (2 * number) ** 0.5),
        ):  # fmt: skip
            assert weight.abs().max() <= std and abs(weight.std().item() / std - 0.54) < 0.02  # of a normal cut at one deviation
        assert block.scale1.eq(0.1).all() and block.scale2.eq(0.1).all()
    image = PatchEmbedder(64, 8, 4, positions=False, mask_token=True, init="trunc_normal_std")
    assert 0 < image.mask_token.abs().max() <= 0.02 and image.class_token.abs().max() <= 0.02
    assert set(dict(image.named_parameters())) == {"projection.weight", "projection.bias", "class_token", "mask_token"}


def test_spec_blocks_and_mistakes() -> None:
    model = beit()
    spec = model.spec
    assert (spec.width, spec.kinds, spec.vocab_size, spec.patch_size, spec.masks_patches) == (32, ("fused",), 0, 8, True)
    assert len(model.blocks()) == 3
    with pytest.raises(ValueError, match="not 'paired'"):
        model(batch(), "paired")
    with pytest.raises(ValueError, match="BEiT reads pictures alone, and the batch has none"):
        model(batch()._replace(image=None))
    with pytest.raises(Misfit, match="5 x 4 patches is larger than the relative positions of 4 x 4"):
        model(batch(((40, 32),)))
    image, bare = PatchEmbedder(32, 8, 4, patch_limit=6), PatchEmbedder(32, 8, 4, positions=False)
    plain = VisionTransformer(32, 1, 4, grid=4, relative="none")
    for parts, match in (
        ((PatchEmbedder(16, 8, 4), VisionTransformer(32, 1, 4)), "one width, got 16 and 32"),
        ((image, VisionTransformer(32, 1, 4)), "patch_limit=6 drops some: set patch_limit: -1"),
        ((bare, plain), "nothing tells where a patch is"),
        ((image, plain, "max"), "pooling='max' is mean or cls"),
    ):
        with pytest.raises(ValueError, match=match):
            BEiT(*parts)
    sampled = BEiT(image, plain).train()
    assert sampled(batch()).image.layout.lengths == (6, 6, 6, 6)
    for options, match in (({"relative": "both"}, "relative='both'"), ({"drop_path": 1.0}, "drop_path=1.0"), ({"depth": 0}, "depth=0")):
        with pytest.raises(ValueError, match=match):
            VisionTransformer(**{"width": 32, "depth": 1, "heads": 4, **options})
    with pytest.raises(ValueError, match="a bias of scores"):
        plan(Layout((3,)), torch.device("cpu"), "varlen", biased=True)
    with pytest.raises(ValueError, match="cannot be causal"):
        plan(Layout((3,)), torch.device("cpu"), causal=True, biased=True)


@pytest.mark.parametrize("form", FORMS)
def test_every_parameter_can_be_born_on_meta_and_is_trained(form: str) -> None:
    options = dict(FORMS[form])
    with torch.device("meta"):
        image = PatchEmbedder(32, 8, 4, positions=options.pop("positions", False), mask_token=True)
        model = BEiT(image, VisionTransformer(32, 2, 4, grid=4, **options))
    model.to_empty(device="cpu")
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        assert not own or hasattr(module, "reset_parameters"), type(module)
        if own:
            module.reset_parameters()
    whole = batch()
    masked = torch.zeros(42, dtype=torch.bool)
    masked[::3] = True
    out = model.train()(whole._replace(image=whole.image._replace(masked_N=masked)))
    out.image.x_ND[:, 0].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
