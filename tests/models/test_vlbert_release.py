"""VL-BERT against states that its released code gave for the same weights and inputs (``tests/golden/README.md``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import closed_form, vlbert_case
from torch import Tensor, nn

from mmpretrain.models.vlbert import VLBERT
from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.cnn import ResNet
from mmpretrain.nn.heads import VocabularyHead
from mmpretrain.nn.region_heads import RegionHead
from mmpretrain.nn.roi import BoxFeatures
from mmpretrain.nn.vlbert import VLBERTEmbedder
from mmpretrain.types import Batch, Pixels, RegionBatch, Text

GOLDEN = Path(__file__).parents[1] / "golden" / "vlbert_states.npz"
BLOCK = {
    "attention.out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
    "norm2": "output.LayerNorm",
}
EMBED = {
    "words.weight": "vlbert.word_embeddings.weight",
    "positions.weight": "vlbert.position_embeddings.weight",
    "segments.weight": "vlbert.token_type_embeddings.weight",
    "end": "vlbert.end_embedding.weight",
    "object_word": "object_linguistic_embeddings.weight",
    "mask_word": "object_mask_word_embedding.weight",
    "mask_visual": "object_mask_visual_embedding.weight",
    "text_visual": "aux_text_visual_embedding.weight",
}
PARTS = {
    "embed.projection": "image_feature_extractor.obj_downsample.1",
    "embed.text_norm": "vlbert.visual_ln_text",
    "embed.object_norm": "vlbert.visual_ln_object",
    "embed.norm": "vlbert.embedding_LayerNorm",
    "mlm.dense": "vlbert.mlm_head.predictions.transform.dense",
    "mlm.norm": "vlbert.mlm_head.predictions.transform.LayerNorm",
    "mlm": "vlbert.mlm_head.predictions",
    "mvrc.transform.dense": "vlbert.mvrc_head.transform.dense",
    "mvrc.decoder": "vlbert.mvrc_head.region_cls_pred",
    "detector.cnn.layer4": "image_feature_extractor.roi_head_feature_extractor",
    "detector.cnn": "image_feature_extractor.backbone",
}


def released(name: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor of the release that ours of that name holds."""
    if name.startswith("embed.") and name[6:] in EMBED:
        return closed_form.weight(EMBED[name[6:]], shape)
    if name.startswith("transformer.blocks."):
        _, _, layer, part, leaf = name.replace("attention.qkv", "qkv").replace("attention.out", "out").replace("mlp.", "mlp_").split(".")
        if part == "qkv":
            third = (shape[0] // 3, *shape[1:])
            names = (f"vlbert.encoder.layer.{layer}.attention.self.{one}.{leaf}" for one in ("query", "key", "value"))
            return torch.cat([closed_form.weight(one, third) for one in names])
        own = {"out": "attention.out", "mlp_up": "mlp.up", "mlp_down": "mlp.down"}.get(part, part)
        return closed_form.weight(f"vlbert.encoder.layer.{layer}.{BLOCK[own]}.{leaf}", shape)
    part = next(part for part in PARTS if name.startswith(f"{part}."))
    return closed_form.weight(PARTS[part] + name[len(part) :], shape)


def build(end_to_end: bool) -> tuple[VLBERT, nn.ModuleDict]:
    """The tiny model and heads of the release's size with its weights, in evaluation mode."""
    embed = VLBERTEmbedder(60, 32, positions=16, mask_visual=not end_to_end)
    cnn = ResNet("resnet50", norm="fixed", freeze=2, dilated=True, stride_in_1x1=True) if end_to_end else None
    blocks = Transformer(32, 2, 4, mlp_ratio=2.0, norm="post", final_norm=False, eps=1e-12, attention="eager")
    model = VLBERT(embed, blocks, None if cnn is None else BoxFeatures(cnn))
    heads = nn.ModuleDict({"mlm": VocabularyHead(32, 60, model.embed.words), "mvrc": RegionHead(32, 11, norm=False)})
    for module in (model, heads):
        module.load_state_dict({name: released(name, tuple(value.shape)) for name, value in module.state_dict().items()})
        module.eval()
    return model, heads


def lengths(ids: Tensor) -> tuple[int, ...]:
    return tuple((ids > 0).sum(1).tolist())


def close(found: Tensor, expected: np.ndarray, sizes: tuple[int, ...], logits: bool = False) -> None:
    """Packed rows against padded ones: 1e-5, for logits times the largest."""
    padded = torch.from_numpy(expected).view(len(sizes), -1, expected.shape[1])
    wanted = torch.cat([padded[i, :n] for i, n in enumerate(sizes)])
    tolerance = 1e-5 * (wanted.abs().max().item() if logits else 1.0)
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", ["precomputed", "end_to_end"])
@torch.no_grad()
def test_states_and_logits_are_those_of_the_release(name: str) -> None:
    golden = np.load(GOLDEN)
    case, (model, heads) = vlbert_case.case(name), build(name == "end_to_end")
    removed = case.removed
    if name == "precomputed":
        features, image = case.features.masked_fill(removed[:, None], 0), None
    else:
        features, image = torch.zeros(3, 1), Pixels(case.pixels, case.sizes)
    regions = RegionBatch(features, case.boxes, case.lengths, case.sizes, chosen_N=removed, removed_N=removed)
    keys = tuple("abc"[: len(case.sizes)])
    batch = Batch(keys, torch.arange(len(keys)), Text(case.ids, lengths(case.ids)), image, regions=regions)
    out, objects = model(batch), tuple(n + 1 for n in case.lengths)
    close(out.text.x_ND, golden[f"{name}.text"], lengths(case.ids))
    close(out.image.x_ND, golden[f"{name}.objects"], objects)
    close(heads["mlm"](out.text.x_ND)[:, :7], golden[f"{name}.mlm"], lengths(case.ids), logits=True)
    close(heads["mvrc"](out.image.x_ND), golden[f"{name}.mvrc"], objects, logits=True)
    if image is not None:
        close(model._objects(batch, regions).features_NF[:, ::128], golden[f"{name}.raw"], objects, logits=True)
    texts = Batch(("d", "e"), torch.arange(2), Text(case.alone, lengths(case.alone)))
    close(model(texts).text.x_ND, golden[f"{name}.alone"], lengths(case.alone))
