"""VisualBERT in the layouts of its authors (uclanlp/visualbert, whose files wrap the network twice) and of transformers
(``VisualBertForPreTraining``). Both read row 0 of the position and type tables of regions, if they are told to (transformers' default is
type 1), and both mean by row 1 of ``seq_relationship`` that the second caption belongs to the picture, as we do.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from mmpretrain.models.visualbert import VisualBERT
from mmpretrain.weights.bert_names import block_rules, linear_rules, mlm_rules, text_rules
from mmpretrain.weights.keymap import Rule, Twice
from mmpretrain.weights.layout import Layout, here

_VISUAL = {
    "official": {"projection": "projection", "positions": "position_embeddings_visual", "types": "token_type_embeddings_visual"},
    "transformers": {
        "projection": "visual_projection", "positions": "visual_position_embeddings", "types": "visual_token_type_embeddings",
    },
}  # fmt: skip


_BIASES = ("cls.predictions.decoder.bias", "cls.predictions.bias")  # transformers' decoder has the first, which is tied to the second


def _rules(trunk: str, heads: str, names: str, model: Any) -> list[Rule]:
    visual = _VISUAL[names]
    return [
        *here(text_rules("text", f"{trunk}.embeddings", norm="norm")),
        *here(
            [
                Rule("regions.projection.{p}", f"{trunk}.embeddings.{visual['projection']}.{{p}}"),
                Rule("regions.positions.weight", f"{trunk}.embeddings.{visual['positions']}.weight"),
                Rule("regions.types.weight", f"{trunk}.embeddings.{visual['types']}.weight"),
                *block_rules("transformer.blocks.{i}", f"{trunk}.encoder.layer.{{i}}"),
                Rule("pooler.dense.{p}", f"{trunk}.pooler.dense.{{p}}"),
            ]
        ),
        *([Rule("mlm.bias", _BIASES, Twice(), optional=True)] if names == "transformers" else []),
        *mlm_rules(f"{heads}.predictions"),
        *linear_rules("sip", f"{heads}.seq_relationship"),
    ]


OFFICIAL = Layout("visualbert", VisualBERT, partial(_rules, "bert.bert", "bert.cls", "official"), (r"bert\.cls\.(weight|bias)",))
TRANSFORMERS = Layout(
    "visualbert-transformers",
    VisualBERT,
    partial(_rules, "visual_bert", "cls", "transformers"),
    (r"cls\.(weight|bias)",),  # of a question answering model and its like
    aliases=(_BIASES,),
)


def transformers_config(model: VisualBERT, heads: Mapping[str, nn.Module]) -> dict[str, Any]:
    """``config.json`` of ``VisualBertForPreTraining`` (``VisualBertModel`` without a masked-word head).

    Args:
        heads: kind -> head, see ``weights.layout``.

    Raises:
        ValueError: the model has parts that transformers' VisualBERT lacks.
    """
    text, regions, stack = model.text, model.regions, model.transformer
    if text.segments is None or regions.positions is None or regions.types is None or regions.box_projection is not None:
        raise ValueError("transformers' VisualBERT needs text segments, positions and types of regions, and no projection of boxes alone")
    sizes = {
        "positions": (text.max_positions, regions.positions.num_embeddings),
        "types": (text.segments.num_embeddings, regions.types.num_embeddings),
    }
    for what, (words, seen) in sizes.items():
        if words != seen:
            raise ValueError(f"transformers' VisualBERT has as many {what} of regions as of words, here {seen} and {words}")
    if model.norm.eps != stack.eps:
        raise ValueError(f"transformers' VisualBERT has one eps of norms, here {model.norm.eps} and {stack.eps}")
    return {
        "architectures": ["VisualBertForPreTraining" if "mlm" in heads else "VisualBertModel"],
        "model_type": "visual_bert",
        "vocab_size": text.vocab_size,
        "hidden_size": text.width,
        "visual_embedding_dim": regions.projection.in_features,
        "num_hidden_layers": stack.depth,
        "num_attention_heads": stack.heads,
        "intermediate_size": stack.hidden,
        "hidden_act": stack.activation,
        "hidden_dropout_prob": stack.dropout,
        "attention_probs_dropout_prob": stack.attention_dropout,
        "max_position_embeddings": text.max_positions,
        "type_vocab_size": text.segments.num_embeddings,
        "layer_norm_eps": stack.eps,
        "special_visual_initialize": False,
        "tie_word_embeddings": "mlm" in heads and getattr(heads["mlm"], "tied", True),
    }
