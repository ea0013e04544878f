"""ViLBERT in the layout of its authors (jiasenlu/vilbert_beta and facebookresearch/vilbert-multi-task, whose names agree).

In their blocks of co-attention 1 is the picture and 2 the text. Row 0 of ``cls.bi_seq_relationship`` means a match there, row 1 here.
A model of the twelve tasks of 12-in-1 has a table of tasks, which asks for ``ViLBERT(tasks=20)``.
"""

from __future__ import annotations

from typing import Any

from mmpretrain.models.vilbert import ViLBERT
from mmpretrain.weights.bert_names import QKV, block_rules, linear_rules, mlm_rules, mlp, text_rules, transform_rules
from mmpretrain.weights.keymap import Rows, Rule, Split
from mmpretrain.weights.layout import Layout, here

# layers that its forward never calls, and heads of the tasks of 12-in-1
UNUSED = (
    r"bert\.encoder\.c_layer\.\d+\.biOutput\.q_dense[12]\.(weight|bias)",
    r"(vil_prediction(_gqa)?|vil_binary_prediction|vil_logit|vil_tri_prediction|vision_logit|linguisic_logit)\..*",
)


def two_stream_rules() -> list[Rule]:
    """What ViLBERT and InterBERT share: embedders and poolers of both streams."""
    return [
        *text_rules("text", "bert.embeddings"),
        Rule("regions.projection.{p}", "bert.v_embeddings.image_embeddings.{p}"),
        Rule("regions.box_projection.{p}", "bert.v_embeddings.image_location_embeddings.{p}"),
        Rule("regions.norm.{p}", "bert.v_embeddings.LayerNorm.{p}"),
        Rule("pooler.text.dense.{p}", "bert.t_pooler.dense.{p}"),
        Rule("pooler.image.dense.{p}", "bert.v_pooler.dense.{p}"),
    ]


def head_rules() -> list[Rule]:
    """The heads of both."""
    return [
        *mlm_rules(),
        *linear_rules("itm", "cls.bi_seq_relationship", Rows((1, 0))),
        *transform_rules("mrc.transform", "cls.imagePredictions.transform", optional=True),
        *linear_rules("mrc.decoder", "cls.imagePredictions.decoder"),
    ]


def _co_attention() -> list[Rule]:
    rules = []
    for stream, number, letter in (("image", 1, "v"), ("text", 2, "t")):
        ours, theirs = f"co_attention.blocks.{{i}}.{stream}", "bert.encoder.c_layer.{i}"
        rules += [
            Rule(f"{ours}.qkv.{{p}}", tuple(f"{theirs}.biattention.{part}{number}.{{p}}" for part in QKV), Split(3)),
            Rule(f"{ours}.out.{{p}}", f"{theirs}.biOutput.dense{number}.{{p}}"),
            Rule(f"{ours}.norm1.{{p}}", f"{theirs}.biOutput.LayerNorm{number}.{{p}}"),
            *mlp(ours, f"{theirs}.{letter}_intermediate", f"{theirs}.{letter}_output"),
        ]
    return rules


def _rules(model: Any) -> list[Rule]:
    trunk = [
        *two_stream_rules(),
        *block_rules("text_blocks.blocks.{i}", "bert.encoder.layer.{i}"),
        *block_rules("image_blocks.blocks.{i}", "bert.encoder.v_layer.{i}"),
        *_co_attention(),
        Rule("tasks.weight", "bert.embeddings.task_embeddings.weight", optional=True),
    ]
    return [*here(trunk), *head_rules()]


OFFICIAL = Layout("vilbert", ViLBERT, _rules, UNUSED)
