"""Masked region classification: each target against NumPy, what counts, gradients, the head's size."""

import math
import pickle

import numpy as np
import pytest
import torch
from helpers.region_batches import CLASSES, VOCABULARY, RegionModel, region_rows, region_sample_batch, region_spec, region_states, rows_of
from torch import nn

from mmpretrain.objectives.base import scored
from mmpretrain.objectives.itm import ITM, Swaps
from mmpretrain.objectives.mrc import MRC
from mmpretrain.objectives.region_masking import RegionMasker
from mmpretrain.train.pretraining import Pretraining

HALF = RegionMasker(prob=0.5)
LENGTHS = (4, 1, 7, 3, 6)


def bound(seed: int = 0, **options) -> MRC:
    objective = MRC(**{"classes": CLASSES, "background": 0, "masker": HALF, **options})
    objective.bind(region_spec(), None)
    torch.manual_seed(seed)
    for name, parameter in objective.named_parameters():  # gains around 1, everything else large enough to matter
        nn.init.normal_(parameter, mean=1.0 if name.endswith("norm.weight") else 0.0, std=0.3)
    return objective


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


def logs(objective: MRC, x: np.ndarray) -> np.ndarray:
    """Log-probabilities of the head, in float64."""
    p = {name: value.detach().numpy().astype(np.float64) for name, value in objective.head.named_parameters()}
    if "transform.dense.weight" in p:
        x = gelu(x @ p["transform.dense.weight"].T + p["transform.dense.bias"])
    if "transform.norm.weight" in p:
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-12)
        x = x * p["transform.norm.weight"] + p["transform.norm.bias"]
    x = x @ p["decoder.weight"].T + p["decoder.bias"]
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def states_of(hidden, batch, rows: list[int], prefix: int) -> np.ndarray:
    return hidden.image.x_ND.detach().numpy().astype(np.float64)[[region_rows(batch, prefix)[row] for row in rows]]


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("head", [{}, {"norm_in_head": False}, {"transform": False}])
@pytest.mark.parametrize("target", ["class", "argmax", "soft", "kl"])
def test_loss_against_numpy(target, head, prefix):
    objective, batch = bound(target=target, **head), region_sample_batch(LENGTHS)
    probs = batch.regions.class_probs_NC
    probs[:, 0] += 0.5  # the background is often the most probable class
    probs = probs / probs.sum(1, keepdim=True)
    probs[2::4] *= 0.8  # rows that are no distribution: 0.8 is out, 0.95 in
    probs[3::4] *= 0.95
    batch = batch._replace(regions=batch.regions._replace(class_probs_NC=probs))
    out, hidden = objective.corrupt(batch, {}), region_states(batch, prefix)
    score = objective(hidden, out)
    p = probs.numpy().astype(np.float64)
    rows = [i for i in range(sum(LENGTHS)) if out.regions.chosen_N[i]]
    if target == "class":
        rows = [i for i in rows if batch.regions.classes_N[i] >= 0]
    elif target == "soft":
        rows = [i for i in rows if abs(p[i].sum() - 1) <= 0.1]
    q = logs(objective, states_of(hidden, batch, rows, prefix))
    if target in ("class", "argmax"):
        labels = [int(batch.regions.classes_N[i]) if target == "class" else 1 + int(p[i, 1:].argmax()) for i in rows]
        wanted = -sum(q[r, label] for r, label in enumerate(labels))
    else:
        labels = [int(p[i].argmax()) for i in rows]
        entropy = -(p[rows] * np.log(p[rows])).sum()
        wanted = -(p[rows] * q).sum() - (entropy if target == "kl" else 0.0)
        assert score.stats["target_entropy"][0].item() == pytest.approx(entropy, rel=1e-5)
    assert score.sum.item() == pytest.approx(wanted, rel=1e-5)
    assert score.count.item() == objective.count(out).item() == len(rows) > 4
    assert score.stats["accuracy"][0].item() == (q.argmax(1) == np.asarray(labels)).sum()
    assert [x.item() for x in score.stats["masked_share"]] == [out.regions.chosen_N.sum(), sum(LENGTHS)]


def test_reduction_of_uniter_is_smaller_by_the_number_of_classes():
    batch = region_sample_batch(LENGTHS)
    probs = torch.rand(sum(LENGTHS), 1601).softmax(-1)
    batch = batch._replace(regions=batch.regions._replace(class_probs_NC=probs))
    sums, grads = [], []
    for reduction in ("regions", "elements"):
        objective = bound(classes=1601, reduction=reduction)
        out, hidden = objective.corrupt(batch, {}), region_states(batch)
        score = objective(hidden, out)
        score.sum.backward()
        sums.append(score.sum.item() / score.count.item())
        grads.append(objective.head.decoder.weight.grad)
    assert sums[0] / sums[1] == pytest.approx(1601, rel=1e-5)
    torch.testing.assert_close(grads[0], 1601 * grads[1], rtol=1e-4, atol=1e-7)
    rows = out.targets["mrc"].rows_R
    logits = objective.head(hidden.image.x_ND[[region_rows(batch, 1)[i] for i in rows]])
    mean = nn.functional.kl_div(logits.log_softmax(-1), probs[rows], reduction="none").mean()  # what UNITER's trainer takes
    assert sums[1] == pytest.approx(mean.item(), rel=1e-5)


