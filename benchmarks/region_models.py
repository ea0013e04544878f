"""The models of ``region_step.py``: ours, and transformers' with the same weights."""

from __future__ import annotations

from typing import NamedTuple

import torch
import transformers
from torch import Tensor, nn

from mmpretrain.models.lxmert import LXMERT
from mmpretrain.models.uniter import UNITER
from mmpretrain.models.visualbert import VisualBERT
from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.cross import CrossLayers
from mmpretrain.nn.embed import TextEmbedder
from mmpretrain.nn.regions import RegionEmbedder
from mmpretrain.train.pretraining import Pretraining
from mmpretrain.weights.keymap import KeyMap, Rule, Split

WORDS, POSITIONS, EPS = 30522, 512, 1e-12
QKV = ("query", "key", "value")


class Size(NamedTuple):
    """Of a model; ``depth`` blocks see each token, as in BERT."""

    width: int = 768
    heads: int = 12
    depth: int = 12
    features: int = 2048
    dropout: float = 0.1

    @property
    def split(self) -> tuple[int, int, int]:
        """LXMERT's language, object and cross-modality layers: 9, 5 and 5 for a depth of 12."""
        return max(1, self.depth * 3 // 4), max(1, self.depth * 5 // 12), max(1, self.depth * 5 // 12)


def ours(system: str, size: Size) -> nn.Module:
    """Our model as its recipe of the paper has it, with every parameter trained."""
    rate = {"dropout": size.dropout}
    text = TextEmbedder(WORDS, size.width, POSITIONS, segments=2, norm_eps=None if system == "visualbert" else EPS, **rate)
    blocks = lambda depth: Transformer(
        size.width, depth, size.heads, norm="post", eps=EPS, final_norm=False, attention_dropout=size.dropout, activation_dropout=0.0,
        init="normal", **rate,
    )  # fmt: skip
    if system == "visualbert":
        regions = RegionEmbedder(size.width, size.features, "none", norm_eps=None, positions=POSITIONS, types=2)
        text.dropout = nn.Identity()  # VisualBERT drops after the norm that both share
        return VisualBERT(text, regions, blocks(size.depth), **rate)
    if system == "uniter":
        regions = RegionEmbedder(size.width, size.features, "xyxywha", branch_eps=EPS, mask_embedding=True, **rate)
        return UNITER(text, regions, blocks(size.depth))
    regions = RegionEmbedder(size.width, size.features, "xyxy", combine="mean", branch_eps=EPS, norm_eps=None, **rate)
    language, objects, cross = size.split
    layers = CrossLayers(size.width, cross, size.heads, attention_dropout=size.dropout, **rate)
    return LXMERT(text, regions, blocks(language), blocks(objects), layers)


class UniterRegions(nn.Module):
    """UNITER's features and boxes, normed each and added, on padded tensors: stands in the place of VisualBERT's projection."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.features, self.boxes = nn.Linear(size.features, size.width), nn.Linear(7, size.width)
        self.feature_norm, self.box_norm = nn.LayerNorm(size.width, EPS), nn.LayerNorm(size.width, EPS)

    def forward(self, x: Tensor) -> Tensor:
        count = self.features.in_features
        return self.feature_norm(self.features(x[..., :count])) + self.box_norm(self.boxes(x[..., count:]))


def block(mine: str, attention: str, inner: str, outer: str) -> list[Rule]:
    return [
        Rule(f"{mine}.attention.qkv.{{p}}", tuple(f"{attention}.self.{name}.{{p}}" for name in QKV), Split(3)),
        Rule(f"{mine}.attention.out.{{p}}", f"{attention}.output.dense.{{p}}"),
        Rule(f"{mine}.norm1.{{p}}", f"{attention}.output.LayerNorm.{{p}}"),
        Rule(f"{mine}.mlp.up.{{p}}", f"{inner}.dense.{{p}}"),
        Rule(f"{mine}.mlp.down.{{p}}", f"{outer}.dense.{{p}}"),
        Rule(f"{mine}.norm2.{{p}}", f"{outer}.LayerNorm.{{p}}"),
    ]


def stack(mine: str, theirs: str) -> list[Rule]:
    return block(f"{mine}.blocks.{{i}}", f"{theirs}.{{i}}.attention", f"{theirs}.{{i}}.intermediate", f"{theirs}.{{i}}.output")


def rules(system: str) -> list[Rule]:
    """Names of the trunk, heads included."""
    trunk = "lxmert" if system == "lxmert" else "visual_bert"
    tables = {"words": "word_embeddings", "positions": "position_embeddings", "segments": "token_type_embeddings"}
    found = [Rule(f"model.text.{name}.weight", f"{trunk}.embeddings.{table}.weight") for name, table in tables.items()]
    norm = "model.norm" if system == "visualbert" else "model.text.norm"
    found += [Rule(f"{norm}.{{p}}", f"{trunk}.embeddings.LayerNorm.{{p}}"), Rule("model.pooler.dense.{p}", f"{trunk}.pooler.dense.{{p}}")]
    for mine, theirs in (("mlm.head.dense", "predictions.transform.dense"), ("mlm.head.norm", "predictions.transform.LayerNorm")):
        found.append(Rule(f"objectives.{mine}.{{p}}", f"cls.{theirs}.{{p}}"))
    found += [Rule("objectives.mlm.head.bias", "cls.predictions.bias"), Rule("objectives.match.head.{p}", "cls.seq_relationship.{p}")]
    if system == "lxmert":
        parts = {"projection": "visn_fc", "feature_norm": "visn_layer_norm", "box_projection": "box_fc", "box_norm": "box_layer_norm"}
        found += [Rule(f"model.regions.{name}.{{p}}", f"lxmert.encoder.visn_fc.{part}.{{p}}") for name, part in parts.items()]
        cross, layer = "model.cross.blocks.{i}", "lxmert.encoder.x_layers.{i}"
        attention = f"{layer}.visual_attention"
        found.append(Rule(f"{cross}.qkv.{{p}}", tuple(f"{attention}.att.{name}.{{p}}" for name in QKV), Split(3)))
        found += [Rule(f"{cross}.out.{{p}}", f"{attention}.output.dense.{{p}}")]
        found += [Rule(f"{cross}.norm.{{p}}", f"{attention}.output.LayerNorm.{{p}}")]
        for mine, theirs in (("text", "lang"), ("image", "visn")):
            found += block(f"{cross}.{mine}", f"{layer}.{theirs}_self_att", f"{layer}.{theirs}_inter", f"{layer}.{theirs}_output")
        return found + stack("model.text_blocks", "lxmert.encoder.layer") + stack("model.image_blocks", "lxmert.encoder.r_layers")
    found += stack("model.transformer", "visual_bert.encoder.layer")
    regions = "visual_bert.embeddings.visual"
    if system == "visualbert":
        tables = {"projection.{p}": "projection.{p}", "positions.weight": "position_embeddings.weight"}
        tables["types.weight"] = "token_type_embeddings.weight"
    else:
        parts = {"projection": "features", "box_projection": "boxes", "feature_norm": "feature_norm", "box_norm": "box_norm"}
        tables = {f"{name}.{{p}}": f"projection.{part}.{{p}}" for name, part in parts.items()}
    return found + [Rule(f"model.regions.{mine}", f"{regions}_{theirs}") for mine, theirs in tables.items()]


def theirs(system: str, size: Size, root: Pretraining) -> nn.Module:
    """transformers' model with our weights. UNITER's is VisualBERT with ``UniterRegions`` for its projection: the norm of the text norms
    the regions too, which is the same at the start, and their segment is row 1."""
    common = {"vocab_size": WORDS, "hidden_size": size.width, "num_attention_heads": size.heads, "intermediate_size": 4 * size.width}
    common |= {"hidden_dropout_prob": size.dropout, "attention_probs_dropout_prob": size.dropout, "max_position_embeddings": POSITIONS}
    if system == "lxmert":
        language, objects, cross = size.split
        config = transformers.LxmertConfig(
            **common, l_layers=language, r_layers=objects, x_layers=cross, visual_feat_dim=size.features, visual_pos_dim=4,
            task_qa=False, task_obj_predict=False,
        )  # fmt: skip
        network: nn.Module = transformers.LxmertForPreTraining(config)
    else:
        config = transformers.VisualBertConfig(**common, num_hidden_layers=size.depth, visual_embedding_dim=size.features)
        network = transformers.VisualBertForPreTraining(config)
    table = network.get_input_embeddings()
    if system == "uniter":
        embeddings = network.visual_bert.embeddings
        embeddings.visual_projection = UniterRegions(size)
        with torch.no_grad():
            embeddings.visual_position_embeddings.weight.zero_()
            embeddings.visual_token_type_embeddings.weight.copy_(root.model.text.segments.weight)
    shared = {"model.regions.norm", "model.regions.mask_embedding"} if system == "uniter" else set()
    state = {name: tensor for name, tensor in root.state_dict().items() if not any(name.startswith(one) for one in shared)}
    # not strict: what theirs has beside ours (tied, unused or set above) is named below, anything else is an error
    missing = network.load_state_dict(KeyMap(rules(system), "transformers").to_theirs(state), strict=False)
    told = ("decoder", "visual_position", "visual_token_type", "position_ids")
    left = [name for name in missing.missing_keys if not any(part in name for part in told)]
    if left or missing.unexpected_keys:
        raise RuntimeError(f"weights without a place: {left}, {missing.unexpected_keys}")
    if network.cls.predictions.decoder.weight is not table.weight:
        raise RuntimeError("transformers has untied the decoder")
    return network
