"""LXMERT's object prediction: equal to transformers' LxmertForPreTraining on its own states and heads; scopes, parts, what is missing."""

import numpy as np
import pytest
import torch
from helpers.region_batches import ATTRIBUTES, CLASSES, FEATURES, VOCABULARY, region_rows, region_sample_batch, region_spec, region_states
from torch import nn
from torch.nn import functional as F

from mmpretrain.nn.hidden import Fused
from mmpretrain.nn.ragged import Layout, Ragged
from mmpretrain.objectives.objects import Objects
from mmpretrain.objectives.region_masking import RegionMasker
from mmpretrain.types import Batch

LENGTHS = (4, 1, 7, 3, 6)
MASKER = RegionMasker(prob=0.4, zero=0.8, random=0.1)


def shaken(module: nn.Module) -> None:
    torch.manual_seed(1)
    for name, parameter in module.named_parameters():
        nn.init.normal_(parameter, mean=1.0 if name.lower().endswith("norm.weight") else 0.0, std=0.2)


def bound(**options) -> Objects:
    objective = Objects(**{"classes": CLASSES, "attributes": ATTRIBUTES, "masker": MASKER, **options})
    objective.bind(region_spec(), None)
    shaken(objective)
    return objective


def test_equals_transformers():
    """Loss and gradients of the three parts, with the normaliser of the original, 1 / 0.15."""
    from transformers import LxmertConfig, LxmertForPreTraining

    config = LxmertConfig(
        vocab_size=30, hidden_size=16, num_attention_heads=2, intermediate_size=32, l_layers=1, r_layers=1, x_layers=1,
        visual_feat_dim=FEATURES, num_object_labels=CLASSES, num_attr_labels=ATTRIBUTES, task_qa=False, visual_loss_normalizer=1 / 0.15,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    twin = LxmertForPreTraining(config).eval()
    shaken(twin)
    batch = region_sample_batch((36,) * 4)
    regions = batch.regions._replace(  # LXMERT's store has a confidence for classes, one for attributes, and a label for every region
        classes_N=batch.regions.class_probs_NC.argmax(1), attributes_N=batch.regions.attribute_probs_NA.argmax(1)
    )
    objective = Objects(classes=CLASSES, attributes=ATTRIBUTES)
    out = objective.corrupt(batch._replace(regions=regions), {})
    confidences = (regions.scores_N, regions.attribute_probs_NA.amax(1))
    grid = lambda x: x.view(4, 36, *x.shape[1:])
    labels = {
        "obj": (grid(regions.classes_N), grid(confidences[0])),
        "attr": (grid(regions.attributes_N), grid(confidences[1])),
        "feat": (grid(regions.features_NF), grid(out.regions.chosen_N.float())),
    }
    pictures = {"visual_feats": grid(out.regions.features_NF), "visual_pos": grid(regions.boxes_N4 / 640)}
    inputs = {"input_ids": batch.text.ids_BT % 30, **pictures}
    found = twin(**inputs, obj_labels=labels)
    objective.bind(region_spec(16), None)
    theirs = {
        "transform.dense": twin.obj_predict_head.transform.dense,
        "transform.norm": twin.obj_predict_head.transform.LayerNorm,
        **{f"decoders.{name}": twin.obj_predict_head.decoder_dict[name] for name in ("obj", "attr", "feat")},
    }
    state = {f"{name}.{leaf}": p for name, module in theirs.items() for leaf, p in module.named_parameters()}
    objective.head.load_state_dict(state, strict=True)
    states_ND = twin.lxmert(**inputs).vision_output.flatten(0, 1)
    hidden = Fused(None, Ragged(states_ND, Layout((36,) * 4)), None)
    score = objective(hidden, out)
    assert score.count.item() == objective.count(out).item() == 144
    loss = score.sum / score.count
    torch.testing.assert_close(loss, found.loss, rtol=1e-5, atol=0)
    names = sorted(state)
    ours = torch.autograd.grad(loss, [objective.head.get_parameter(name) for name in names], retain_graph=True)
    wanted = torch.autograd.grad(found.loss, [state[name] for name in names])
    for name, a, b in zip(names, ours, wanted, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max(), name
    parts = sum(score.stats[name][0] / score.stats[name][1] for name in ("obj", "attr", "feat"))
    assert parts.item() == pytest.approx(found.loss.item(), rel=1e-5)


def by_hand(objective: Objects, hidden: Fused, batch: Batch, out: Batch, name: str) -> float:
    """The sum of one part over all regions, one region at a time."""
    x = objective.head.transform(hidden.image.x_ND[region_rows(batch, 1)])
    regions, total = batch.regions, 0.0
    for i in range(sum(LENGTHS)):
        chosen = float(out.regions.chosen_N[i])
        logits = objective.head(x[i : i + 1], name)
        if name == "feat":
            total += chosen * F.smooth_l1_loss(logits[0], regions.features_NF[i]).item()
            continue
        label = int((regions.classes_N if name == "obj" else regions.attributes_N)[i])
        if label < 0:
            continue
        sure = regions.scores_N[i] if name == "obj" else regions.attribute_probs_NA[i, label]
        factor = float(sure) if objective.scope == "all" else chosen
        total += factor * F.cross_entropy(logits, torch.tensor([label])).item()
    return total / objective.masker.prob


@pytest.mark.parametrize("scope", ["all", "masked"])
@pytest.mark.parametrize("parts", [None, {"obj": 1.0}, {"feat": 2.0, "attr": 0.5}])
def test_scopes_and_parts_by_hand(scope, parts):
    objective, batch = bound(scope=scope, parts=parts), region_sample_batch(LENGTHS)
    out, hidden = objective.corrupt(batch, {}), region_states(batch)
    score, total = objective(hidden, out), 0.0
    for name, factor in objective.parts.items():
        one = by_hand(objective, hidden, batch, out, name)
        assert score.stats[name][0].item() == pytest.approx(one, rel=1e-5) and score.stats[name][1].item() == sum(LENGTHS)
        total += factor * one
    assert score.sum.item() == pytest.approx(total, rel=1e-5) and score.count.item() == sum(LENGTHS) == objective.count(out).item()
    assert set(objective.head.decoders) == set(parts or ("obj", "attr", "feat"))
    if "obj" in objective.parts:
        rows = [i for i in range(sum(LENGTHS)) if out.regions.chosen_N[i] and batch.regions.classes_N[i] >= 0]
        x = objective.head.transform(hidden.image.x_ND[[region_rows(batch, 1)[i] for i in rows]])
        right = (objective.head(x, "obj").argmax(-1) == batch.regions.classes_N[rows]).sum()
        assert [s.item() for s in score.stats["obj_accuracy"]] == [right, len(rows)]


@pytest.mark.parametrize("loss", ["smooth_l1", "mse"])
def test_regression_against_numpy(loss):
    """1 / 0.4 times the sum over chosen regions of the mean over the values of 0.5 d^2 where |d| < 1 and |d| - 0.5 elsewhere, or of d^2."""
    objective, batch = bound(parts={"feat": 1.0}, feat_loss=loss), region_sample_batch(LENGTHS)
    out, hidden = objective.corrupt(batch, {}), region_states(batch)
    states = hidden.image.x_ND[region_rows(batch, 1)]
    decoder = objective.head.decoders["feat"]
    x, weight, bias = (t.detach().double().numpy() for t in (objective.head.transform(states), decoder.weight, decoder.bias))
    distance = (x @ weight.T + bias - batch.regions.features_NF.double().numpy())[out.regions.chosen_N.numpy()]
    assert 0.05 < (np.abs(distance) < 1).mean() < 0.95  # both sides of the bend
    values = distance**2 if loss == "mse" else np.where(np.abs(distance) < 1, distance**2 / 2, np.abs(distance) - 0.5)
    assert objective(hidden, out).sum.item() == pytest.approx(values.mean(1).sum() / 0.4, rel=1e-5)
    if loss == "smooth_l1":
        default = bound(parts={"feat": 1.0})
        assert torch.equal(default(hidden, default.corrupt(batch, {})).sum, objective(hidden, out).sum)


def test_only_true_pairs():
    objective, batch = bound(only_if_matched=True), region_sample_batch(LENGTHS)
    matched = torch.tensor([True, False, False, True, False])
    out, hidden = objective.corrupt(batch._replace(matched_B=matched), {}), region_states(batch)
    hidden.image.x_ND.requires_grad_()
    score = objective(hidden, out)
    assert score.count.item() == objective.count(out).item() == 7
    score.sum.backward()
    seen = hidden.image.x_ND.grad.any(1)
    sample_N = hidden.image.layout.sample_N(seen.device)
    assert seen.nonzero().squeeze(1).tolist() == [row for row in region_rows(batch, 1) if matched[sample_N[row]]]
    out = objective.corrupt(batch._replace(matched_B=torch.zeros(5, dtype=torch.bool)), {})
    hidden.image.x_ND.grad = None
    score = objective(hidden, out)
    score.sum.backward()
    assert score.sum.item() == 0 == score.count.item() and not hidden.image.x_ND.grad.any()


def test_nothing_chosen_leaves_the_weighted_parts():
    objective, batch = bound(masker=RegionMasker(prob=1e-9)), region_sample_batch(LENGTHS)
    score = objective(region_states(batch), objective.corrupt(batch, {}))
    assert score.stats["feat"][0].item() == 0 and score.stats["obj"][0].item() > 0 and score.stats["obj_accuracy"][1].item() == 0
    quiet = bound(scope="masked", masker=RegionMasker(prob=1e-9))
    hidden = region_states(batch)
    hidden.image.x_ND.requires_grad_()
    score = quiet(hidden, quiet.corrupt(batch, {}))
    score.sum.backward()
    assert score.sum.item() == 0 and not hidden.image.x_ND.grad.any()


def test_where_confidence_comes_from():
    batch = region_sample_batch(LENGTHS)
    objective, regions = bound(), batch.regions
    torch.testing.assert_close(objective._confidence(regions, "obj"), regions.scores_N)
    labelled = regions.attributes_N >= 0
    own = regions.attribute_probs_NA.gather(1, regions.attributes_N.clamp(min=0)[:, None])[:, 0]
    torch.testing.assert_close(objective._confidence(regions, "attr")[labelled], own[labelled])
    torch.testing.assert_close(objective._confidence(regions._replace(attribute_probs_NA=None), "attr"), regions.scores_N)
    unsure = regions._replace(scores_N=None)
    found = objective._confidence(unsure, "obj")
    assert torch.equal(found[regions.classes_N >= 0], regions.class_probs_NC.amax(1)[regions.classes_N >= 0])


def test_size_of_the_head():
    with torch.device("meta"):
        objective = Objects(classes=1600, attributes=400)
        objective.bind(region_spec(768, features=None)._replace(feature_width=2048), None)
    transform = 768 * 768 + 768 + 2 * 768
    assert sum(p.numel() for p in objective.parameters()) == transform + sum(768 * n + n for n in (1600, 400, 2048))


def test_clear_errors():
    batch = region_sample_batch(LENGTHS)
    with pytest.raises(ValueError, match="must name some of obj, attr, feat"):
        Objects(parts={"colour": 1.0})
    with pytest.raises(ValueError, match="must name some"):
        Objects(parts={"obj": 0.0})
    with pytest.raises(ValueError, match="unknown scope"):
        Objects(scope="none")
    with pytest.raises(ValueError, match="unknown feat_loss='l1'; choose smooth_l1 or mse"):
        Objects(feat_loss="l1")
    bare = batch._replace(regions=batch.regions._replace(scores_N=None, class_probs_NC=None))
    with pytest.raises(ValueError, match="set scope: masked"):
        bound().corrupt(bare, {})
    bound(scope="masked").corrupt(bare, {})
    for field, what in (("classes_N", "no classes"), ("attributes_N", "no attributes")):
        with pytest.raises(ValueError, match=what):
            bound().corrupt(batch._replace(regions=batch.regions._replace(**{field: None})), {})
    with pytest.raises(ValueError, match="the head has 4; set `attributes`"):
        bound(attributes=4).corrupt(batch, {})


def test_numbers_that_the_recipe_leaves_to_the_data():
    known = VOCABULARY._replace(region_classes=9, region_attributes=4)
    objective = Objects()
    objective.bind(region_spec(), known)
    assert (objective.classes, objective.attributes) == (9, 4)
    assert {name: decoder.out_features for name, decoder in objective.head.decoders.items()} == {"obj": 9, "attr": 4, "feat": FEATURES}
    for options, data, message in (
        ({}, VOCABULARY, "objects: the data do not say how many classes there are"),
        ({"classes": 9}, VOCABULARY, "the data do not say how many attributes there are"),
        ({}, known._replace(region_attributes=0), "the regions of the data have no attributes .*leave `attr` out of `parts`"),
        ({"classes": 8}, known, "classes=8, but the regions of the data have 9"),
        ({"attributes": 3}, known, "attributes=3, but the regions of the data have 4"),
    ):
        with pytest.raises(ValueError, match=message):
            Objects(**options).bind(region_spec(), data)
    Objects(classes=8, attributes=400).bind(region_spec(), known._replace(region_background=8))
    Objects({"feat": 1.0}).bind(region_spec(), VOCABULARY)
    Objects({"obj": 1.0, "feat": 1.0}).bind(region_spec(), known._replace(region_attributes=0))
