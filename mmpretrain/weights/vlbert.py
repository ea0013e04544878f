"""VL-BERT in the layout of its authors (jackroos/VL-BERT), with features or with the Fast R-CNN that is trained along.

That has its last stage under two names. Row 1 of ``relationsip_head`` (their spelling), which their pre-training leaves out, means a match.
"""

from __future__ import annotations

from mmpretrain.models.vlbert import VLBERT
from mmpretrain.weights.bert_names import block_rules, linear_rules, mlm_rules
from mmpretrain.weights.keymap import Rule, Twice
from mmpretrain.weights.layout import Layout, here

_TABLES = {
    "embed.words.weight": "vlbert.word_embeddings.weight",
    "embed.positions.weight": "vlbert.position_embeddings.weight",
    "embed.segments.weight": "vlbert.token_type_embeddings.weight",
    "embed.end": "vlbert.end_embedding.weight",
    "embed.object_word": "object_linguistic_embeddings.weight",
    "embed.mask_word": "object_mask_word_embedding.weight",
    "embed.text_visual": "aux_text_visual_embedding.weight",
    "embed.norm.{p}": "vlbert.embedding_LayerNorm.{p}",
    "embed.text_norm.{p}": "vlbert.visual_ln_text.{p}",
    "embed.object_norm.{p}": "vlbert.visual_ln_object.{p}",
    "embed.projection.{p}": "image_feature_extractor.obj_downsample.1.{p}",
}
_BLOCK = [f"{kind}{n}" for n in (1, 2, 3) for kind in ("conv", "bn")] + ["downsample.0", "downsample.1"]
UNUSED = (r"(final_mlp|image_feature_extractor\.regularizing_predictor)\..*",)


def _detector() -> list[Rule]:
    """Stem and three stages of the backbone; the fourth stage, which runs over each box."""
    ours, theirs = "detector.cnn", "image_feature_extractor"
    rules = [Rule(f"{ours}.{part}.{{p}}", f"{theirs}.backbone.{part}.{{p}}") for part in ("conv1", "bn1")]
    for part in _BLOCK:
        rules += [
            Rule(f"{ours}.layer{n}.{{i}}.{part}.{{p}}", f"{theirs}.backbone.layer{n}.{{i}}.{part}.{{p}}") for n in (1, 2, 3)
        ]
        both = (f"{theirs}.roi_head_feature_extractor.{{i}}.{part}.{{p}}", f"{theirs}.head.0.{{i}}.{part}.{{p}}")
        rules.append(Rule(f"{ours}.layer4.{{i}}.{part}.{{p}}", both, Twice()))
    return rules


def _rules(model: VLBERT) -> list[Rule]:
    trunk = [
        *(Rule(ours, theirs) for ours, theirs in _TABLES.items()),
        *block_rules("transformer.blocks.{i}", "vlbert.encoder.layer.{i}"),
    ]
    if model.embed.mask_visual is not None:
        trunk.append(Rule("embed.mask_visual", "object_mask_visual_embedding.weight"))
    if model.pooler is not None:
        trunk.append(Rule("pooler.dense.{p}", "vlbert.pooler.dense.{p}"))
    if model.detector is not None:
        trunk += _detector()
    heads = [
        *mlm_rules("vlbert.mlm_head.predictions"),
        *linear_rules("itm", "vlbert.relationsip_head.caption_image_relationship"),
        *linear_rules("mrc.transform.dense", "vlbert.mvrc_head.transform.dense"),
        *linear_rules("mrc.decoder", "vlbert.mvrc_head.region_cls_pred"),
    ]
    return [*here(trunk), *heads]


OFFICIAL = Layout("vlbert", VLBERT, _rules, UNUSED)
