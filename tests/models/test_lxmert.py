"""LXMERT: size, and transformers' model tensor for tensor."""

import pytest
import torch
from helpers import tiny, two_streams
from torch import Tensor, nn

from mmpretrain.models.lxmert import LXMERT
from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.cross import CrossLayers
from mmpretrain.nn.embed import TextEmbedder
from mmpretrain.nn.regions import RegionEmbedder

EMBEDDERS = {
    "text.words": "embeddings.word_embeddings",
    "text.positions": "embeddings.position_embeddings",
    "text.segments": "embeddings.token_type_embeddings",
    "text.norm": "embeddings.LayerNorm",
    "regions.projection": "encoder.visn_fc.visn_fc",
    "regions.feature_norm": "encoder.visn_fc.visn_layer_norm",
    "regions.box_projection": "encoder.visn_fc.box_fc",
    "regions.box_norm": "encoder.visn_fc.box_layer_norm",
    "pooler.dense": "pooler.dense",
}
QKV = ("query", "key", "value")


def block(ours: str, attention: str, inner: str, outer: str) -> dict[str, str | tuple[str, ...]]:
    return {
        f"{ours}.attention.qkv": tuple(f"{attention}.self.{name}" for name in QKV),
        f"{ours}.attention.out": f"{attention}.output.dense",
        f"{ours}.norm1": f"{attention}.output.LayerNorm",
        f"{ours}.mlp.up": f"{inner}.dense",
        f"{ours}.mlp.down": f"{outer}.dense",
        f"{ours}.norm2": f"{outer}.LayerNorm",
    }


def names() -> dict[str, str | tuple[str, ...]]:
    """Our modules -> transformers'."""
    found: dict[str, str | tuple[str, ...]] = dict(EMBEDDERS)
    for ours, theirs, count in (("text_blocks", "layer", 3), ("image_blocks", "r_layers", 2)):
        for i in range(count):
            one = f"encoder.{theirs}.{i}"
            found |= block(f"{ours}.blocks.{i}", f"{one}.attention", f"{one}.intermediate", f"{one}.output")
    for i in range(2):
        ours, one = f"cross.blocks.{i}", f"encoder.x_layers.{i}"
        found[f"{ours}.qkv"] = tuple(f"{one}.visual_attention.att.{name}" for name in QKV)
        found[f"{ours}.out"], found[f"{ours}.norm"] = f"{one}.visual_attention.output.dense", f"{one}.visual_attention.output.LayerNorm"
        found |= block(f"{ours}.text", f"{one}.lang_self_att", f"{one}.lang_inter", f"{one}.lang_output")
        found |= block(f"{ours}.image", f"{one}.visn_self_att", f"{one}.visn_inter", f"{one}.visn_output")
    return found


def copied(twin: nn.Module, model: LXMERT) -> LXMERT:
    """Our model with the twin's tensors, every one of them used."""
    state, theirs = {}, dict(twin.state_dict())
    for name, sources in names().items():
        for leaf, _ in model.get_submodule(name).named_parameters(recurse=False):
            parts = [theirs.pop(f"{source}.{leaf}") for source in ([sources] if isinstance(sources, str) else sources)]
            state[f"{name}.{leaf}"] = torch.cat(parts)
    assert not [name for name in theirs if "position_ids" not in name]
    model.load_state_dict(state, strict=True)
    return model.eval()


def twin() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.LxmertConfig(
        vocab_size=30, hidden_size=24, num_attention_heads=4, intermediate_size=40, l_layers=3, r_layers=2, x_layers=2,
        max_position_embeddings=12, visual_feat_dim=10, visual_pos_dim=4,
    )
    model = transformers.LxmertModel(config).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            norm, linear = "layer_norm" in name.lower() or "layernorm" in name.lower(), parameter.dim() > 1 and "embeddings" not in name
            scale = parameter.shape[-1] ** -0.5 if linear else 0.5 if parameter.dim() > 1 else 0.1
            parameter.copy_(1 + 0.2 * draw if norm and name.endswith("weight") else scale * draw)
    return model


