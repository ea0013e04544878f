"""ViLT in the layouts of transformers (``ViltModel``, ``ViltForMaskedLM``) and of the authors (``dandelin/ViLT`` checkpoints).

Ours is a pair of state dicts: the model's, and that of its MLM head (``nn.heads.VocabularyHead``), which has no decoder weight when tied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmpretrain.models.vilt import ViLT
from mmpretrain.nn.blocks import Transformer
from mmpretrain.nn.embed import PatchEmbedder, TextEmbedder
from mmpretrain.weights.keymap import KeyMap, KeyMapError, Row, Rule, Split, Stack

_WORDS = "text.words.weight"
_STANDARD_WORDS = "embeddings.text_embeddings.word_embeddings.weight"

TRANSFORMERS = KeyMap(
    [
        Rule(_WORDS, _STANDARD_WORDS),
        Rule("text.positions.weight", "embeddings.text_embeddings.position_embeddings.weight"),
        Rule("text.segments.weight", "embeddings.text_embeddings.token_type_embeddings.weight"),
        Rule("text.norm.{p}", "embeddings.text_embeddings.LayerNorm.{p}"),
        Rule("modal_types.weight", "embeddings.token_type_embeddings.weight"),
        Rule("image.class_token", "embeddings.cls_token", Row(2)),
        Rule(("image.class_position", "image.positions"), "embeddings.position_embeddings", Stack(1)),
        Rule("image.projection.{p}", "embeddings.patch_embeddings.projection.{p}"),
        Rule(
            "transformer.blocks.{i}.attention.qkv.{p}",
            tuple("encoder.layer.{i}.attention.attention." + part + ".{p}" for part in ("query", "key", "value")),
            Split(3),
        ),
        Rule("transformer.blocks.{i}.attention.out.{p}", "encoder.layer.{i}.attention.output.dense.{p}"),
        Rule("transformer.blocks.{i}.norm1.{p}", "encoder.layer.{i}.layernorm_before.{p}"),
        Rule("transformer.blocks.{i}.norm2.{p}", "encoder.layer.{i}.layernorm_after.{p}"),
        Rule("transformer.blocks.{i}.mlp.up.{p}", "encoder.layer.{i}.intermediate.dense.{p}"),
        Rule("transformer.blocks.{i}.mlp.down.{p}", "encoder.layer.{i}.output.dense.{p}"),
        Rule("transformer.norm.{p}", "layernorm.{p}"),
        Rule("pooler.dense.{p}", "pooler.dense.{p}"),
    ],
    "transformers' ViltModel",
)

TRANSFORMERS_MLM = KeyMap(
    [
        Rule("dense.{p}", "transform.dense.{p}"),
        Rule("norm.{p}", "transform.LayerNorm.{p}"),
        Rule("decoder.weight", "decoder.weight"),
        Rule("bias", "decoder.bias"),
    ],
    "transformers' ViltForMaskedLM",
)

AUTHOR = KeyMap(
    [
        Rule(_WORDS, "text_embeddings.word_embeddings.weight"),
        Rule("text.positions.weight", "text_embeddings.position_embeddings.weight"),
        Rule("text.segments.weight", "text_embeddings.token_type_embeddings.weight"),
        Rule("text.norm.{p}", "text_embeddings.LayerNorm.{p}"),
        Rule("modal_types.weight", "token_type_embeddings.weight"),
        Rule("image.class_token", "transformer.cls_token", Row(2)),
        Rule(("image.class_position", "image.positions"), "transformer.pos_embed", Stack(1)),
        Rule("image.projection.{p}", "transformer.patch_embed.proj.{p}"),
        Rule("transformer.blocks.{i}.attention.qkv.{p}", "transformer.blocks.{i}.attn.qkv.{p}"),
        Rule("transformer.blocks.{i}.attention.out.{p}", "transformer.blocks.{i}.attn.proj.{p}"),
        Rule("transformer.blocks.{i}.norm1.{p}", "transformer.blocks.{i}.norm1.{p}"),
        Rule("transformer.blocks.{i}.norm2.{p}", "transformer.blocks.{i}.norm2.{p}"),
        Rule("transformer.blocks.{i}.mlp.up.{p}", "transformer.blocks.{i}.mlp.fc1.{p}"),
        Rule("transformer.blocks.{i}.mlp.down.{p}", "transformer.blocks.{i}.mlp.fc2.{p}"),
        Rule("transformer.norm.{p}", "transformer.norm.{p}"),
        Rule("pooler.dense.{p}", "pooler.dense.{p}"),
    ],
    "the authors' ViLT",
)

AUTHOR_MLM = KeyMap(
    [
        Rule("dense.{p}", "transform.dense.{p}"),
        Rule("norm.{p}", "transform.LayerNorm.{p}"),
        Rule("decoder.weight", "decoder.weight"),
        Rule("bias", "bias"),
    ],
    "the authors' ViLT (mlm_score)",
)

# not weights: index buffers of old versions
_BUFFERS = ("position_ids", "token_type_ids")


class ViltWeights(NamedTuple):
    """An imported ViLT."""

    model: dict[str, Tensor]  # for ViLT.load_state_dict
    mlm: dict[str, Tensor] | None  # for VocabularyHead.load_state_dict; without decoder.weight when it equals the word table
    rest: dict[str, Tensor]  # other heads (ITM, VQA, ...) under their own names

    @property
    def tied(self) -> bool:
        """Whether the MLM decoder is the word table."""
        return self.mlm is not None and "decoder.weight" not in self.mlm


def _untied(model_state: Mapping[str, Tensor], mlm_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"decoder.weight": model_state[_WORDS], **mlm_state}


def _prefixed(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: t for name, t in state.items()}


def _under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}


def to_transformers(model_state: Mapping[str, Tensor], mlm_state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """State dict of ``ViltForMaskedLM`` (with a head) or ``ViltModel`` (without).

    The decoder is always written beside the word table. Load it with ``from_pretrained``: ``load_state_dict`` on a constructed
    ``ViltForMaskedLM`` (transformers 5.x ties it in the constructor) writes an untied decoder over the word table.

    Raises:
        KeyMapError: the states are not a ViLT's.
    """
    state = TRANSFORMERS.to_theirs(model_state)
    if mlm_state is None:
        return state
    return {**_prefixed(state, "vilt."), **_prefixed(TRANSFORMERS_MLM.to_theirs(_untied(model_state, mlm_state)), "mlm_score.")}


def _import(state: Mapping[str, Tensor], model_map: KeyMap, mlm_map: KeyMap, prefix: str) -> ViltWeights:
    model = model_map.to_ours(_under(state, prefix))
    rest = {prefix + name: state[prefix + name] for name in model.leftover if not name.endswith(_BUFFERS)}
    heads = {} if not prefix else {name: t for name, t in state.items() if not name.startswith(prefix)}
    rest = {name: t for name, t in {**rest, **heads}.items() if not name.startswith("mlm_score.")}
    head = _under(state, "mlm_score.")
    if not head:
        return ViltWeights(model.state, None, rest)
    mlm = mlm_map.to_ours(head)
    if mlm.leftover:
        raise KeyMapError(f"{mlm_map.foreign}: mlm_score has unknown tensors {', '.join(mlm.leftover)}")
    if torch.equal(mlm.state["decoder.weight"], model.state[_WORDS]):
        del mlm.state["decoder.weight"]
    return ViltWeights(model.state, mlm.state, rest)


def from_transformers(state: Mapping[str, Tensor]) -> ViltWeights:
    """Any transformers ViLT state dict: ``ViltModel``, ``ViltForMaskedLM`` (also with the bias called ``mlm_score.bias``, as before 5.x, or
    with a tied decoder left out) or a fine-tuned head.

    Raises:
        KeyMapError: it is not a ViLT's.
    """
    prefix = "vilt." if any(name.startswith("vilt.") for name in state) else ""
    state = dict(state)
    if "mlm_score.bias" in state:
        bias = state.pop("mlm_score.bias")
        state.setdefault("mlm_score.decoder.bias", bias)
    if "mlm_score.decoder.bias" in state and prefix + _STANDARD_WORDS in state:
        state.setdefault("mlm_score.decoder.weight", state[prefix + _STANDARD_WORDS])
    return _import(state, TRANSFORMERS, TRANSFORMERS_MLM, prefix)


def to_author(
    model_state: Mapping[str, Tensor], mlm_state: Mapping[str, Tensor] | None = None, rest: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The ``state_dict`` of an authors' checkpoint; ``rest`` (``itm_score.fc.weight``, ...) is added as it is."""
    state = {**AUTHOR.to_theirs(model_state), **(rest or {})}
    if mlm_state is not None:
        state.update(_prefixed(AUTHOR_MLM.to_theirs(_untied(model_state, mlm_state)), "mlm_score."))
    return state


