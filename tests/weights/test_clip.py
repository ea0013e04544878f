"""CLIP equals open_clip (ViT and ResNet), transformers and timm, both ways; round trips are exact."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from helpers import tiny
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel

from mmpretrain.models.clip import CLIP
from mmpretrain.types import Batch
from mmpretrain.weights import clip as weights
from mmpretrain.weights import clip_config as configs
from mmpretrain.weights.keymap import KeyMapError

SQUARE = {"vit": ((32, 32),) * 4, "resnet": ((64, 64),) * 4}
CASES = [("vit", "quick_gelu"), ("vit", "gelu"), ("resnet", "quick_gelu"), ("resnet", "gelu")]


def padded(batch: Batch, length: int = 16) -> torch.Tensor:
    ids = torch.zeros(batch.size, length, dtype=torch.int64)
    ids[:, : batch.text.ids_BT.shape[1]] = batch.text.ids_BT
    return ids


def logits(model: CLIP, batch: Batch) -> torch.Tensor:
    out = model(batch)
    return out.logit_scale.exp() * out.image_BE @ out.text_BE.T


def close(ours: torch.Tensor, reference: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert (ours - reference).abs().max() <= tolerance * reference.abs().max()


@pytest.mark.parametrize(("tower", "activation"), CASES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("end", [59, 40])
def test_open_clip_folder(tmp_path: Path, tower: str, activation: str, attention: str, end: int) -> None:
    """Export, opened by open_clip's own loader: also with an end token that is not the largest id."""
    model, batch = tiny.clip(tower, activation, attention), tiny.batch(SQUARE[tower], end=end)
    if end != 59:
        batch.text.ids_BT[:, 1] = 55
    config = configs.open_clip_config(model, {"mean": [0.5] * 3, "std": [0.5] * 3}, eos_token_id=end)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    save_file(weights.to_open_clip(model.state_dict()), tmp_path / "open_clip_model.safetensors")
    reference = open_clip.create_model(f"local-dir:{tmp_path}", precision="fp32").eval()
    with torch.no_grad():
        image, text = reference.encode_image(batch.image.pixels_BCHW), reference.encode_text(padded(batch))
        ours = model(batch)
        close(ours.image_BE, torch.nn.functional.normalize(image, dim=-1), 1e-5 if attention == "eager" else 1e-4)
        close(ours.text_BE, torch.nn.functional.normalize(text, dim=-1), 1e-5 if attention == "eager" else 1e-4)
        close(logits(model, batch), reference.get_logits(batch.image.pixels_BCHW, padded(batch))[0], 1e-5 if attention == "eager" else 1e-4)


@pytest.mark.parametrize(("tower", "activation"), CASES)
def test_import_from_open_clip(tower: str, activation: str) -> None:
    model_cfg = configs.open_clip_config(tiny.clip(tower, activation))["model_cfg"]
    reference = tiny.shake(open_clip.CLIP(**model_cfg), 3)
    model = configs.build(configs.system_from_open_clip(model_cfg, attention="eager")).eval()
    model.load_state_dict(weights.from_open_clip(reference.state_dict()))
    batch = tiny.batch(SQUARE[tower])
    with torch.no_grad():
        close(logits(model, batch), reference.get_logits(batch.image.pixels_BCHW, padded(batch))[0])
    again = weights.to_open_clip(model.state_dict())
    same(again, reference.state_dict())
    assert configs.open_clip_config(model)["model_cfg"] == model_cfg