@pytest.mark.parametrize("target", ["class", "soft", "kl"])
def test_nothing_chosen_gives_zero_and_zero_gradients(target):
    objective, batch = bound(target=target, masker=RegionMasker(prob=1e-9)), region_sample_batch(LENGTHS)
    out, hidden = objective.corrupt(batch, {}), region_states(batch)
    hidden.image.x_ND.requires_grad_()
    score = objective(hidden, out)
    assert score.sum.item() == 0 == score.count.item()
    score.sum.backward()
    assert not hidden.image.x_ND.grad.any() and all(not p.grad.any() for p in objective.parameters())
    assert torch.equal(out.regions.features_NF, batch.regions.features_NF)


def test_false_pairs_have_no_gradient_at_all():
    objective, model = bound(only_if_matched=True, masker=RegionMasker(prob=1.0)), RegionModel()
    batch = region_sample_batch((3, 2, 4))
    for matched in ([True, False, True], [False, False, False]):
        objective.zero_grad()
        out = objective.corrupt(batch._replace(matched_B=torch.tensor(matched)), {})
        hidden = model(out)
        hidden.image.x_ND.retain_grad()
        score = objective(hidden, out)
        score.sum.backward()
        per_sample = hidden.image.layout.sample_N(torch.device("cpu"))
        for sample, true in enumerate(matched):
            assert bool(hidden.image.x_ND.grad[per_sample == sample].any()) == true
        assert score.count.item() == objective.count(out).item() == sum(n for n, m in zip((3, 2, 4), matched, strict=True) if m)
        assert bool(objective.head.decoder.weight.grad.any()) == any(matched)


def test_behind_itm_its_label_decides_and_its_pictures_are_masked():
    """The recipe of Unicoder-VL: match, words and regions in one view."""
    root = Pretraining(RegionModel(), {"itm": ITM({"text": 1.0}, view="main"), "mrc": bound(only_if_matched=True)})
    root.bind(None)
    batch = region_sample_batch((5, 5, 5, 5))
    swaps = Swaps(torch.tensor([0, 3, 0, 3]), text_rows=(1, 3), texts=region_sample_batch((1, 1), seed=4).text)
    views = root.corrupt(batch._replace(targets={"itm": swaps}))
    assert set(views["main"].targets["mrc"].rows_R.div(5, rounding_mode="floor").tolist()) <= {0, 2}
    counts, scores = root.counts(views), root(views)
    assert counts["mrc"] == scores["mrc"].count and counts["itm"] == 4
    wrong = Pretraining(RegionModel(), {"mrc": bound(only_if_matched=True), "itm": ITM({"text": 1.0}, view="main")})
    wrong.bind(None)
    with pytest.raises(ValueError, match="put ITM before it"):
        wrong(batch._replace(targets={"itm": swaps}))


def test_layout_of_the_batch_does_not_matter():
    objective = bound()
    batch = region_sample_batch((3, 3, 3, 3))
    model = RegionModel()
    whole = objective(model(out := objective.corrupt(batch, {})), out)
    parts = []
    for samples in ((0, 3), (2, 1)):
        out = objective.corrupt(rows_of(batch, samples), {})
        parts.append(objective(model(out), out))
    assert sum(part.sum for part in parts).item() == pytest.approx(whole.sum.item(), rel=1e-6)
    assert sum(part.count for part in parts).item() == whole.count.item()


def test_size_of_the_head_initialisation_and_pickle():
    def size(**options):
        with torch.device("meta"):
            objective = MRC(**options)
            objective.bind(region_spec(768, features=None)._replace(feature_width=2048), None)
        return sum(p.numel() for p in objective.parameters())

    assert size(classes=1600, transform=False) == 768 * 1600 + 1600  # Unicoder-VL: a linear layer alone
    assert size(classes=1601) == 768 * 768 + 768 + 2 * 768 + 768 * 1601 + 1601  # UNITER
    assert size(classes=1601, norm_in_head=False) == 768 * 768 + 768 + 768 * 1601 + 1601  # VL-BERT
    wide = MRC(classes=500)
    wide.bind(region_spec()._replace(visual_width=64, std=0.1, norm_eps=1e-5), None)
    assert wide.head.decoder.weight.shape == (500, 64) and wide.head.decoder.weight.std().item() == pytest.approx(0.1, rel=0.05)
    assert wide.head.transform.norm.eps == 1e-5
    head = wide.head
    wide.bind(region_spec(), None)
    assert wide.head is head
    again = pickle.loads(pickle.dumps(wide))  # noqa: S301  (our own bytes)
    assert again.masker == wide.masker and torch.equal(again.head.decoder.weight, head.decoder.weight)


