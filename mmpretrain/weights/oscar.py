"""Oscar and Oscar+ in the layout of their authors (microsoft/Oscar); Oscar+ has a LayerNorm on the projected regions.

Row 0 of ``cls.seq_relationship`` means an intact text there, row 1 wrong tags and row 2 (Oscar+) a wrong caption; here wrong tags are row 0
and an intact text row 1.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from mmpretrain.models.oscar import Oscar
from mmpretrain.weights.bert_names import block_rules, linear_rules, mlm_rules, text_rules
from mmpretrain.weights.keymap import Rows, Rule
from mmpretrain.weights.layout import Layout, here

UNUSED = (r"classifier\..*",)  # of a model for a task


def _rules(order: tuple[int, ...], model: Any) -> list[Rule]:
    trunk = [
        *text_rules("text", "bert.embeddings"),
        Rule("regions.projection.{p}", "bert.img_embedding.{p}"),
        *([Rule("regions.norm.{p}", "bert.LayerNorm.{p}")] if isinstance(model.regions.norm, nn.LayerNorm) else []),
        *block_rules("transformer.blocks.{i}", "bert.encoder.layer.{i}"),
        Rule("pooler.dense.{p}", "bert.pooler.dense.{p}"),
    ]
    return [*here(trunk), *mlm_rules(), *linear_rules("tags", "cls.seq_relationship", Rows(order))]


OFFICIAL = Layout("oscar", Oscar, partial(_rules, (1, 0)), UNUSED)
PLUS = Layout("oscar-plus", Oscar, partial(_rules, (1, 0, 2)), UNUSED)
