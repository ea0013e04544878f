"""ERNIE-ViL in the layout of its authors (PaddlePaddle/ERNIE, folder ernie-vil): Paddle's names, linear layers as (in, out).

Their files are one for each variable; Paddle's ``load_program_state(FOLDER)`` gives the dictionary of them, which
``numpy.savez(FILE, **state)`` makes a file that is read here. The code of their pre-training is not public, nor are the names of its heads:
what a file has beyond the model must be optimiser states or heads of the tasks of their code.
"""

from __future__ import annotations

from typing import Any

from mmpretrain.models.ernie_vil import ErnieViL
from mmpretrain.weights.bert_names import QKV
from mmpretrain.weights.keymap import Op, Rule, Same, Split, Transpose, Transposed
from mmpretrain.weights.layout import Layout, here

UNUSED = (
    r".*_(moment[12]|beta[12]_pow_acc)_\d+",  # of Adam
    r"(scheduled_)?learning_rate(_\d+)?|@LR_DECAY_COUNTER@",
    r"(vqa|match|vcr_qar?)_fc[._][wb]_[01]|cls_seq_label_vl_out_[wb]",  # of tasks
)


def _linear(ours: str, theirs: str | tuple[str, ...], weight: Op = Transpose(), bias: Op = Same()) -> list[Rule]:  # noqa: B008
    names = (theirs,) if isinstance(theirs, str) else theirs
    put = lambda leaf: names[0] + leaf if len(names) == 1 else tuple(name + leaf for name in names)
    return [Rule(f"{ours}.weight", put(".w_0"), weight), Rule(f"{ours}.bias", put(".b_0"), bias)]


def _norm(ours: str, theirs: str) -> list[Rule]:
    return [Rule(f"{ours}.weight", f"{theirs}_layer_norm_scale"), Rule(f"{ours}.bias", f"{theirs}_layer_norm_bias")]


def _layer(ours: str, attention: str, theirs: str, prefix: str = "") -> list[Rule]:
    """Attention and MLP of one stream. ``attention``: what stands between ``ours`` and its projections; ``prefix``: of co-attention."""
    heads = f"{theirs}_{prefix}multi_head_att"
    qkv = tuple(f"{heads}_{part}_fc" for part in QKV)
    return [
        *_linear(f"{ours}.{attention}qkv", qkv, Transposed(Split(3)), Split(3)),
        *_linear(f"{ours}.{attention}out", f"{heads}_output_fc"),
        *_norm(f"{ours}.norm1", f"{theirs}_{prefix}post_att"),
        *_linear(f"{ours}.mlp.up", f"{theirs}_{prefix}ffn_fc_0"),
        *_linear(f"{ours}.mlp.down", f"{theirs}_{prefix}ffn_fc_1"),
        *_norm(f"{ours}.norm2", f"{theirs}_{prefix}post_ffn"),
    ]


def _rules(model: Any) -> list[Rule]:
    return here(
        [
            Rule("text.words.weight", "word_embedding"),
            Rule("text.positions.weight", "pos_embedding"),
            Rule("text.segments.weight", "sent_embedding"),
            *_norm("text.norm", "pre_encoder"),
            *_linear("regions.projection", "image_emb"),
            *_linear("regions.box_projection", "image_loc"),
            *_norm("regions.norm", "vl_pre_encoder"),
            *_layer("text_blocks.blocks.{i}", "attention.", "encoder_layer_{i}"),
            *_layer("image_blocks.blocks.{i}", "attention.", "encoder_vlayer_{i}"),
            *_layer("co_attention.blocks.{i}.text", "", "encoder_colayer_{i}"),
            *_layer("co_attention.blocks.{i}.image", "", "encoder_colayer_{i}", "vl_"),
            *_linear("pooler.text.dense", "pooled_fc_text"),
            *_linear("pooler.image.dense", "pooled_fc_image"),
        ]
    )


OFFICIAL = Layout("ernie-vil", ErnieViL, _rules, UNUSED)