def test_logits_are_those_of_the_loss_and_autocast_does_not_change_it():
    objective, batch = bound(), region_sample_batch(LENGTHS)
    out, hidden = objective.corrupt(batch, {}), region_states(batch)
    found = scored(objective, hidden, out)
    assert torch.equal(found.logits_RC, objective.logits(hidden, out)) and found.logits_RC.shape == (int(found.score.count), CLASSES)
    with torch.autocast("cpu", torch.bfloat16):
        assert objective(hidden, out).sum.dtype == torch.float32


def test_clear_errors():
    batch = region_sample_batch(LENGTHS)
    bare = region_sample_batch(LENGTHS, labels=False)
    with pytest.raises(ValueError, match="unknown target"):
        MRC(target="hard")
    with pytest.raises(ValueError, match="target: kl"):
        MRC(target="soft", reduction="elements")
    with pytest.raises(ValueError, match="background=7"):
        MRC(classes=7, background=7)
    with pytest.raises(ValueError, match="background=0 without `classes`; set both, or neither"):
        MRC(background=0)
    with pytest.raises(ValueError, match="probabilities of 7 classes, the head has 1601"):
        MRC(target="soft", classes=1601).corrupt(batch, {})
    with pytest.raises(ValueError, match="set target: class"):
        bound().corrupt(bare, {})
    with pytest.raises(ValueError, match="no classes"):
        bound(target="class").corrupt(bare, {})
    labels = batch._replace(regions=batch.regions._replace(class_probs_NC=None))
    bound(target="class").corrupt(labels, {})
    with pytest.raises(ValueError, match=r"number 6 of the classes \(from 0\), the head has 5"):
        bound(target="class", classes=5).corrupt(labels, {})
    objective = bound()
    out = objective.corrupt(batch, {})
    with pytest.raises(ValueError, match="one state for every region"):
        objective(region_states(batch, 1)._replace(image_prefix=0), out)
    with pytest.raises(ValueError, match="no head yet"):
        MRC(classes=CLASSES, masker=HALF)(region_states(batch), out)


def known(classes: int, background: int | None = None, attributes: int = 0):
    return VOCABULARY._replace(region_classes=classes, region_background=background, region_attributes=attributes)


def test_classes_that_the_recipe_leaves_to_the_data():
    objective = MRC("argmax", masker=HALF)
    with pytest.raises(ValueError, match=r"mrc: the data do not say how many classes there are .*; set `classes`"):
        objective.bind(region_spec(), None)
    with pytest.raises(ValueError, match="set `classes`"):
        objective.bind(region_spec(), VOCABULARY)
    objective.bind(region_spec(), known(CLASSES, 2))
    assert (objective.classes, objective.background) == (CLASSES, 2) and objective.head.decoder.out_features == CLASSES
    batch = region_sample_batch(LENGTHS)
    labels = objective._labels(batch.regions, torch.arange(sum(LENGTHS)))
    table = batch.regions.class_probs_NC.clone()
    table[:, 2] = -1
    assert torch.equal(labels, table.argmax(1))
    other = MRC(masker=HALF)
    other.bind(region_spec(), known(3))
    assert (other.classes, other.background) == (3, None)


@pytest.mark.parametrize(
    ("target", "data", "message"),
    [
        ("kl", (5, None), "classes=7, but the regions of the data have probabilities of 5 .*; set 5, or null"),
        ("soft", (9, 0), "classes=7, but the regions of the data have 9 .*; set 9, or null"),
        ("class", (9, 0), "classes=7, but the regions of the data have 9"),
        ("class", (8, 0), "classes=7, but the regions of the data have 8"),
        ("class", (8, 7), None),  # the last one is the background, which is no region's class
        ("class", (5, None), None),  # some are never right
        ("kl", (7, 0), None),
        ("kl", (0, None), None),  # nobody knows; the batch is looked at
    ],
)
def test_an_explicit_number_is_compared_with_the_data(target, data, message):
    objective = MRC(target, CLASSES, 0 if target != "class" else None, masker=HALF)
    if message is None:
        objective.bind(region_spec(), known(*data))
        assert objective.classes == CLASSES == objective.head.decoder.out_features
        return
    with pytest.raises(ValueError, match=message):
        objective.bind(region_spec(), known(*data))