def from_author(state: Mapping[str, Tensor]) -> ViltWeights:
    """The ``state_dict`` of an authors' checkpoint; its decoder is untied.

    Raises:
        KeyMapError: it is not a ViLT's.
    """
    return _import(state, AUTHOR, AUTHOR_MLM, "")


def transformers_config(model: ViLT, mlm: bool = True) -> dict[str, Any]:
    """``config.json`` of the exported model.

    transformers has one LayerNorm epsilon: that of the text embedding is written. It also samples patches in evaluation when
    ``max_image_length`` is set, so -1 is written.

    Raises:
        ValueError: the model has parts that transformers' ViLT lacks.
    """
    text, stack = model.text, model.transformer
    if text.segments is None or not hasattr(text.norm, "eps") or not hasattr(stack.norm, "eps") or stack.causal or stack.blocks[0].post:
        raise ValueError("transformers' ViLT needs text segments, a norm after the text embedding and pre-norm blocks with a final norm")
    return {
        "architectures": ["ViltForMaskedLM" if mlm else "ViltModel"],
        "model_type": "vilt",
        "vocab_size": text.vocab_size,
        "type_vocab_size": text.segments.num_embeddings,
        "modality_type_vocab_size": model.modal_types.num_embeddings,
        "max_position_embeddings": text.max_positions,
        "hidden_size": stack.width,
        "num_hidden_layers": stack.depth,
        "num_attention_heads": stack.heads,
        "intermediate_size": stack.hidden,
        "hidden_act": stack.activation,
        "hidden_dropout_prob": stack.dropout,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": text.norm.eps,
        "image_size": model.image.grid * model.image.patch_size,
        "patch_size": model.image.patch_size,
        "num_channels": 3,
        "qkv_bias": True,
        "max_image_length": -1,
    }