def padded(batch) -> dict[str, Tensor]:
    """What transformers' model takes: noise where there is no token or region, and masks."""
    text, regions = batch.text, batch.regions
    longest = max(regions.lengths)
    features, places = torch.full((len(batch.keys), longest, 10), 5.0), torch.full((len(batch.keys), longest, 4), 5.0)
    start = 0
    for i, (count, (height, width)) in enumerate(zip(regions.lengths, regions.sizes, strict=True)):
        features[i, :count] = regions.features_NF[start : start + count]
        places[i, :count] = regions.boxes_N4[start : start + count] / torch.tensor([width, height, width, height])
        start += count
    mask = lambda lengths, size: (torch.arange(size)[None] < torch.tensor(lengths)[:, None]).float()
    return {
        "input_ids": text.ids_BT,
        "token_type_ids": text.segments_BT,
        "attention_mask": mask(text.lengths, text.ids_BT.shape[1]),
        "visual_feats": features,
        "visual_pos": places,
        "visual_attention_mask": mask(regions.lengths, longest),
    }


def test_parameter_count_of_the_paper() -> None:
    with torch.device("meta"):
        model = LXMERT(
            TextEmbedder(30522, 768, 512, segments=2),
            RegionEmbedder(768, 2048, box="xyxy", combine="mean", branch_eps=1e-12, norm_eps=None),
            Transformer(768, 9, 12, norm="post", final_norm=False),
            Transformer(768, 5, 12, norm="post", final_norm=False),
            CrossLayers(768, 5, 12),
        )
    assert sum(p.numel() for p in model.parameters()) == 207_936_768


@pytest.mark.parametrize(("attention", "tolerance"), [("eager", 1e-5), ("sdpa", 1e-4)])
def test_equals_transformers(attention: str, tolerance: float) -> None:
    theirs = twin()
    model, batch = copied(theirs, two_streams.lxmert(attention)), two_streams.batch()
    inputs = padded(batch)
    with torch.no_grad():
        expected, out = theirs(**inputs), model(batch)
    text_mask, image_mask = inputs["attention_mask"].bool(), inputs["visual_attention_mask"].bool()
    torch.testing.assert_close(out.text.x_ND, expected.language_output[text_mask], atol=tolerance, rtol=0)
    torch.testing.assert_close(out.image.x_ND, expected.vision_output[image_mask], atol=tolerance, rtol=0)
    torch.testing.assert_close(out.pooled_BD, expected.pooled_output, atol=tolerance, rtol=0)
    assert out.image_prefix == 0


def test_gradients_equal_transformers_and_frozen_rows_have_none() -> None:
    theirs = twin()
    model, batch = copied(theirs, two_streams.lxmert()), two_streams.batch()
    inputs = padded(batch)
    weights = torch.randn(24)
    out, expected = model(batch), theirs(**inputs)
    (out.text.x_ND @ weights).square().sum().add((out.image.x_ND @ weights).square().sum()).backward()
    text_mask, image_mask = inputs["attention_mask"].bool(), inputs["visual_attention_mask"].bool()
    text, image = expected.language_output[text_mask], expected.vision_output[image_mask]
    (text @ weights).square().sum().add((image @ weights).square().sum()).backward()
    found = dict(theirs.named_parameters())
    for ours, table in (("words", "word"), ("positions", "position"), ("segments", "token_type")):
        grad = getattr(model.text, ours).weight.grad
        expected_grad = found[f"embeddings.{table}_embeddings.weight"].grad
        torch.testing.assert_close(grad, expected_grad, atol=1e-4 * float(expected_grad.abs().max()), rtol=0)
    assert model.text.positions.weight.grad[0].abs().max() == 0
    assert model.text.segments.weight.grad[0].abs().max() == 0
    grad = model.cross.blocks[0].qkv.weight.grad
    parts = [found[f"encoder.x_layers.0.visual_attention.att.{name}.weight"].grad for name in QKV]
    torch.testing.assert_close(grad, torch.cat(parts), atol=1e-4 * float(grad.abs().max()), rtol=0)


def test_rows_that_are_not_frozen_learn() -> None:
    model = tiny.shake(two_streams.lxmert(frozen_first=False))
    model(two_streams.batch()).pooled_BD.square().sum().backward()
    assert model.text.positions.weight.grad[0].abs().max() > 0
    assert model.text.segments.weight.grad[0].abs().max() > 0


def test_parts_of_different_widths() -> None:
    text, regions = TextEmbedder(30, 24, 12), RegionEmbedder(24, 10)
    with pytest.raises(ValueError, match="one width"):
        LXMERT(text, regions, Transformer(24, 1, 4), Transformer(24, 1, 4), CrossLayers(16, 1, 4))
