"""LXMERT and VisualBERT equal transformers' models, all heads included, with weights that travel both ways through files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers import single_stream, tiny, two_streams
from helpers.published import SYSTEMS, made
from safetensors.torch import save_file
from torch import Tensor, nn

from mmpretrain.nn.ragged import Layout
from mmpretrain.types import Batch
from mmpretrain.weights import lxmert, visualbert
from mmpretrain.weights.layout import to_published
from mmpretrain.weights.published import import_weights

CPU = torch.device("cpu")
MODULES = {
    "lxmert-transformers": (lxmert, transformers.LxmertConfig, transformers.LxmertForPreTraining),
    "visualbert-transformers": (visualbert, transformers.VisualBertConfig, transformers.VisualBertForPreTraining),
}


def saved(folder: Path, name: str, model: nn.Module, heads: dict[str, nn.Module]) -> Any:
    """The folder, opened again by transformers with every tensor used."""
    module, config, kind = MODULES[name]
    config(**module.transformers_config(model, heads)).save_pretrained(folder)
    save_file(to_published(SYSTEMS[name].layout, model, heads), folder / "model.safetensors", metadata={"format": "pt"})
    reference, info = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return reference.eval()


def padded(x_NF: Tensor, layout: Layout) -> Tensor:
    return layout.pad(x_NF, 5.0)  # what pads is no zero


def shares(batch: Batch) -> Tensor:
    sides = torch.tensor([(w, h, w, h) for h, w in batch.regions.sizes])
    return batch.regions.boxes_N4 / sides[Layout(batch.regions.lengths).sample_N(CPU)]


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=1e-5 * max(1.0, float(expected.abs().max())), rtol=0)


def check_lxmert(reference: Any, model: nn.Module, heads: dict[str, nn.Module]) -> None:
    batch = two_streams.batch()
    text, regions = Layout(batch.text.lengths), Layout(batch.regions.lengths)
    out = model(batch)
    inputs = {
        "input_ids": batch.text.ids_BT, "attention_mask": text.mask_BL(CPU).float(), "token_type_ids": batch.text.segments_BT,
        "visual_feats": padded(batch.regions.features_NF, regions), "visual_pos": padded(shares(batch), regions),
        "visual_attention_mask": regions.mask_BL(CPU).float(),
    }  # fmt: skip
    theirs, trunk = reference(**inputs), reference.lxmert(**inputs)
    close(heads["mlm"](out.text.x_ND), text.pack(theirs.prediction_logits))
    close(heads["itm"](out.pooled_BD), theirs.cross_relationship_score)
    vqa = heads["vqa"]
    close(vqa.decoder(vqa.norm(nn.functional.gelu(vqa.dense(out.pooled_BD)))), theirs.question_answering_score)
    seen = reference.obj_predict_head(trunk.vision_output)
    x = heads["objects"].transform(out.image.x_ND)
    for part in ("obj", "attr", "feat"):
        close(heads["objects"](x, part), regions.pack(seen[part]))


def check_visualbert(reference: Any, model: nn.Module, heads: dict[str, nn.Module]) -> None:
    batch = single_stream.batch()
    text, regions = Layout(batch.text.lengths), Layout(batch.regions.lengths)
    out = model(batch)
    theirs = reference(
        input_ids=batch.text.ids_BT, attention_mask=text.mask_BL(CPU).long(), token_type_ids=batch.text.segments_BT,
        visual_embeds=padded(batch.regions.features_NF, regions), visual_attention_mask=regions.mask_BL(CPU).float(),
        visual_token_type_ids=torch.zeros(regions.mask_BL(CPU).shape, dtype=torch.int64),
    )  # fmt: skip
    close(heads["mlm"](out.text.x_ND), text.pack(theirs.prediction_logits[:, : text.max_len]))
    close(heads["sip"](out.pooled_BD), theirs.seq_relationship_logits)


CHECKS = {"lxmert-transformers": check_lxmert, "visualbert-transformers": check_visualbert}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", MODULES)
@torch.no_grad()
def test_ours_in_transformers(name: str, tied: bool, tmp_path: Path) -> None:
    model, heads = made(name, tied=tied)
    CHECKS[name](saved(tmp_path, name, model, heads), model, heads)


@pytest.mark.parametrize("official", [True, False])
@pytest.mark.parametrize("name", MODULES)
@torch.no_grad()
def test_theirs_here(name: str, official: bool, tmp_path: Path) -> None:
    """From the folder that transformers saves, and from its tensors under the authors' names."""
    module, config, kind = MODULES[name]
    model, heads = made(name)
    reference = tiny.shake(kind(config(**module.transformers_config(model, heads))), 11)
    reference.tie_weights()
    reference.save_pretrained(tmp_path)
    fresh, own = made(name, seed=5)
    objectives = {key: type({"itm": "ITM", "sip": "SIP", "vqa": "VQA"}.get(key, key), (), {"head": one})() for key, one in own.items()}
    if official:
        theirs = SYSTEMS[name.removesuffix("-transformers")].layout
        import_weights(fresh, tmp_path, name, objectives)
        torch.save({f"module.{key}": t for key, t in to_published(theirs, fresh, own).items()}, tmp_path / "official.pth")
        fresh, own = made(name, seed=6)
        objectives = {key: type(type(objectives[key]).__name__, (), {"head": one})() for key, one in own.items()}
        import_weights(fresh, tmp_path / "official.pth", None, objectives)
    else:
        import_weights(fresh, tmp_path, name, objectives)
    CHECKS[name](reference, fresh, own)


def test_what_transformers_has_no_place_for() -> None:
    model, heads = made("lxmert")
    assert lxmert.transformers_config(model, {**heads}, 0.15)["visual_loss_normalizer"] == 1 / 0.15
    model.cross.blocks[0].norm.eps = 1e-6
    with pytest.raises(ValueError, match="eps 1e-12 everywhere"):
        lxmert.transformers_config(model, heads)
    model = made("lxmert")[0]
    model.regions.combine = "sum"
    with pytest.raises(ValueError, match="combine: mean"):
        lxmert.transformers_config(model, heads)
    model, heads = made("visualbert")
    model.norm.eps = 1e-5
    with pytest.raises(ValueError, match="one eps of norms"):
        visualbert.transformers_config(model, heads)
    model.regions.types = None
    with pytest.raises(ValueError, match="positions and types of regions"):
        visualbert.transformers_config(model, heads)
