"""LXMERT in the layouts of its authors (airsplay/lxmert) and of transformers (``LxmertForPreTraining``), which differ in one word.

Both mean a match by row 1 of ``cls.seq_relationship``, as we do.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from mmpretrain.models.lxmert import LXMERT
from mmpretrain.weights.bert_names import QKV, block_rules, linear_rules, mlm_rules, mlp, self_attention, text_rules, transform_rules
from mmpretrain.weights.keymap import Rule, Split
from mmpretrain.weights.layout import Layout, here


def _cross(theirs: str) -> list[Rule]:
    """A cross-modality layer: the shared attention, then a block for each stream."""
    ours, read = "cross.blocks.{i}", f"{theirs}.visual_attention"
    rules = [
        Rule(f"{ours}.qkv.{{p}}", tuple(f"{read}.att.{part}.{{p}}" for part in QKV), Split(3)),
        Rule(f"{ours}.out.{{p}}", f"{read}.output.dense.{{p}}"),
        Rule(f"{ours}.norm.{{p}}", f"{read}.output.LayerNorm.{{p}}"),
    ]
    for stream, name in (("text", "lang"), ("image", "visn")):
        rules += self_attention(f"{ours}.{stream}", f"{theirs}.{name}_self_att")
        rules += mlp(f"{ours}.{stream}", f"{theirs}.{name}_inter", f"{theirs}.{name}_output")
    return rules


def _objects() -> list[Rule]:
    ours, theirs = "objects.decoders", "obj_predict_head.decoder_dict"
    decoders = [rule for part in ("obj", "attr", "feat") for rule in linear_rules(f"{ours}.{part}", f"{theirs}.{part}")]
    return [*transform_rules("objects.transform", "obj_predict_head.transform", optional=True), *decoders]


def _answers() -> list[Rule]:
    places = (("dense", 0), ("norm", 2), ("decoder", 3))
    return [rule for ours, theirs in places for rule in linear_rules(f"vqa.{ours}", f"answer_head.logit_fc.{theirs}")]


def _rules(trunk: str, model: Any) -> list[Rule]:
    visual = f"{trunk}.encoder.visn_fc"
    return [
        *here(text_rules("text", f"{trunk}.embeddings")),
        *here(
            [
                Rule("regions.projection.{p}", f"{visual}.visn_fc.{{p}}"),
                Rule("regions.feature_norm.{p}", f"{visual}.visn_layer_norm.{{p}}"),
                Rule("regions.box_projection.{p}", f"{visual}.box_fc.{{p}}"),
                Rule("regions.box_norm.{p}", f"{visual}.box_layer_norm.{{p}}"),
                *block_rules("text_blocks.blocks.{i}", f"{trunk}.encoder.layer.{{i}}"),
                *block_rules("image_blocks.blocks.{i}", f"{trunk}.encoder.r_layers.{{i}}"),
                *_cross(f"{trunk}.encoder.x_layers.{{i}}"),
                Rule("pooler.dense.{p}", f"{trunk}.pooler.dense.{{p}}"),
            ]
        ),
        *mlm_rules(),
        *linear_rules("itm", "cls.seq_relationship"),
        *_objects(),
        *_answers(),
    ]


OFFICIAL = Layout("lxmert", LXMERT, partial(_rules, "bert"), spellings=(("lxmert.", "bert."),))
TRANSFORMERS = Layout("lxmert-transformers", LXMERT, partial(_rules, "lxmert"))


def transformers_config(model: LXMERT, heads: Mapping[str, nn.Module], prob: float = 0.15) -> dict[str, Any]:
    """``config.json`` of ``LxmertForPreTraining`` (``LxmertModel`` without a masked-word head).

    Args:
        heads: kind -> head, see ``weights.layout``.
        prob: share of the regions that object prediction hides; its losses are divided by it.

    Raises:
        ValueError: the model has parts that transformers' LXMERT lacks.
    """
    text, regions, stacks = model.text, model.regions, (model.text_blocks, model.image_blocks)
    layers: Any = model.cross.blocks
    hidden = {stack.hidden for stack in stacks} | {layer.text.mlp.up.out_features for layer in layers}
    counted = {stack.heads for stack in stacks} | {model.cross.heads}
    norms = [part for part in model.modules() if isinstance(part, nn.LayerNorm)]
    if text.segments is None or regions.combine != "mean" or not isinstance(regions.norm, nn.Identity) or regions.global_feature != "none":
        raise ValueError("transformers' LXMERT needs text segments, and regions with combine: mean, norm_eps: null and no global feature")
    if len(hidden) > 1 or len(counted) > 1 or any(abs(norm.eps - 1e-12) > 1e-13 for norm in norms):
        raise ValueError("transformers' LXMERT has one number of heads, one hidden width of MLPs and the eps 1e-12 everywhere")
    objects: Any = heads.get("objects")
    sizes = {part: layer.out_features for part, layer in objects.decoders.items()} if objects is not None else {}
    answers: Any = heads.get("vqa")
    whole = "mlm" in heads
    return {
        "architectures": ["LxmertForPreTraining" if whole else "LxmertModel"],
        "model_type": "lxmert",
        "vocab_size": text.vocab_size,
        "hidden_size": text.width,
        "num_attention_heads": counted.pop(),
        "intermediate_size": hidden.pop(),
        "hidden_act": stacks[0].activation,
        "hidden_dropout_prob": stacks[0].dropout,
        "attention_probs_dropout_prob": stacks[0].attention_dropout,
        "max_position_embeddings": text.max_positions,
        "type_vocab_size": text.segments.num_embeddings,
        "l_layers": stacks[0].depth,
        "r_layers": stacks[1].depth,
        "x_layers": model.cross.depth,
        "visual_feat_dim": regions.features,
        "visual_pos_dim": regions.box_projection.in_features,
        "num_qa_labels": answers.decoder.out_features if answers is not None else 2,
        "num_object_labels": sizes.get("obj", 1600),
        "num_attr_labels": sizes.get("attr", 400),
        "visual_loss_normalizer": 1 / prob,  # their default is 6.67
        "task_mask_lm": whole,
        "task_matched": "itm" in heads,
        "task_obj_predict": objects is not None,
        "task_qa": answers is not None,
        **{f"visual_{part}_loss": part in sizes for part in ("obj", "attr", "feat")},
        "tie_word_embeddings": whole and getattr(heads["mlm"], "tied", True),
    }
