"""Configurations of CLIP in open_clip, transformers and timm, written from our model and read into our constructor's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmpretrain.models.clip import CLIP, ResNetTower, TextTower, ViTTower
from mmpretrain.nn.blocks import Transformer

_TIMM_NAMES = {
    (32, 768, 12, 12, 224): "vit_base_patch32_clip{}_224",
    (16, 768, 12, 12, 224): "vit_base_patch16_clip{}_224",
    (14, 1024, 24, 16, 224): "vit_large_patch14_clip{}_224",
    (14, 1024, 24, 16, 336): "vit_large_patch14_clip{}_336",
}


def _one_activation(model: CLIP) -> str:
    stacks = [model.text.transformer] + ([model.image.transformer] if isinstance(model.image, ViTTower) else [])
    names = {stack.activation for stack in stacks}
    if len(names) > 1:
        raise ValueError(f"the towers differ in activation ({', '.join(sorted(names))}); open_clip and transformers exports need one")
    return names.pop()


def open_clip_config(model: CLIP, preprocess: Mapping[str, Any] | None = None, eos_token_id: int | None = None) -> dict[str, Any]:
    """``open_clip_config.json``.

    Args:
        preprocess: ``mean``, ``std``, ``interpolation``, ``resize_mode`` of the evaluation transform; None: open_clip's own.
        eos_token_id: the last token of every text. None or the largest id: pooled by argmax, as OpenAI does; else pooled where it stands.

    ``quick_gelu`` is always written, because a reader that does not find it computes another activation.

    Raises:
        ValueError: the towers differ in activation.
    """
    image, text = model.image, model.text
    if isinstance(image, ViTTower):
        stack = image.transformer
        vision: dict[str, Any] = {"image_size": image.image_size, "patch_size": image.patch_size}
        vision |= {"layers": stack.depth, "width": stack.width}
        vision |= {"head_width": stack.width // stack.heads, "mlp_ratio": stack.hidden / stack.width}
        vision |= {"norm_kwargs": {"eps": stack.eps}}
    else:
        vision = {"image_size": image.image_size, "layers": list(image.layers), "width": image.width, "patch_size": None}
        vision |= {"head_width": image.width * 32 // image.heads}
    stack = text.transformer
    words: dict[str, Any] = {"context_length": text.embed.max_positions, "vocab_size": text.embed.vocab_size}
    words |= {"width": stack.width, "heads": stack.heads}
    words |= {"layers": stack.depth, "mlp_ratio": stack.hidden / stack.width, "norm_kwargs": {"eps": stack.eps}}
    if eos_token_id is not None and eos_token_id != text.embed.vocab_size - 1:
        words |= {"pool_type": "eos", "eos_id": eos_token_id}
    config: dict[str, Any] = {"embed_dim": model.embed_dim, "quick_gelu": _one_activation(model) == "quick_gelu"}
    config |= {"vision_cfg": vision, "text_cfg": words}
    if model.logit_bias is not None:
        config |= {"init_logit_bias": model.logit_bias_init, "init_logit_scale": model.logit_scale_init}
    return {"model_cfg": config, "preprocess_cfg": dict(preprocess or {})}


def system_from_open_clip(model_cfg: Mapping[str, Any], attention: str = "auto") -> dict[str, Any]:
    """Our nested ``class_path``/``init_args`` of an open_clip ``model_cfg``.

    Raises:
        ValueError: it uses a tower or an option that is not CLIP's.
    """
    vision, words = dict(model_cfg["vision_cfg"]), dict(model_cfg["text_cfg"])
    if "timm_model_name" in vision or words.get("hf_model_name") or model_cfg.get("custom_text") or words.get("no_causal_mask"):
        raise ValueError("only open_clip's own ViT or modified ResNet with its own text transformer can be imported")
    act = "quick_gelu" if model_cfg.get("quick_gelu") else "gelu"
    size, width, embed_dim = vision["image_size"], vision.get("width", 768), model_cfg["embed_dim"]
    head = vision.get("head_width", 64)
    if isinstance(vision["layers"], list | tuple):
        path = "ResNetTower"
        tower = {"image_size": size, "layers": list(vision["layers"]), "width": width, "heads": width * 32 // head, "embed_dim": embed_dim}
    else:
        path = "ViTTower"
        tower = {"image_size": size, "patch_size": vision["patch_size"], "width": width, "depth": vision["layers"], "heads": width // head}
        tower |= {"mlp_ratio": vision.get("mlp_ratio", 4.0), "activation": act, "eps": _eps(vision), "attention": attention}
    text = {"vocab_size": words.get("vocab_size", 49408), "positions": words.get("context_length", 77), "width": words["width"]}
    text |= {"depth": words["layers"], "heads": words["heads"], "mlp_ratio": words.get("mlp_ratio", 4.0), "activation": act}
    text |= {"eps": _eps(words), "attention": attention}
    extra = {"logit_bias_init": model_cfg["init_logit_bias"]} if model_cfg.get("init_logit_bias") is not None else {}
    extra |= {"logit_scale_init": model_cfg["init_logit_scale"]} if "init_logit_scale" in model_cfg else {}
    return _system(path, tower, text, embed_dim, extra)


def _eps(tower: Mapping[str, Any]) -> float:
    return float((tower.get("norm_kwargs") or {}).get("eps", 1e-5))


def _system(path: str, tower: dict[str, Any], text: dict[str, Any], embed_dim: int, extra: dict[str, Any]) -> dict[str, Any]:
    home = "mmpretrain.models.clip."
    parts = {"image": {"class_path": home + path, "init_args": tower}, "text": {"class_path": home + "TextTower", "init_args": text}}
    return {"class_path": home + "CLIP", "init_args": {**parts, "embed_dim": embed_dim, **extra}}


def transformers_config(
    model: CLIP, eos_token_id: int | None = None, bos_token_id: int | None = None, pad_token_id: int | None = None
) -> dict[str, Any]:
    """``config.json`` of ``CLIPModel``. The token ids default to CLIP's: the largest id ends a text, the one before starts it, 0 pads.

    ``projection_dim`` stands in all three places that transformers reads.

    Raises:
        ValueError: the image tower is a ResNet, there is a logit bias, the towers differ in activation, or a text ends in token 2, which
            transformers takes for a sign of an old configuration.
    """
    if not isinstance(model.image, ViTTower) or model.logit_bias is not None:
        raise ValueError("transformers' CLIPModel has a ViT image tower and no logit bias: export to open_clip instead")
    act, size = _one_activation(model), model.text.embed.vocab_size
    eos = size - 1 if eos_token_id is None else eos_token_id
    if eos == 2 != size - 1:
        raise ValueError("transformers reads eos_token_id=2 as 'the largest id ends the text': give the tokenizer another end token id")

    def shared(stack: Transformer, kind: str) -> dict[str, Any]:
        return {
            "model_type": kind, "hidden_size": stack.width, "intermediate_size": stack.hidden, "num_hidden_layers": stack.depth,
            "num_attention_heads": stack.heads, "hidden_act": act, "layer_norm_eps": stack.eps, "attention_dropout": 0.0,
            "projection_dim": model.embed_dim,
        }  # fmt: skip

    text = shared(model.text.transformer, "clip_text_model")
    text |= {"vocab_size": size, "max_position_embeddings": model.text.embed.max_positions, "eos_token_id": eos}
    text |= {"bos_token_id": eos - 1 if bos_token_id is None else bos_token_id, "pad_token_id": 0 if pad_token_id is None else pad_token_id}
    vision = shared(model.image.transformer, "clip_vision_model")
    vision |= {"image_size": model.image.image_size, "patch_size": model.image.patch_size, "num_channels": 3}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": model.embed_dim,
        "logit_scale_init_value": model.logit_scale_init,
        "text_config": text,
        "vision_config": vision,
    }


def system_from_transformers(config: Mapping[str, Any], attention: str = "auto") -> dict[str, Any]:
    """Our nested ``class_path``/``init_args`` of a complete CLIPConfig (``CLIPConfig.to_dict()``)."""

    def shared(part: Mapping[str, Any]) -> dict[str, Any]:
        ratio = part["intermediate_size"] / part["hidden_size"]
        out = {"width": part["hidden_size"], "depth": part["num_hidden_layers"], "heads": part["num_attention_heads"], "mlp_ratio": ratio}
        return out | {"activation": part["hidden_act"], "eps": float(part["layer_norm_eps"]), "attention": attention}

    vision, words = config["vision_config"], config["text_config"]
    tower = {"image_size": vision["image_size"], "patch_size": vision["patch_size"], **shared(vision)}
    text = {"vocab_size": words["vocab_size"], "positions": words["max_position_embeddings"], **shared(words)}
    return _system("ViTTower", tower, text, config["projection_dim"], {"logit_scale_init": config["logit_scale_init_value"]})


def timm_config(model: CLIP, mean: tuple[float, ...], std: tuple[float, ...], interpolation: str = "bicubic") -> dict[str, Any]:
    """``config.json`` of the image tower for timm (``create_model('local-dir:DIR')``), with the projection as classifier.

    Raises:
        ValueError: the image tower is a ResNet.
    """
    image = model.image
    if not isinstance(image, ViTTower):
        raise ValueError("timm export is for ViT image towers: export a ResNet CLIP to open_clip instead")
    stack = image.transformer
    quick = "_quickgelu" if stack.activation == "quick_gelu" else ""
    key = (image.patch_size, stack.width, stack.depth, stack.heads, image.image_size)
    name = _TIMM_NAMES.get(key, _TIMM_NAMES[(32, 768, 12, 12, 224)]).format(quick)
    config: dict[str, Any] = {"architecture": name, "num_classes": model.embed_dim, "num_features": stack.width, "global_pool": "token"}
    if key not in _TIMM_NAMES or stack.hidden != 4 * stack.width:
        config["model_args"] = {
            "img_size": image.image_size, "patch_size": image.patch_size, "embed_dim": stack.width, "depth": stack.depth,
            "num_heads": stack.heads, "mlp_ratio": stack.hidden / stack.width,
        }  # fmt: skip
    size = [3, image.image_size, image.image_size]
    config["pretrained_cfg"] = {
        "custom_load": False, "input_size": size, "fixed_input_size": True, "interpolation": interpolation, "crop_pct": 1.0,
        "crop_mode": "center", "mean": list(mean), "std": list(std), "num_classes": model.embed_dim, "pool_size": None,
        "first_conv": "patch_embed.proj", "classifier": "head",
    }  # fmt: skip
    return config


def build(system: Mapping[str, Any]) -> CLIP:
    """An untrained CLIP of what ``system_from_open_clip`` or ``system_from_transformers`` gave."""
    args = dict(system["init_args"])
    image, text = args.pop("image"), args.pop("text")
    kinds = {"ViTTower": ViTTower, "ResNetTower": ResNetTower}
    tower = kinds[image["class_path"].rsplit(".", 1)[1]](**image["init_args"])
    return CLIP(tower, TextTower(**text["init_args"]), **args)