def system_from_transformers(config: Mapping[str, Any], attention: str = "auto") -> dict[str, Any]:
    """Our nested ``class_path``/``init_args`` of a ViltConfig, as a recipe has it.

    Raises:
        ValueError: the configuration uses an option that ViLT does not have here.
    """
    config = {**_DEFAULTS, **config}
    if not config["qkv_bias"] or config["num_channels"] != 3 or config["attention_probs_dropout_prob"]:
        raise ValueError("only ViLT with qkv_bias, three channels and attention_probs_dropout_prob=0 can be imported")
    width, dropout = config["hidden_size"], float(config["hidden_dropout_prob"])
    eps, patch = float(config["layer_norm_eps"]), config["patch_size"]
    text = {"vocab_size": config["vocab_size"], "width": width, "positions": config["max_position_embeddings"]}
    text |= {"segments": config["type_vocab_size"], "norm_eps": eps, "dropout": dropout}
    grid = config["image_size"] // patch
    image = {"width": width, "patch_size": patch, "grid": grid, "patch_limit": config["max_image_length"], "dropout": dropout}
    blocks = {"width": width, "depth": config["num_hidden_layers"], "heads": config["num_attention_heads"]}
    blocks |= {"mlp_ratio": config["intermediate_size"] / width, "activation": config["hidden_act"], "eps": eps}
    blocks |= {"dropout": dropout, "attention": attention}
    return {
        "class_path": "mmpretrain.models.vilt.ViLT",
        "init_args": {
            "text": {"class_path": "mmpretrain.nn.embed.TextEmbedder", "init_args": text},
            "image": {"class_path": "mmpretrain.nn.embed.PatchEmbedder", "init_args": image},
            "blocks": {"class_path": "mmpretrain.nn.blocks.Transformer", "init_args": blocks},
            "modal_types": config["modality_type_vocab_size"],
        },
    }


def build(config: Mapping[str, Any], attention: str = "auto") -> ViLT:
    """An untrained ViLT of a ViltConfig."""
    args = system_from_transformers(config, attention)["init_args"]
    parts = [args[name]["init_args"] for name in ("text", "image", "blocks")]
    return ViLT(TextEmbedder(**parts[0]), PatchEmbedder(**parts[1]), Transformer(**parts[2]), args["modal_types"])


_DEFAULTS = {
    "vocab_size": 30522, "type_vocab_size": 2, "modality_type_vocab_size": 2, "max_position_embeddings": 40, "hidden_size": 768,
    "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "hidden_act": "gelu", "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0, "layer_norm_eps": 1e-12, "image_size": 384, "patch_size": 32, "num_channels": 3,
    "qkv_bias": True, "max_image_length": -1,
}  # fmt: skip
