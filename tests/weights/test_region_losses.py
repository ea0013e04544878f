"""The losses of VisualBERT and LXMERT equal transformers' of the same weights, where texts and regions are both padded there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import objectives as made_by_hand
from helpers import single_stream, two_streams
from helpers.published import ANSWERS, ATTRIBUTES, CLASSES, made
from helpers.region_batches import region_batch
from torch import Tensor, nn
from weights.test_region_twins import CPU, padded, saved, shares

from mmpretrain.nn.ragged import Layout
from mmpretrain.objectives.itm import ITM
from mmpretrain.objectives.mlm import MLM
from mmpretrain.objectives.objects import Objects
from mmpretrain.objectives.region_masking import RegionMasker
from mmpretrain.objectives.sip import SIP
from mmpretrain.objectives.swaps import Swaps
from mmpretrain.objectives.text_contrast import LEFT_OUT, Contrasted
from mmpretrain.objectives.vqa import VQA, Asked
from mmpretrain.types import Batch

IGNORED = -100


def bound(model: Any, heads: dict[str, nn.Module], objectives: dict[str, Any], words: int) -> dict[str, Any]:
    """The objectives with the weights of the heads."""
    for kind, objective in objectives.items():
        objective.bind(model.spec, None if kind == "vqa" else made_by_hand.vocabulary(words))
        objective.head.load_state_dict(heads[kind].state_dict(), strict=True)
        objective.eval()
    return objectives


def corrupted(objectives: dict[str, Any], batch: Batch) -> Batch:
    for objective in objectives.values():
        batch = objective.corrupt(batch, {})
    return batch


def labels_of(mlm: MLM, batch: Batch) -> Tensor:
    """The words that were masked, (B, T), and ``IGNORED`` elsewhere."""
    target, layout = batch.targets[mlm.name], Layout(batch.text.lengths)
    labels_N = torch.full((layout.total,), IGNORED)
    labels_N[target.rows_R] = target.labels_R
    assert 4 <= len(target.rows_R) < layout.total
    return layout.pad(labels_N, IGNORED)


def same(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)


def same_gradients(ours: tuple[Tensor, list[Tensor]], theirs: tuple[Tensor, list[Tensor]]) -> None:
    for a, b in zip(torch.autograd.grad(*ours), torch.autograd.grad(*theirs), strict=True):
        assert 0 < b.abs().max() and (a - b).abs().max() <= 1e-5 * b.abs().max()


def test_visualbert(tmp_path: Path) -> None:
    """Masked words and the second caption; a picture that takes no part in the latter has no label there."""
    model, heads = made("visualbert-transformers")
    reference = saved(tmp_path, "visualbert-transformers", model, heads)
    sip, mlm = bound(model, heads, {"sip": SIP(), "mlm": MLM(prob=0.4, only_if_matched=False)}, single_stream.WORDS).values()
    batch, classes = single_stream.batch(), torch.tensor([1, 0, LEFT_OUT, 0])
    asked = Contrasted((0, 1, 3), classes[[0, 1, 3]], Swaps(classes))
    batch = corrupted({"sip": sip, "mlm": mlm}, batch._replace(targets={sip.name: asked}))
    hidden, regions = model(batch), Layout(batch.regions.lengths)
    scores = {one: one(hidden, batch) for one in (mlm, sip)}
    ours = sum(score.sum / score.count for score in scores.values())
    seen = regions.mask_BL(CPU)
    theirs = reference(
        input_ids=batch.text.ids_BT, attention_mask=Layout(batch.text.lengths).mask_BL(CPU).long(), token_type_ids=batch.text.segments_BT,
        visual_embeds=padded(batch.regions.features_NF, regions), visual_attention_mask=seen.float(),
        visual_token_type_ids=torch.zeros(seen.shape, dtype=torch.int64),
        labels=torch.cat([labels_of(mlm, batch), torch.full(seen.shape, IGNORED)], 1),
        sentence_image_labels=classes.where(classes != LEFT_OUT, IGNORED),
    ).loss  # fmt: skip
    same(ours, theirs)
    table = reference.visual_bert.embeddings
    same_gradients(
        (ours, [model.regions.projection.weight, model.text.words.weight]),
        (theirs, [table.visual_projection.weight, table.word_embeddings.weight]),
    )


def lxmert_batch() -> Batch:
    """Two true pairs and two false ones; three questions, one of which is beside another picture. Some regions lack class or attribute."""
    batch = two_streams.batch()
    regions = region_batch(two_streams.REGIONS, features=10, seed=1)._replace(sizes=batch.regions.sizes)
    asked = Asked((0, 1, 2), torch.tensor([[3], [1], [5]]), torch.ones(3, 1))
    return batch._replace(regions=regions, targets={"itm": Swaps(torch.tensor([0, 2, 0, 3])), "vqa": asked})


def objects_there(batch: Batch, parts: tuple[str, ...]) -> dict[str, tuple[Tensor, Tensor]]:
    """``obj_labels``: labels and weights, 0 where there is padding or no label, and for all but ``parts``."""
    regions, masked = batch.regions, batch.targets["regions.masked"]
    layout = Layout(regions.lengths)
    sure_N = regions.attribute_probs_NA.gather(1, regions.attributes_N.clamp(min=0)[:, None])[:, 0]
    found = {
        "obj": (regions.classes_N.clamp(min=0), regions.scores_N * (regions.classes_N >= 0)),
        "attr": (regions.attributes_N.clamp(min=0), sure_N * (regions.attributes_N >= 0)),
        "feat": (masked.features_NF, masked.chosen_N.float()),
    }
    return {name: (layout.pad(label), layout.pad(weight * (name in parts))) for name, (label, weight) in found.items()}


@pytest.mark.parametrize("prob", [0.15, 0.4])
def test_lxmert(prob: float, tmp_path: Path) -> None:
    """Each loss alone, then the sum.

    transformers averages the three losses of regions over all places of the padded batch, of which padding has no weight here; ours are
    averaged over the regions. Theirs are smaller by the share of the places that hold a region, 14 of 24, and by nothing else.
    """
    model, heads = made("lxmert-transformers")
    reference = saved(tmp_path, "lxmert-transformers", model, heads)
    reference.visual_loss_normalizer = 1 / prob
    mlm = MLM(prob=0.4, only_if_matched=False)
    objects = Objects(classes=CLASSES, attributes=ATTRIBUTES, masker=RegionMasker(prob=prob, zero=0.8, random=0.1))
    own = bound(model, heads, {"itm": ITM(), "mlm": mlm, "objects": objects, "vqa": VQA(answers=ANSWERS)}, 30)
    for name, objective in own.items():
        objective.name = name
    batch = corrupted(own, lxmert_batch())
    text, regions = Layout(batch.text.lengths), Layout(batch.regions.lengths)
    assert batch.targets["regions.masked"].chosen_N.any() and batch.targets["vqa"].rows_R.tolist() == [0, 2]
    share = regions.total / (regions.size * regions.max_len)
    assert share == 14 / 24
    hidden = model(batch)
    scores = {name: objective(hidden, batch) for name, objective in own.items()}
    means = {name: score.sum / score.count for name, score in scores.items()}
    inputs = {
        "input_ids": batch.text.ids_BT, "attention_mask": text.mask_BL(CPU).float(), "token_type_ids": batch.text.segments_BT,
        "visual_feats": padded(batch.regions.features_NF, regions), "visual_pos": padded(shares(batch), regions),
        "visual_attention_mask": regions.mask_BL(CPU).float(),
    }  # fmt: skip
    labels = {
        "itm": {"matched_label": torch.tensor([1, 0, 1, 0])},
        "mlm": {"labels": labels_of(mlm, batch)},
        "objects": {"obj_labels": objects_there(batch, ("obj", "attr", "feat"))},
        "vqa": {"ans": torch.tensor([3, IGNORED, 5, IGNORED])},
    }
    weights = {"objects": share}
    for name, given in labels.items():
        same(means[name] * weights.get(name, 1.0), reference(**inputs, **given).loss)
    for part in ("obj", "attr", "feat"):
        total, count = scores["objects"].stats[part]
        same(total / count * share, reference(**inputs, obj_labels=objects_there(batch, (part,))).loss.detach())
    ours = sum(mean * weights.get(name, 1.0) for name, mean in means.items())
    theirs = reference(**inputs, **{key: value for given in labels.values() for key, value in given.items()}).loss
    same(ours, theirs)
    trunk = reference.lxmert
    same_gradients(
        (ours, [model.regions.projection.weight, model.text.words.weight, own["objects"].head.decoders["feat"].weight]),
        (theirs, [
            trunk.encoder.visn_fc.visn_fc.weight, trunk.embeddings.word_embeddings.weight,
            reference.obj_predict_head.decoder_dict["feat"].weight,
        ]),
    )  # fmt: skip
