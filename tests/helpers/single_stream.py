"""Tiny single-stream models over regions, a ragged batch for them, and padded plain-torch parts to hold them against."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from helpers.region_batches import region_batch
from helpers.tiny import shake
from torch import Tensor
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEncoder

from mmpretrain.models.imagebert import ImageBERT
from mmpretrain.models.oscar import Oscar
from mmpretrain.models.unicoder_vl import UnicoderVL
from mmpretrain.models.uniter import UNITER
from mmpretrain.models.visualbert import VisualBERT
from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.embed import TextEmbedder
from mmpretrain.nn.fusion import SingleStream
from mmpretrain.nn.ragged import Layout
from mmpretrain.nn.regions import RegionEmbedder
from mmpretrain.types import Batch, RegionBatch, Text

WIDTH, HEADS, DEPTH, FEATURES, WORDS = 48, 4, 2, 12, 60
LENGTHS, COUNTS = (9, 4, 12, 6), (5, 1, 7, 3)


def _blocks(attention: str) -> Transformer:
    options = {"norm": "post", "eps": 1e-12, "final_norm": False, "activation_dropout": 0.0, "init": "normal"}
    return Transformer(WIDTH, DEPTH, HEADS, attention=attention, **options)


def _text(norm_eps: float | None = 1e-12) -> TextEmbedder:
    return TextEmbedder(WORDS, WIDTH, 14, segments=2, norm_eps=norm_eps)


def uniter(attention: str = "eager") -> UNITER:
    return UNITER(_text(), RegionEmbedder(WIDTH, FEATURES, "xyxywha", branch_eps=1e-12, mask_embedding=True), _blocks(attention))


def unicoder_vl(attention: str = "eager", region_segment: int | None = None) -> UnicoderVL:
    return UnicoderVL(_text(), RegionEmbedder(WIDTH, FEATURES, "xyxya"), _blocks(attention), region_segment=region_segment)


def imagebert(attention: str = "eager") -> ImageBERT:
    return ImageBERT(_text(), RegionEmbedder(WIDTH, FEATURES, "xyxya"), _blocks(attention))


def oscar(attention: str = "eager") -> Oscar:
    return Oscar(_text(), RegionEmbedder(WIDTH, FEATURES, "xyxywh", combine="concat", norm_eps=None), _blocks(attention))


def oscar_plus(attention: str = "eager") -> Oscar:
    return Oscar(_text(), RegionEmbedder(WIDTH, FEATURES, "xyxywh", combine="concat"), _blocks(attention))


def visualbert(attention: str = "eager") -> VisualBERT:
    regions = RegionEmbedder(WIDTH, FEATURES, "none", norm_eps=None, positions=14, types=2)
    return VisualBERT(_text(None), regions, _blocks(attention))


MAKERS: dict[str, Callable[..., SingleStream]] = {
    "uniter": uniter,
    "unicoder_vl": unicoder_vl,
    "imagebert": imagebert,
    "oscar": oscar,
    "oscar_plus": oscar_plus,
    "visualbert": visualbert,
}


def shaken(name: str, attention: str = "eager") -> SingleStream:
    """A model with gains around 1 and everything else off zero, in eval mode."""
    made = MAKERS[name](attention)
    shake(made)
    return made


def batch(seed: int = 1) -> Batch:
    """Pairs of texts and regions, both ragged, pictures of several sizes. What pads the texts is no zero."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, WORDS, (len(LENGTHS), max(LENGTHS)), generator=generator)
    segments = (torch.arange(max(LENGTHS)) >= torch.tensor(LENGTHS)[:, None] // 2).long()
    sizes = ((480, 640), (500, 700), (1000, 650), (480, 640))
    keys = torch.arange(len(LENGTHS), dtype=torch.int64) * 7919 + 13
    text, regions = Text(ids, LENGTHS, segments_BT=segments), region_batch(COUNTS, FEATURES, seed)._replace(sizes=sizes)
    return Batch(tuple(f"s{i}" for i in range(len(LENGTHS))), keys, text, regions=regions)


def words(model: SingleStream, text: Text) -> Tensor:
    """BERT's sum of tables on the padded grid, (B, T, D), before the norm."""
    ids_BT = text.ids_BT
    segments_BT = torch.zeros_like(ids_BT) if text.segments_BT is None else text.segments_BT
    places = F.embedding(torch.arange(ids_BT.shape[1]), model.text.positions.weight)
    return F.embedding(ids_BT, model.text.words.weight) + places + F.embedding(segments_BT, model.text.segments.weight)


def norm(x: Tensor, layer: torch.nn.Module) -> Tensor:
    """LayerNorm with the weights of ``layer``."""
    return F.layer_norm(x, (x.shape[-1],), layer.weight, layer.bias, 1e-12)


def linear(x: Tensor, layer: torch.nn.Module) -> Tensor:
    """A linear layer with the weights of ``layer``."""
    return x @ layer.weight.T + layer.bias


def corners(regions: RegionBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Padded features (B, R, F), corners (B, R, 4) and sides (B, R, 2) as shares of the picture."""
    layout = Layout(regions.lengths)
    sides = torch.tensor([[w, h] for h, w in regions.sizes], dtype=torch.float32)[:, None]
    box = layout.pad(regions.boxes_N4) / sides.repeat(1, 1, 2)
    return layout.pad(regions.features_NF), box, box[..., 2:] - box[..., :2]


def bert_encoder(stack: Transformer) -> BertEncoder:
    """transformers' encoder with the weights of ``stack``."""
    config = BertConfig(
        hidden_size=stack.width,
        num_hidden_layers=stack.depth,
        num_attention_heads=stack.heads,
        intermediate_size=stack.hidden,
        attn_implementation="eager",
    )
    made = BertEncoder(config).eval()
    for block, layer in zip(stack.blocks, made.layer, strict=True):
        qkv, read = block.attention.qkv, layer.attention.self
        with torch.no_grad():
            for i, part in enumerate((read.query, read.key, read.value)):
                part.weight.copy_(qkv.weight.view(3, stack.width, stack.width)[i])
                part.bias.copy_(qkv.bias.view(3, stack.width)[i])
        layer.attention.output.dense.load_state_dict(block.attention.out.state_dict())
        layer.attention.output.LayerNorm.load_state_dict(block.norm1.state_dict())
        layer.intermediate.dense.load_state_dict(block.mlp.up.state_dict())
        layer.output.dense.load_state_dict(block.mlp.down.state_dict())
        layer.output.LayerNorm.load_state_dict(block.norm2.state_dict())
    return made


def padded_run(model: SingleStream, text_BTD: Tensor, image_BVD: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """BERT's encoder over [padded text; padded regions] with a mask, and its pooler: packed states of the texts, of the regions, pooled."""
    text, regions = Layout(batch.text.lengths), Layout(batch.regions.lengths)
    real_BL = torch.cat([text.mask_BL(text_BTD.device), regions.mask_BL(text_BTD.device)], 1)
    bias = torch.zeros(real_BL.shape).masked_fill(~real_BL, torch.finfo(torch.float32).min)[:, None, None]
    out = bert_encoder(model.transformer)(torch.cat([text_BTD, image_BVD], 1), attention_mask=bias).last_hidden_state
    pooled = torch.tanh(linear(out[:, 0], model.pooler.dense))
    return text.pack(out[:, : text.max_len]), regions.pack(out[:, text.max_len :]), pooled


def check(model: SingleStream, batch: Batch, expected: tuple[Tensor, Tensor, Tensor], atol: float = 1e-5) -> None:
    """Both streams and the pooled state of ``model`` equal the expected ones."""
    out = model(batch)
    assert out.text.layout.lengths == batch.text.lengths and out.image.layout.lengths == batch.regions.lengths and out.image_prefix == 0
    for got, wanted in zip((out.text.x_ND, out.image.x_ND, out.pooled_BD), expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=atol, rtol=0)
