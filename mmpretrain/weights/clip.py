"""CLIP in the layouts of OpenAI and open_clip (one layout), transformers' ``CLIPModel``, and timm (image tower)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mmpretrain.weights.keymap import Converted, KeyMap, KeyMapError, Row, Rule, Split, Stack, Transpose


def _openai_blocks(ours: str, theirs: str) -> list[Rule]:
    ours, theirs = f"{ours}.transformer.blocks.{{i}}", f"{theirs}transformer.resblocks.{{i}}"
    return [
        Rule(f"{ours}.attention.qkv.{{p}}", f"{theirs}.attn.in_proj_{{p}}"),
        Rule(f"{ours}.attention.out.{{p}}", f"{theirs}.attn.out_proj.{{p}}"),
        Rule(f"{ours}.norm1.{{p}}", f"{theirs}.ln_1.{{p}}"),
        Rule(f"{ours}.norm2.{{p}}", f"{theirs}.ln_2.{{p}}"),
        Rule(f"{ours}.mlp.up.{{p}}", f"{theirs}.mlp.c_fc.{{p}}"),
        Rule(f"{ours}.mlp.down.{{p}}", f"{theirs}.mlp.c_proj.{{p}}"),
    ]


_OPENAI_TEXT = [
    Rule("text.embed.words.weight", "token_embedding.weight"),
    Rule("text.embed.positions.weight", "positional_embedding"),
    *_openai_blocks("text", ""),
    Rule("text.transformer.norm.{p}", "ln_final.{p}"),
    Rule("text_projection.weight", "text_projection", Transpose()),
    Rule("logit_scale", "logit_scale", Row(-1)),
    Rule("logit_bias", "logit_bias", Row(-1), optional=True),
]

_OPENAI_VIT = [
    Rule("image.embed.projection.weight", "visual.conv1.weight"),
    Rule("image.embed.class_token", "visual.class_embedding", Row(0)),
    Rule(("image.embed.class_position", "image.embed.positions"), "visual.positional_embedding", Stack(0)),
    Rule("image.pre_norm.{p}", "visual.ln_pre.{p}"),
    *_openai_blocks("image", "visual."),
    Rule("image.transformer.norm.{p}", "visual.ln_post.{p}"),
    Rule("image_projection.weight", "visual.proj", Transpose()),
]


def _openai_resnet() -> list[Rule]:
    rules = [Rule(f"image.trunk.{kind}{n}.{{p}}", f"visual.{kind}{n}.{{p}}") for n in (1, 2, 3) for kind in ("conv", "bn")]
    for stage in range(4):
        ours, theirs = f"image.trunk.stages.{stage}.{{i}}", f"visual.layer{stage + 1}.{{i}}"
        rules += [Rule(f"{ours}.{kind}{n}.{{p}}", f"{theirs}.{kind}{n}.{{p}}") for n in (1, 2, 3) for kind in ("conv", "bn")]
        rules += [
            Rule(f"{ours}.shortcut_conv.{{p}}", f"{theirs}.downsample.0.{{p}}"),
            Rule(f"{ours}.shortcut_bn.{{p}}", f"{theirs}.downsample.1.{{p}}"),
        ]
    rules += [Rule("image.pool.positions", "visual.attnpool.positional_embedding")]
    pairs = (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("out", "c_proj"))
    return rules + [Rule(f"image.pool.{a}.{{p}}", f"visual.attnpool.{b}.{{p}}") for a, b in pairs]


OPENAI_VIT = KeyMap(_OPENAI_VIT + _OPENAI_TEXT, "open_clip's ViT CLIP")
OPENAI_RESNET = KeyMap(_openai_resnet() + _OPENAI_TEXT, "open_clip's ResNet CLIP")


def _hf_blocks(ours: str, theirs: str) -> list[Rule]:
    ours, theirs = f"{ours}.transformer.blocks.{{i}}", f"{theirs}.encoder.layers.{{i}}"
    parts = tuple(f"{theirs}.self_attn.{part}_proj.{{p}}" for part in "qkv")
    return [
        Rule(f"{ours}.attention.qkv.{{p}}", parts, Split(3)),
        Rule(f"{ours}.attention.out.{{p}}", f"{theirs}.self_attn.out_proj.{{p}}"),
        Rule(f"{ours}.norm1.{{p}}", f"{theirs}.layer_norm1.{{p}}"),
        Rule(f"{ours}.norm2.{{p}}", f"{theirs}.layer_norm2.{{p}}"),
        Rule(f"{ours}.mlp.up.{{p}}", f"{theirs}.mlp.fc1.{{p}}"),
        Rule(f"{ours}.mlp.down.{{p}}", f"{theirs}.mlp.fc2.{{p}}"),
    ]


_VISION = "vision_model.embeddings."
TRANSFORMERS = KeyMap(
    [
        Rule("image.embed.projection.weight", _VISION + "patch_embedding.weight"),
        Rule("image.embed.class_token", _VISION + "class_embedding", Row(0)),
        Rule(("image.embed.class_position", "image.embed.positions"), _VISION + "position_embedding.weight", Stack(0)),
        Rule("image.pre_norm.{p}", "vision_model.pre_layrnorm.{p}"),  # their spelling
        *_hf_blocks("image", "vision_model"),
        Rule("image.transformer.norm.{p}", "vision_model.post_layernorm.{p}"),
        Rule("image_projection.weight", "visual_projection.weight"),
        Rule("text.embed.words.weight", "text_model.embeddings.token_embedding.weight"),
        Rule("text.embed.positions.weight", "text_model.embeddings.position_embedding.weight"),
        *_hf_blocks("text", "text_model"),
        Rule("text.transformer.norm.{p}", "text_model.final_layer_norm.{p}"),
        Rule("text_projection.weight", "text_projection.weight"),
        Rule("logit_scale", "logit_scale", Row(-1)),
    ],
    "transformers' CLIPModel",
)

TIMM = KeyMap(
    [
        Rule("image.embed.projection.weight", "patch_embed.proj.weight"),
        Rule("image.embed.class_token", "cls_token", Row(2)),
        Rule(("image.embed.class_position", "image.embed.positions"), "pos_embed", Stack(1)),
        Rule("image.pre_norm.{p}", "norm_pre.{p}"),
        Rule("image.transformer.blocks.{i}.attention.qkv.{p}", "blocks.{i}.attn.qkv.{p}"),
        Rule("image.transformer.blocks.{i}.attention.out.{p}", "blocks.{i}.attn.proj.{p}"),
        Rule("image.transformer.blocks.{i}.norm1.{p}", "blocks.{i}.norm1.{p}"),
        Rule("image.transformer.blocks.{i}.norm2.{p}", "blocks.{i}.norm2.{p}"),
        Rule("image.transformer.blocks.{i}.mlp.up.{p}", "blocks.{i}.mlp.fc1.{p}"),
        Rule("image.transformer.blocks.{i}.mlp.down.{p}", "blocks.{i}.mlp.fc2.{p}"),
        Rule("image.transformer.norm.{p}", "norm.{p}"),
        Rule("image_projection.weight", "head.weight"),
    ],
    "timm's CLIP image tower",
)

_NOT_WEIGHTS = ("position_ids", "attn_mask", "input_resolution", "context_length", "vocab_size")


def _imported(converted: Converted, foreign: str) -> dict[str, Tensor]:
    unknown = [name for name in converted.leftover if not name.endswith(_NOT_WEIGHTS)]
    if unknown:
        raise KeyMapError(f"{foreign}: no place here for {', '.join(unknown[:8])}")
    return converted.state


def _is_resnet(state: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(("image.pool.", "visual.attnpool.")) for name in state)


def to_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our CLIP's state dict under OpenAI's names, which are open_clip's.

    Raises:
        KeyMapError: it is not a CLIP's.
    """
    return (OPENAI_RESNET if _is_resnet(state) else OPENAI_VIT).to_theirs(state)


