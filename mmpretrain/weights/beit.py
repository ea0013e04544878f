"""BEiT in the layouts of its authors (microsoft/unilm) and of transformers (``BeitForMaskedImageModeling``).

Files of transformers have the same names in all versions; modules of version 5 have others, which are read too. Neither has a bias of keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from mmpretrain.models.beit import BEiT
from mmpretrain.nn.embed import PatchEmbedder
from mmpretrain.nn.vit import VisionTransformer
from mmpretrain.weights.files import WeightsError
from mmpretrain.weights.keymap import Row, Rule, Split, Stack
from mmpretrain.weights.layout import Layout, here

_BLOCK = "transformer.blocks.{i}."
_QKV = ("query", "key", "value")
_INDEX = r".*relative_position_index"  # of the pairs of tokens, made anew from the grid


def _embedding(model: BEiT, mask: str, positions: str, names: Mapping[str, str]) -> list[Rule]:
    """Rules of the patch embedding, as the model has it."""
    rules = [Rule("image.class_token", names["class"], Row(2)), Rule("image.projection.{p}", names["projection"])]
    if model.image.mask_token is not None:
        rules.append(Rule("image.mask_token", mask, Row(2)))
    if model.image.positions is not None:
        rules.append(Rule(("image.class_position", "image.positions"), positions, Stack(1)))
    return rules


def _blocks(model: BEiT, shared: str, own: str, scales: tuple[str, str], leaves: Mapping[str, str]) -> list[Rule]:
    """Rules of what all blocks have, of the scales and the relative positions, as the model has them.

    Raises:
        WeightsError: the keys of the model have a bias.
    """
    form = model.transformer.form
    if form.key_bias:
        raise WeightsError("BEiT's published layouts have no bias of keys: set key_bias: false of the blocks")
    rules = [Rule(f"{_BLOCK}{ours}.{{p}}", f"{theirs}.{{p}}") for ours, theirs in leaves.items()]
    if form.layer_scale is not None:
        rules += [Rule(f"{_BLOCK}scale{number}", scale) for number, scale in enumerate(scales, 1)]
    if model.transformer.kind == "shared":
        rules.append(Rule("transformer.relative.table", shared))
    elif model.transformer.kind == "block":
        rules.append(Rule(f"{_BLOCK}relative.table", own))
    return rules


def _official(model: BEiT) -> list[Rule]:
    block = "blocks.{i}."
    table = "relative_position_bias_table"
    leaves = {"norm1": "norm1", "norm2": "norm2", "attention.out": "attn.proj", "mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2"}
    return [
        *here(_embedding(model, "mask_token", "pos_embed", {"class": "cls_token", "projection": "patch_embed.proj.{p}"})),
        *here(
            _blocks(
                model,
                f"rel_pos_bias.{table}",
                f"{block}attn.{table}",
                (f"{block}gamma_1", f"{block}gamma_2"),
                {ours: block + theirs for ours, theirs in leaves.items()},
            )
        ),
        *here(
            [
                Rule(f"{_BLOCK}attention.qkv.weight", f"{block}attn.qkv.weight"),
                Rule(f"{_BLOCK}attention.qkv.query_bias", f"{block}attn.q_bias"),
                Rule(f"{_BLOCK}attention.qkv.value_bias", f"{block}attn.v_bias"),
                Rule("transformer.norm.{p}", "norm.{p}"),
            ]
        ),
        Rule("mim.decoder.{p}", "lm_head.{p}", optional=True),
    ]


def _transformers(model: BEiT) -> list[Rule]:
    block, attention = "beit.encoder.layer.{i}.", "beit.encoder.layer.{i}.attention.attention."
    table, embeddings = "relative_position_bias.relative_position_bias_table", "beit.embeddings."
    names = {"class": f"{embeddings}cls_token", "projection": embeddings + "patch_embeddings.projection.{p}"}
    leaves = {
        "norm1": "layernorm_before", "norm2": "layernorm_after", "attention.out": "attention.output.dense", "mlp.up": "intermediate.dense",
        "mlp.down": "output.dense",
    }  # fmt: skip
    return [
        *here(_embedding(model, f"{embeddings}mask_token", f"{embeddings}position_embeddings", names)),
        *here(
            _blocks(
                model,
                f"beit.encoder.{table}",
                f"{attention}{table}",
                (f"{block}lambda_1", f"{block}lambda_2"),
                {ours: block + theirs for ours, theirs in leaves.items()},
            )
        ),
        *here(
            [
                Rule(f"{_BLOCK}attention.qkv.weight", tuple(f"{attention}{part}.weight" for part in _QKV), Split(3)),
                Rule(f"{_BLOCK}attention.qkv.query_bias", f"{attention}query.bias"),
                Rule(f"{_BLOCK}attention.qkv.value_bias", f"{attention}value.bias"),
                Rule("transformer.norm.{p}", "layernorm.{p}"),
            ]
        ),
        Rule("mim.decoder.{p}", "lm_head.{p}", optional=True),
    ]


# from the names that modules have since version 5 to those of all files; the tables by a detour, since the old name of the shared one
# holds the new one of a block
_SINCE_5 = (
    ("encoder.relative_position_bias.", "shared_position_bias."),
    ("attention.attention.relative_position_bias.", "relative_position_bias."),
    (".relative_position_bias.", ".attention.attention.relative_position_bias."),
    ("shared_position_bias.", "encoder.relative_position_bias."),
    ("beit.layers.", "beit.encoder.layer."),
    *((f".attention.{part[0]}_proj.", f".attention.attention.{part}.") for part in _QKV),
    (".attention.o_proj.", ".attention.output.dense."),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
)
OFFICIAL = Layout("beit", BEiT, _official, (_INDEX, "mask_token"))
TRANSFORMERS = Layout("beit-transformers", BEiT, _transformers, (_INDEX, r"beit\.embeddings\.mask_token"), _SINCE_5)


def transformers_config(model: BEiT, codes: int | None) -> dict[str, Any]:
    """``config.json`` of ``BeitForMaskedImageModeling``, or of ``BeitModel`` where ``codes`` is None.

    Raises:
        ValueError: the model has parts that transformers' BEiT lacks.
    """
    image, stack = model.image, model.transformer
    form = stack.form
    grids = {image.grid if image.positions is not None else stack.grid, stack.grid if stack.kind != "none" else image.grid}
    if form.key_bias or len(grids) > 1:
        raise ValueError("transformers' BEiT has no bias of keys, and one grid for absolute and relative positions")
    if codes is not None and image.mask_token is None:
        raise ValueError("transformers' BeitForMaskedImageModeling has a mask token, and the model has none")
    return {
        "architectures": ["BeitModel" if codes is None else "BeitForMaskedImageModeling"],
        "model_type": "beit",
        "vocab_size": 8192 if codes is None else codes,
        "hidden_size": form.width,
        "num_hidden_layers": stack.depth,
        "num_attention_heads": form.heads,
        "intermediate_size": form.hidden,
        "hidden_act": form.activation,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": form.eps,
        "image_size": grids.pop() * image.patch_size,
        "patch_size": image.patch_size,
        "num_channels": 3,
        "use_mask_token": image.mask_token is not None,
        "use_absolute_position_embeddings": image.positions is not None,
        "use_relative_position_bias": stack.kind == "block",
        "use_shared_relative_position_bias": stack.kind == "shared",
        "layer_scale_init_value": form.layer_scale or 0.0,
        "drop_path_rate": stack.drop_path,
        "use_mean_pooling": codes is not None,  # without a head its final norm is that of all tokens, as here
    }


def system_from_transformers(config: Mapping[str, Any], attention: str = "auto") -> dict[str, Any]:
    """Our nested ``class_path``/``init_args`` of a BeitConfig, as a recipe has it.

    Raises:
        ValueError: the configuration uses an option that BEiT does not have here.
    """
    config = {**_DEFAULTS, **config}
    shared, own = config["use_shared_relative_position_bias"], config["use_relative_position_bias"]
    if (shared and own) or config["num_channels"] != 3 or config["hidden_dropout_prob"] or config["attention_probs_dropout_prob"]:
        raise ValueError("only BEiT with three channels, no dropout and one kind of relative positions can be imported")
    width, patch = config["hidden_size"], config["patch_size"]
    grid = config["image_size"] // patch
    image = {"width": width, "patch_size": patch, "grid": grid, "positions": config["use_absolute_position_embeddings"]}
    image |= {"mask_token": config["use_mask_token"], "init": "trunc_normal_std"}
    blocks = {"width": width, "depth": config["num_hidden_layers"], "heads": config["num_attention_heads"], "grid": grid}
    blocks |= {"relative": "shared" if shared else "block" if own else "none", "layer_scale": config["layer_scale_init_value"] or None}
    blocks |= {"drop_path": float(config["drop_path_rate"]), "mlp_ratio": config["intermediate_size"] / width}
    blocks |= {"activation": config["hidden_act"], "eps": float(config["layer_norm_eps"]), "attention": attention}
    return {
        "class_path": "mmpretrain.models.beit.BEiT",
        "init_args": {
            "image": {"class_path": "mmpretrain.nn.embed.PatchEmbedder", "init_args": image},
            "blocks": {"class_path": "mmpretrain.nn.vit.VisionTransformer", "init_args": blocks},
        },
    }


def build(config: Mapping[str, Any], attention: str = "auto") -> BEiT:
    """An untrained BEiT of a BeitConfig."""
    args = system_from_transformers(config, attention)["init_args"]
    return BEiT(PatchEmbedder(**args["image"]["init_args"]), VisionTransformer(**args["blocks"]["init_args"]))


def codes_head(objectives: Mapping[str, Any]) -> nn.Module | None:
    """The head of the first objective that predicts codes by its decoder alone, as BEiT's does; None: there is none."""
    for objective in objectives.values():
        head = getattr(objective, "head", None)
        if type(objective).__name__ == "MIM" and isinstance(head, nn.Module) and getattr(head, "dense", None) is None:
            return head
    return None


_DEFAULTS = {
    "vocab_size": 8192, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "layer_norm_eps": 1e-12, "image_size": 224,
    "patch_size": 16, "num_channels": 3, "use_mask_token": False, "use_absolute_position_embeddings": False,
    "use_relative_position_bias": False, "use_shared_relative_position_bias": False, "layer_scale_init_value": 0.1, "drop_path_rate": 0.1,
}  # fmt: skip
