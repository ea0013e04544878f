"""BEiT equals transformers' BEiT, weights both ways; the authors' names; round trips are exact."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import tiny
from helpers.beit_case import CODES, VOCABULARY, batch, beit
from safetensors.torch import save_file
from torch import Tensor
from transformers import BeitConfig, BeitForMaskedImageModeling

from mmpretrain.methods.transform import Around
from mmpretrain.objectives.mim import MIM
from mmpretrain.weights import beit as weights
from mmpretrain.weights.files import WeightsError
from mmpretrain.weights.keymap import KeyMapError
from mmpretrain.weights.layout import from_published, to_published
from mmpretrain.weights.published import FromPublished, import_weights

FORMS = {
    "shared": {"use_shared_relative_position_bias": True},
    "block": {"use_relative_position_bias": True},
    "absolute": {"use_absolute_position_embeddings": True, "layer_scale_init_value": 0.0},
    "both": {"use_absolute_position_embeddings": True, "use_shared_relative_position_bias": True},
}


def theirs(form: str, seed: int = 3) -> BeitForMaskedImageModeling:
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "image_size": 32,
        "patch_size": 8,
    }
    config = BeitConfig(**sizes, vocab_size=CODES, use_mask_token=True, drop_path_rate=0.0, layer_norm_eps=1e-6, **FORMS[form])
    model = BeitForMaskedImageModeling._from_config(config, attn_implementation="eager")
    tiny.shake(model, seed)
    return model


def ours(model: BeitForMaskedImageModeling, state: dict[str, Tensor], attention: str = "eager"):
    """A BEiT and its objective with their weights."""
    built = weights.build(model.config.to_dict(), attention)
    found = from_published(weights.TRANSFORMERS, built, state)
    assert found.unused == () and found.words is None
    built.load_state_dict(found.model)
    objective = MIM()
    objective.bind(built.spec, VOCABULARY)
    objective.head.load_state_dict(found.heads["mim"])
    return built.eval(), objective


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("form", FORMS)
def test_equals_transformers_with_gradients(form: str, attention: str) -> None:
    """Logits, loss and the gradients of all weights on pictures with masked patches."""
    model, whole = theirs(form), batch(((32, 32),) * 5)
    built, objective = ours(model, model.state_dict(), attention)
    corrupted = objective.corrupt(whole, {})
    masked_BV = corrupted.image.masked_N.view(5, 16)
    out = model(whole.image.pixels_BCHW, bool_masked_pos=masked_BV, labels=whole.codes.ids_N[corrupted.image.masked_N])
    hidden = built(corrupted)
    logits = objective.logits(hidden, corrupted)
    scale = out.logits.detach().abs().max()
    torch.testing.assert_close(logits / scale, out.logits[masked_BV] / scale, atol=1e-5 if attention == "eager" else 1e-4, rtol=0)
    score = objective(hidden, corrupted)
    torch.testing.assert_close(score.sum / score.count, out.loss, atol=1e-5, rtol=1e-5)
    (score.sum / score.count).backward()
    out.loss.backward()
    of = lambda parameter: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    expected = from_published(weights.TRANSFORMERS, built, {name: of(p) for name, p in model.named_parameters()})  # by the map of weights
    pairs = [(expected.model, built), (expected.heads["mim"], objective.head)]
    largest = max(grad.abs().max() for state, _ in pairs for grad in state.values())
    tolerance = 1e-5 if attention == "eager" else 1e-4
    for state, part in pairs:
        for name, parameter in part.named_parameters():
            torch.testing.assert_close(of(parameter) / largest, state[name] / largest, atol=tolerance, rtol=0, msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_files_of_transformers_are_read_and_ours_are_opened(form: str, tmp_path: Path) -> None:
    """``save_pretrained`` writes the names of all versions, a module of version 5 has others; ours open with ``from_pretrained``."""
    model, whole = theirs(form), batch(((32, 32),) * 2)
    model.save_pretrained(tmp_path / "theirs")
    built, _ = ours(model, model.state_dict())
    objective = MIM()
    objective.bind(built.spec, VOCABULARY)
    tiny.shake(built, 9)
    said = import_weights(built, tmp_path / "theirs", "beit-transformers", {"mim": objective}).said
    assert "heads filled: mim" in said
    state = to_published(weights.TRANSFORMERS, built, {"mim": objective.head})
    config = BeitConfig(**weights.transformers_config(built, CODES))
    config.save_pretrained(tmp_path / "ours")
    save_file({name: t.contiguous() for name, t in state.items()}, tmp_path / "ours" / "model.safetensors", metadata={"format": "pt"})
    opened, info = BeitForMaskedImageModeling.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        masked = torch.zeros(2, 16, dtype=torch.bool)
        masked[:, 3:9] = True
        pixels = whole.image.pixels_BCHW
        torch.testing.assert_close(opened.eval()(pixels, masked).logits, model(pixels, masked).logits, atol=1e-5, rtol=0)


def released(kind: str, positions: bool, scale: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint of the authors, written down from their code."""
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, 32), "mask_token": (1, 1, 32)}
    shapes |= {"patch_embed.proj.weight": (32, 3, 8, 8), "patch_embed.proj.bias": (32,)}
    shapes |= {"pos_embed": (1, 17, 32)} if positions else {}
    shapes |= {"rel_pos_bias.relative_position_bias_table": (52, 4)} if kind == "shared" else {}
    for i in range(3):
        block = f"blocks.{i}."
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}{norm}.weight": (32,), f"{block}{norm}.bias": (32,)}
        shapes |= {f"{block}gamma_1": (32,), f"{block}gamma_2": (32,)} if scale else {}
        shapes |= {f"{block}attn.qkv.weight": (96, 32), f"{block}attn.q_bias": (32,), f"{block}attn.v_bias": (32,)}
        shapes |= {f"{block}attn.proj.weight": (32, 32), f"{block}attn.proj.bias": (32,)}
        shapes |= {f"{block}attn.relative_position_bias_table": (52, 4)} if kind == "block" else {}
        shapes |= {f"{block}mlp.fc1.weight": (64, 32), f"{block}mlp.fc1.bias": (64,)}
        shapes |= {f"{block}mlp.fc2.weight": (32, 64), f"{block}mlp.fc2.bias": (32,)}
    shapes |= {"norm.weight": (32,), "norm.bias": (32,), "lm_head.weight": (CODES, 32), "lm_head.bias": (CODES,)}
    return shapes


