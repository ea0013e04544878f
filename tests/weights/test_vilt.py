"""ViLT equals transformers' ViLT, both ways, with padding in both modalities; round trips are exact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import tiny
from safetensors.torch import save_file
from transformers import ViltConfig, ViltForImageAndTextRetrieval, ViltForMaskedLM, ViltModel

from mmpretrain.nn.heads import VocabularyHead
from mmpretrain.types import Batch
from mmpretrain.weights import vilt as weights
from mmpretrain.weights.keymap import KeyMapError


def theirs(batch: Batch) -> dict[str, torch.Tensor]:
    """Their inputs: zero padding and explicit masks."""
    text, image = batch.text, batch.image
    pixel_mask = torch.zeros(batch.size, *image.pixels_BCHW.shape[2:], dtype=torch.int64)
    for i, (h, w) in enumerate(image.sizes):
        pixel_mask[i, :h, :w] = 1
    mask = (torch.arange(text.ids_BT.shape[1])[None] < torch.tensor(text.lengths)[:, None]).long()
    values = image.pixels_BCHW * pixel_mask[:, None]
    return {"input_ids": text.ids_BT, "attention_mask": mask, "pixel_values": values, "pixel_mask": pixel_mask}


def rows(ragged, i: int) -> torch.Tensor:
    starts = ragged.layout.starts
    return ragged.x_ND[starts[i] : starts[i + 1]]


def difference(ours, model: ViltModel, batch: Batch) -> float:
    """Largest difference over valid tokens; image tokens are matched by patch index, since transformers shuffles them."""
    seen = {}
    embed = model.embeddings.visual_embed

    def spy(*args, **kwargs):
        out = embed(*args, **kwargs)
        seen["index"], seen["mask"] = out[2][0], out[1]
        return out

    model.embeddings.visual_embed = spy
    out = model(**theirs(batch))
    del model.embeddings.visual_embed
    worst = [(out.pooler_output - ours.pooled_BD).abs().max()]
    length = batch.text.ids_BT.shape[1]
    for i, (h, w) in enumerate(batch.image.sizes):
        n, columns = batch.text.lengths[i], w // 8
        worst.append((out.last_hidden_state[i, :n] - rows(ours.text, i)).abs().max())
        image = out.last_hidden_state[i, length:]
        valid = seen["mask"][i, 1:].bool()
        place = seen["index"][i][valid]
        order = 1 + place[:, 0] * columns + place[:, 1]
        assert sorted(order.tolist()) == list(range(1, 1 + (h // 8) * columns))
        mine = rows(ours.image, i)
        worst += [(image[0] - mine[0]).abs().max(), (image[1:][valid] - mine[order]).abs().max()]
    return float(torch.stack(worst).max())


@pytest.mark.parametrize(("attention", "tolerance"), [("eager", 1e-5), ("sdpa", 1e-4)])
def test_export_equals_through_from_pretrained(tmp_path: Path, attention: str, tolerance: float) -> None:
    model, batch = tiny.vilt(attention), tiny.batch()
    save(tmp_path, weights.to_transformers(model.state_dict()), weights.transformers_config(model, mlm=False))
    reference, info = ViltModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    with torch.no_grad():
        assert difference(model(batch), reference.eval(), batch) < tolerance


def test_import_equals_and_round_trip_is_exact() -> None:
    config = ViltConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=72, image_size=32, patch_size=8,
        max_position_embeddings=12, modality_type_vocab_size=3,
    )  # fmt: skip
    reference = tiny.shake(ViltModel(config), 5)
    imported = weights.from_transformers(reference.state_dict())
    assert imported.mlm is None
    assert imported.rest == {}
    model = weights.build(config.to_dict(), attention="eager").eval()
    model.load_state_dict(imported.model)
    with torch.no_grad():
        assert difference(model(tiny.batch()), reference, tiny.batch()) < 1e-5
    again = weights.to_transformers(model.state_dict())
    assert again.keys() == reference.state_dict().keys()
    assert all(torch.equal(again[k], v) for k, v in reference.state_dict().items())
    written = weights.transformers_config(model, mlm=False)
    assert {k: v for k, v in written.items() if getattr(config, k) != v} == {"architectures": ["ViltModel"]}


@pytest.mark.parametrize("tied", [True, False])
def test_mlm_head_both_ways(tmp_path: Path, tied: bool) -> None:
    """Both tensors are written; from_pretrained keeps an untied decoder and the word table apart."""
    model, batch = tiny.vilt(), tiny.batch()
    head = tiny.shake(VocabularyHead(32, 60, model.text.words if tied else None), 9)
    save(tmp_path, weights.to_transformers(model.state_dict(), head.state_dict()), weights.transformers_config(model))
    reference, info = ViltForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    with torch.no_grad():
        logits = reference.eval()(**theirs(batch)).logits
        ours = head(model(batch).text.x_ND)
    expected = torch.cat([logits[i, :n] for i, n in enumerate(batch.text.lengths)])
    assert (ours - expected).abs().max() < 1e-5 * expected.abs().max()
    back = weights.from_transformers(reference.state_dict())
    assert back.tied == tied
    same(back.model, model.state_dict())
    same(back.mlm, head.state_dict())
    if not tied:
        assert not torch.equal(reference.vilt.embeddings.text_embeddings.word_embeddings.weight, reference.mlm_score.decoder.weight)


def test_old_bias_name_and_left_out_decoder_are_read() -> None:
    model = tiny.vilt()
    head = tiny.shake(VocabularyHead(32, 60, model.text.words), 9)
    state = weights.to_transformers(model.state_dict(), head.state_dict())
    state["mlm_score.bias"] = state.pop("mlm_score.decoder.bias")
    del state["mlm_score.decoder.weight"]
    state["vilt.embeddings.text_embeddings.position_ids"] = torch.arange(12)[None]
    back = weights.from_transformers(state)
    assert back.tied
    assert back.rest == {}
    same(back.mlm, head.state_dict())


def test_other_heads_are_handed_back() -> None:
    config = ViltConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8
    )
    state = ViltForImageAndTextRetrieval(config).state_dict()
    assert set(weights.from_transformers(state).rest) == {"rank_output.weight", "rank_output.bias"}


def test_author_layout_round_trip() -> None:
    model = tiny.vilt()
    head = tiny.shake(VocabularyHead(32, 60, None), 9)
    extra = {"itm_score.fc.weight": torch.randn(2, 32), "itm_score.fc.bias": torch.randn(2)}
    state = weights.to_author(model.state_dict(), head.state_dict(), extra)
    assert state["transformer.blocks.1.attn.qkv.weight"].shape == (96, 32)
    assert state["transformer.pos_embed"].shape == (1, 17, 32)
    assert {"mlm_score.transform.LayerNorm.weight", "mlm_score.decoder.weight", "mlm_score.bias"} <= state.keys()
    back = weights.from_author(state | {"text_embeddings.position_ids": torch.arange(12)[None]})
    same(back.model, model.state_dict())
    same(back.mlm, head.state_dict())
    same(back.rest, extra)


def test_foreign_or_incomplete_states_are_refused() -> None:
    state = weights.to_transformers(tiny.vilt().state_dict())
    with pytest.raises(KeyMapError, match=r"value\.weight is not"):
        weights.from_transformers({k: v for k, v in state.items() if "layer.1.attention.attention.value" not in k})
    bad = {k: t[:, :8] if k == "encoder.layer.1.attention.attention.key.weight" else t for k, t in state.items()}
    with pytest.raises(KeyMapError, match=r"shapes do not fit: .*attention\.key\.weight \(32, 8\)"):
        weights.from_transformers(bad)
    with pytest.raises(KeyMapError, match="no place"):
        weights.to_transformers(tiny.vilt().state_dict() | {"router.weight": torch.zeros(1)})


def test_paper_epsilon_costs_little(tmp_path: Path) -> None:
    """Blocks with the paper's 1e-6 are exported to a format with one epsilon."""
    model, batch = tiny.vilt(eps=1e-6), tiny.batch()
    save(tmp_path, weights.to_transformers(model.state_dict()), weights.transformers_config(model, mlm=False))
    with torch.no_grad():
        assert difference(model(batch), ViltModel.from_pretrained(tmp_path).eval(), batch) < 1e-4


def same(a: dict, b: dict) -> None:
    assert a.keys() == dict(b).keys()
    assert all(torch.equal(a[k], v) for k, v in dict(b).items())


def save(folder: Path, state: dict[str, torch.Tensor], config: dict) -> None:
    ViltConfig(**config).save_pretrained(folder)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
