"""UNITER in the layout of its authors (ChenRocks/UNITER), which is VILLA's too (zhegan27/VILLA).

Names with ``bert.`` for ``uniter.`` are taken too, as VILLA's scripts take them. Row 1 of ``itm_output`` means a
match, as here. The mask embedding has a row for regions that are not masked, which stays zero.
"""

from __future__ import annotations

from typing import Any

from mmpretrain.models.uniter import UNITER
from mmpretrain.weights.bert_names import block_rules, linear_rules, mlm_rules, text_rules
from mmpretrain.weights.keymap import After, Rule
from mmpretrain.weights.layout import Layout, here

_PICTURE = {
    "projection": "img_linear", "box_projection": "pos_linear", "feature_norm": "img_layer_norm", "box_norm": "pos_layer_norm",
    "norm": "LayerNorm",
}  # fmt: skip
UNUSED = (r"(vqa_output|nlvr2_output|ve_output|vcr_output|re_output|rank_output|attn_pool|fc)\..*",)  # of models for tasks


def _transform(ours: str, theirs: str) -> list[Rule]:
    """Dense, GELU and LayerNorm of their ``nn.Sequential``."""
    return [*linear_rules(f"{ours}.transform.dense", f"{theirs}.net.0"), *linear_rules(f"{ours}.transform.norm", f"{theirs}.net.2")]


def _rules(model: Any) -> list[Rule]:
    picture = "uniter.img_embeddings"
    trunk = [
        *text_rules("text", "uniter.embeddings"),
        *(Rule(f"regions.{ours}.{{p}}", f"{picture}.{theirs}.{{p}}") for ours, theirs in _PICTURE.items()),
        Rule("regions.mask_embedding", f"{picture}.mask_embedding.weight", After(1)),
        *block_rules("transformer.blocks.{i}", "uniter.encoder.layer.{i}"),
        Rule("pooler.dense.{p}", "uniter.pooler.dense.{p}"),
    ]
    heads = [
        *mlm_rules(),
        *linear_rules("itm", "itm_output"),
        *_transform("mrc", "region_classifier"),
        *linear_rules("mrc.decoder", "region_classifier.net.3"),
        *_transform("mrfr", "feat_regress"),
        Rule("mrfr.weight", "feat_regress.weight", optional=True),  # the projection's
        Rule("mrfr.bias", "feat_regress.bias", optional=True),
    ]
    return [*here(trunk), *heads]


OFFICIAL = Layout("uniter", UNITER, _rules, UNUSED, spellings=(("bert.", "uniter."),))