@pytest.mark.parametrize(("kind", "positions", "scale"), [("shared", False, True), ("block", False, True), ("none", True, False)])
def test_the_authors_layout(kind: str, positions: bool, scale: bool, tmp_path: Path) -> None:
    model = beit(kind, positions, layer_scale=0.1 if scale else None)
    objective = MIM(CODES)
    objective.bind(model.spec, VOCABULARY)
    state = to_published(weights.OFFICIAL, model, {"mim": objective.head})
    assert {name: tuple(t.shape) for name, t in state.items()} == released(kind, positions, scale)
    torch.save({"model": {**state, "rel_pos_bias.relative_position_index": torch.zeros(17, 17, dtype=torch.int64)}}, tmp_path / "beit.pth")
    fresh, own = beit(kind, positions, layer_scale=0.1 if scale else None), MIM(CODES)
    own.bind(fresh.spec, VOCABULARY)
    tiny.shake(fresh, 7)
    start = FromPublished(str(tmp_path / "beit.pth"), "beit")
    start(fresh, Around(objectives={"mim": own}))
    assert "BEiT starts as" in start.said and "heads filled: mim" in start.said
    for one, other in ((model, fresh), (objective.head, own.head)):
        assert all(torch.equal(t, other.state_dict()[name]) for name, t in one.state_dict().items())


def test_a_model_without_a_mask_token_starts_from_one_with_it() -> None:
    model = beit()
    state = to_published(weights.OFFICIAL, model)
    model.image.mask_token = None
    found = from_published(weights.OFFICIAL, model, state)
    assert found.unused == ("mask_token",) and found.heads == {}


def test_what_is_not_there_is_refused() -> None:
    keyed = beit("none", True, key_bias=True)
    with pytest.raises(WeightsError, match="no bias of keys: set key_bias: false"):
        to_published(weights.OFFICIAL, keyed)
    with pytest.raises(ValueError, match="no bias of keys"):
        weights.transformers_config(keyed, CODES)
    deep = MIM(transform=True)
    deep.bind(keyed.spec, VOCABULARY)
    with pytest.raises(KeyMapError, match=r"no place in the layout 'beit' for: mim\.dense\.weight"):
        to_published(weights.OFFICIAL, beit(), {"mim": deep.head})
    with pytest.raises(KeyMapError, match="nothing is called"):
        from_published(weights.OFFICIAL, beit(), {"head.weight": torch.zeros(2)})
    for options in ({"num_channels": 1}, {"hidden_dropout_prob": 0.1}, {**FORMS["shared"], **FORMS["block"]}):
        with pytest.raises(ValueError, match="can be imported"):
            weights.build(options)
    bare = beit()
    bare.image.mask_token = None
    with pytest.raises(ValueError, match="has a mask token, and the model has none"):
        weights.transformers_config(bare, CODES)
    assert weights.codes_head({"a": SimpleNamespace(head=None)}) is None