def test_training_mode_gradients_equal_open_clip() -> None:
    """One backward: the parameters' gradients, mapped, are open_clip's (batch statistics included)."""
    for tower in ("vit", "resnet"):
        model = tiny.clip(tower).train()
        reference = open_clip.CLIP(**configs.open_clip_config(model)["model_cfg"]).train()
        reference.load_state_dict(weights.to_open_clip(model.state_dict()))
        batch = tiny.batch(SQUARE[tower])
        torch.nn.functional.cross_entropy(logits(model, batch), torch.arange(4)).backward()
        theirs = reference.get_logits(batch.image.pixels_BCHW, padded(batch))[0]
        torch.nn.functional.cross_entropy(theirs, torch.arange(4)).backward()
        state = {n: p.grad for n, p in model.named_parameters()} | dict(model.named_buffers())
        mapped = weights.to_open_clip(state)
        for name, p in reference.named_parameters():
            torch.testing.assert_close(mapped[name], p.grad, atol=2e-5 * max(1.0, p.grad.abs().max().item()), rtol=1e-3, msg=name)
        for name, buffer in reference.named_buffers():
            if name in mapped:
                torch.testing.assert_close(mapped[name], buffer, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("end", [59, 40])
def test_transformers_folder(tmp_path: Path, activation: str, end: int) -> None:
    model, batch = tiny.clip("vit", activation), tiny.batch(SQUARE["vit"], end=end)
    CLIPConfig(**configs.transformers_config(model, eos_token_id=end)).save_pretrained(tmp_path)
    save_file(weights.to_transformers(model.state_dict()), tmp_path / "model.safetensors", metadata={"format": "pt"})
    reference, info = CLIPModel.from_pretrained(tmp_path, output_loading_info=True, attn_implementation="eager")
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    mask = (torch.arange(16)[None] < torch.tensor(batch.text.lengths)[:, None]).long()
    with torch.no_grad():
        for attention_mask in (None, mask):
            out = reference.eval()(input_ids=padded(batch), pixel_values=batch.image.pixels_BCHW, attention_mask=attention_mask)
            close(logits(model, batch), out.logits_per_image)
        hidden = reference.text_model(input_ids=padded(batch), attention_mask=mask).last_hidden_state
        ours = model.text.tokens(batch.text)
        expected = torch.cat([hidden[i, :n] for i, n in enumerate(batch.text.lengths)])
        assert (ours.x_ND - expected).abs().max() < 1e-5
        vision = reference.vision_model(batch.image.pixels_BCHW).last_hidden_state
        tokens = model.image.tokens(batch.image).pad()
        assert (tokens - reference.vision_model.post_layernorm(vision)).abs().max() < 1e-5


def test_import_from_transformers() -> None:
    config = CLIPConfig(**configs.transformers_config(tiny.clip(), eos_token_id=59))
    reference = tiny.shake(CLIPModel._from_config(config, attn_implementation="eager"), 4)
    model = configs.build(configs.system_from_transformers(config.to_dict(), attention="eager")).eval()
    old = {"text_model.embeddings.position_ids": torch.arange(16)[None]}
    model.load_state_dict(weights.from_transformers(reference.state_dict() | old))
    batch = tiny.batch(SQUARE["vit"])
    with torch.no_grad():
        out = reference(input_ids=padded(batch), pixel_values=batch.image.pixels_BCHW)
        close(logits(model, batch), out.logits_per_image)
    same(weights.to_transformers(model.state_dict()), reference.state_dict())


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_timm_folder(tmp_path: Path, activation: str) -> None:
    model, batch = tiny.clip("vit", activation), tiny.batch(SQUARE["vit"])
    config = configs.timm_config(model, (0.5,) * 3, (0.5,) * 3)
    assert ("quickgelu" in config["architecture"]) == (activation == "quick_gelu")
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(weights.to_timm(model.state_dict()), tmp_path / "model.safetensors")
    reference = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        feature = torch.nn.functional.normalize(reference(batch.image.pixels_BCHW), dim=-1)
        close(model(batch).image_BE, feature, 1e-4)
    back = weights.from_timm(reference.state_dict())
    same(back, {k: v for k, v in model.state_dict().items() if k.startswith("image")})


def test_timm_names_of_published_sizes() -> None:
    from mmpretrain.models.clip import TextTower, ViTTower

    with torch.device("meta"):
        model = CLIP(ViTTower(activation="quick_gelu"), TextTower(), 512)
        config = configs.timm_config(model, (0.5,) * 3, (0.5,) * 3)
        reference = timm.create_model("vit_base_patch32_clip_quickgelu_224", num_classes=512)
    assert config["architecture"] == "vit_base_patch32_clip_quickgelu_224"
    assert "model_args" not in config
    theirs = {name: tuple(p.shape) for name, p in reference.state_dict().items()}
    assert {name: tuple(p.shape) for name, p in weights.to_timm(model.state_dict()).items()} == theirs


def test_sigmoid_bias_travels_to_open_clip_and_is_refused_elsewhere() -> None:
    model = tiny.clip(bias=-10.0)
    model_cfg = configs.open_clip_config(model)["model_cfg"]
    reference = open_clip.CLIP(**model_cfg)
    reference.load_state_dict(weights.to_open_clip(model.state_dict()))
    assert reference.logit_bias.item() == -10.0
    with pytest.raises(ValueError, match="logit bias"):
        configs.transformers_config(model)
    with pytest.raises(KeyMapError, match="logit_bias"):
        weights.to_transformers(model.state_dict())


def test_refusals() -> None:
    with pytest.raises(ValueError, match="eos_token_id=2"):
        configs.transformers_config(tiny.clip(), eos_token_id=2)
    with pytest.raises(ValueError, match="open_clip"):
        configs.timm_config(tiny.clip("resnet"), (0.5,) * 3, (0.5,) * 3)
    state = weights.to_timm(tiny.clip().state_dict())
    with pytest.raises(KeyMapError, match="classifier"):
        weights.from_timm(state | {"head.bias": torch.ones(48)})
    with pytest.raises(KeyMapError, match="no place"):
        weights.from_open_clip(weights.to_open_clip(tiny.clip().state_dict()) | {"visual.attn_pool.query": torch.zeros(1)})


def same(a: dict, b: dict) -> None:
    assert a.keys() == dict(b).keys()
    assert all(torch.equal(a[k], v) for k, v in dict(b).items())