def from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An open_clip or OpenAI state dict under our names; a half-precision one becomes fp32.

    Raises:
        KeyMapError: it is not that of a CLIP with a ViT or modified ResNet and a text transformer.
    """
    chosen = OPENAI_RESNET if _is_resnet(state) else OPENAI_VIT
    out = _imported(chosen.to_ours(state), chosen.foreign)
    return {name: t.float() if t.is_floating_point() else t for name, t in out.items()}


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our CLIP's state dict under the names of transformers' ``CLIPModel``.

    Raises:
        KeyMapError: the image tower is a ResNet, or there is a logit bias: CLIPModel has neither.
    """
    return TRANSFORMERS.to_theirs(state)


def from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A ``CLIPModel`` state dict under our names.

    Raises:
        KeyMapError: it is not a CLIPModel's.
    """
    return _imported(TRANSFORMERS.to_ours(state), TRANSFORMERS.foreign)


def to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image tower with its projection as timm's classifier of E classes (bias zero): ``forward`` gives the unnormalised feature.

    Raises:
        KeyMapError: the image tower is a ResNet.
    """
    image = {name: t for name, t in state.items() if name.startswith("image.") or name == "image_projection.weight"}
    out = TIMM.to_theirs(image)
    return {**out, "head.bias": torch.zeros(out["head.weight"].shape[0], dtype=out["head.weight"].dtype)}


def from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A timm CLIP image tower under our names (``image.*`` and ``image_projection.weight``), for ``load_state_dict`` beside a text tower.

    Raises:
        KeyMapError: another architecture, or a classifier with a bias, which is not a projection.
    """
    state = dict(state)
    bias = state.pop("head.bias", None)
    if bias is not None and bias.any():
        raise KeyMapError("timm: head.bias is not zero, this is a classifier and not CLIP's projection")
    return _imported(TIMM.to_ours(state), TIMM.foreign)
