"""InterBERT in the layout of its authors (black4321/InterBERT): joint layers and text layers are one list there, ``encoder.layer``.

Row 0 of ``cls.bi_seq_relationship`` means a match there, row 1 here.
"""

from __future__ import annotations

from mmpretrain.models.interbert import InterBERT
from mmpretrain.weights.bert_names import block_rules, numbered
from mmpretrain.weights.keymap import Rule
from mmpretrain.weights.layout import Layout, here
from mmpretrain.weights.vilbert import head_rules, two_stream_rules


def _rules(model: InterBERT) -> list[Rule]:
    trunk, number = two_stream_rules(), 0
    for name in ("joint_blocks", "text_blocks"):
        rules = block_rules(f"{name}.blocks.{{i}}", "bert.encoder.layer.{i}")
        for i in range(getattr(model, name).depth):
            trunk += numbered(rules, i, number)
            number += 1
    trunk += block_rules("image_blocks.blocks.{i}", "bert.encoder.v_layer.{i}")
    return [*here(trunk), *head_rules()]


OFFICIAL = Layout("interbert", InterBERT, _rules)
