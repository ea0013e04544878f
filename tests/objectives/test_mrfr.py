"""Regression of features and their contrast with those of other regions: against NumPy, ties, negatives."""

import numpy as np
import pytest
import torch
from helpers.objectives import keys
from helpers.region_batches import FEATURES, WIDTH, RegionModel, region_rows, region_sample_batch, region_spec, region_states, rows_of
from torch import nn

from mmpretrain.nn.layers import Linear
from mmpretrain.nn.ragged import Layout
from mmpretrain.objectives.mrfr import MRFR
from mmpretrain.objectives.objects import Objects
from mmpretrain.objectives.region_masking import RegionMasker
from mmpretrain.objectives.region_nce import RegionNCE
from mmpretrain.train.pretraining import Pretraining, assert_tied, materialise, ties

HALF = RegionMasker(prob=0.5)
LENGTHS = (4, 1, 7, 3, 6)


def bound(kind=MRFR, **options):
    objective = kind(**{"masker": HALF, **options})
    objective.bind(region_spec(), None)
    torch.manual_seed(0)
    for name, parameter in objective.named_parameters():
        nn.init.normal_(parameter, mean=1.0 if name.endswith("norm.weight") else 0.0, std=0.3)
    return objective


def predicted(objective, hidden, batch, rows: list[int], prefix: int = 1) -> np.ndarray:
    """What the head says of packed regions, by hand and in float64."""
    x = hidden.image.x_ND.detach().double()[[region_rows(batch, prefix)[row] for row in rows]]
    p = {name: value.detach().double() for name, value in objective.head.named_parameters()}
    if "transform.dense.weight" in p:
        x = torch.nn.functional.gelu(x @ p["transform.dense.weight"].T + p["transform.dense.bias"])
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + 1e-12).sqrt()
        x = x * p["transform.norm.weight"] + p["transform.norm.bias"]
    tied = "decoder.weight" not in p
    weight = objective.head.weight.detach().double() if tied else p["decoder.weight"].T
    return (x @ weight + p["bias" if tied else "decoder.bias"]).numpy()


@pytest.mark.parametrize("loss", ["mse", "smooth_l1"])
@pytest.mark.parametrize("options", [{}, {"tied": False}, {"tied": False, "transform": False, "reduction": "regions"}])
def test_loss_against_numpy(loss, options):
    objective, batch = bound(loss=loss, **options), region_sample_batch(LENGTHS)
    out, hidden = objective.corrupt(batch, {}), region_states(batch)
    score = objective(hidden, out)
    rows = [i for i in range(sum(LENGTHS)) if out.regions.chosen_N[i]]
    found, wanted = predicted(objective, hidden, batch, rows), batch.regions.features_NF.double().numpy()[rows]
    gap = np.abs(found - wanted)
    losses = gap**2 if loss == "mse" else np.where(gap < 1, gap**2 / 2, gap - 0.5)
    total = losses.sum() if options.get("reduction") == "regions" else losses.mean(1).sum()
    assert score.sum.item() == pytest.approx(total, rel=1e-5)
    assert score.count.item() == objective.count(out).item() == len(rows)
    cosines = (found * wanted).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1)
    assert score.stats["cosine"][0].item() == pytest.approx(cosines.sum(), rel=1e-4)
    assert out.regions.removed_N.any() and not out.regions.features_NF[out.regions.removed_N].any()  # the target is not the masked feature


def test_an_identity_head_on_the_features_gives_zero():
    """ImageBERT's head, one linear layer, on states that are the features: no loss, and no loss of what was masked either."""
    objective = MRFR(tied=False, transform=False, reduction="regions", masker=HALF)
    objective.bind(region_spec(FEATURES), None)
    with torch.no_grad():
        objective.head.decoder.weight.copy_(torch.eye(FEATURES))
    batch = region_sample_batch(LENGTHS)
    out, hidden = objective.corrupt(batch, {}), region_states(batch, 0, FEATURES)
    seeing = hidden._replace(image=hidden.image._replace(x_ND=batch.regions.features_NF))
    assert objective(seeing, out).sum.item() == 0 and objective(seeing, out).count.item() > 0
    blind = hidden._replace(image=hidden.image._replace(x_ND=out.regions.features_NF))
    assert objective(blind, out).sum.item() == pytest.approx(batch.regions.features_NF[out.regions.removed_N].square().sum().item())


def test_the_tie_is_the_same_parameter_and_survives_the_meta_device():
    model = RegionModel()
    root = Pretraining(model, {"mrfr": MRFR(masker=HALF)})
    root.bind(None)
    head = root.objectives["mrfr"].head
    assert head.weight is model.project.weight and ties(root) == []
    names = [name for name, _ in root.named_parameters()]
    assert "model.project.weight" in names and not any("_projection" in name for name in names)
    batch = region_sample_batch(LENGTHS)
    score = root(batch)["mrfr"]
    score.sum.backward()
    assert model.project.weight.grad is not None and head.bias.grad is not None
    with torch.device("meta"):
        born = Pretraining(RegionModel(), {"mrfr": MRFR(masker=HALF)})
        born.bind(None)
    materialise(born)
    assert born.objectives["mrfr"].head.weight is born.model.project.weight and not born.objectives["mrfr"].head.weight.is_meta
    assert_tied(born, ties(born))


def test_sizes_of_the_heads():
    def size(**options):
        with torch.device("meta"):
            objective = MRFR(**options)
            spec = region_spec(768, features=None)._replace(feature_width=2048, feature_projection=Linear(2048, 768))
            objective.bind(spec, None)
        return sum(p.numel() for p in objective.parameters())

    transform = 768 * 768 + 768 + 2 * 768
    assert size() == transform + 2048  # UNITER: the bias alone is new
    assert size(tied=False) == transform + 768 * 2048 + 2048  # ViLBERT
    assert size(tied=False, transform=False) == 768 * 2048 + 2048  # ImageBERT


@pytest.mark.parametrize("kind", [MRFR, RegionNCE])
def test_nothing_chosen_and_no_true_pair_give_zero_and_zero_gradients(kind):
    batch = region_sample_batch(LENGTHS)
    nothing = bound(kind, masker=RegionMasker(prob=1e-9))
    false = bound(kind, only_if_matched=True)
    for objective, given in ((nothing, batch), (false, batch._replace(matched_B=torch.zeros(5, dtype=torch.bool)))):
        out, hidden = objective.corrupt(given, {}), region_states(batch)
        hidden.image.x_ND.requires_grad_()
        score = objective(hidden, out)
        assert score.sum.item() == 0 == score.count.item() == objective.count(out).item()
        score.sum.backward()
        assert not hidden.image.x_ND.grad.any() and all(not p.grad.any() for p in objective.parameters())


def test_contrast_against_numpy():
    """The released code's form: the features of all candidates, their products with the prediction, cross-entropy with the first."""
    objective, batch = bound(RegionNCE, negatives=40), region_sample_batch(LENGTHS)
    assert (objective.across, objective.within) == (28, 12)
    out, hidden = objective.corrupt(batch, {}), region_states(batch)
    score = objective(hidden, out)
    rows = out.targets["regionnce"].rows_R
    candidates, some = (x.numpy() for x in objective.candidates(batch.draw_keys_B, out.regions, rows))
    features, found = batch.regions.features_NF.double().numpy(), predicted(objective, hidden, batch, rows.tolist())
    total, right = 0.0, 0
    sample = Layout(LENGTHS).sample_N(torch.device("cpu")).numpy()
    for i, row in enumerate(rows.tolist()):
        own = candidates[i]
        assert own[0] == row and (sample[own[1:29]] != sample[row]).all() and (sample[own[29:]] == sample[row]).all()
        alone = LENGTHS[sample[row]] == 1
        assert some[i, :29].all() and some[i, 29:].all() != alone and (own[29:] == row).any() == alone
        products = features[own[some[i]]] @ found[i]
        total += np.log(np.exp(products - products.max()).sum()) + products.max() - products[0]
        right += products[0] >= products.max()
    assert score.sum.item() == pytest.approx(total, rel=1e-5) and score.count.item() == len(rows)
    assert score.stats["accuracy"][0].item() == right


def test_negatives_belong_to_the_sample_whatever_the_rest_of_the_batch():
    """Of the same picture they are the same in any batch; of other pictures they are the same in the same batch."""
    objective, batch = bound(RegionNCE, across=0.0, within=1.0, negatives=9), region_sample_batch((5, 4, 6, 5))
    whole = objective.corrupt(batch, {})
    per_sample = Layout((5, 4, 6, 5)).sample_N(torch.device("cpu"))
    part = objective.corrupt(rows_of(batch, (2, 0)), {})
    of_part, _ = objective.candidates(part.draw_keys_B, part.regions, part.targets["regionnce"].rows_R)
    of_whole, _ = objective.candidates(whole.draw_keys_B, whole.regions, whole.targets["regionnce"].rows_R)
    last = of_whole[per_sample[of_whole[:, 0]] == 2] - 9
    assert torch.equal(of_part[: len(last)], last)
    again, _ = objective.candidates(whole.draw_keys_B, whole.regions, whole.targets["regionnce"].rows_R)
    assert torch.equal(of_whole, again)
    other, _ = objective.candidates(keys(4, seed=1), whole.regions, whole.targets["regionnce"].rows_R)
    assert not torch.equal(of_whole, other)


def test_one_sample_and_one_region():
    objective = bound(RegionNCE, masker=RegionMasker(prob=1.0))
    assert (objective.across, objective.within) == (178, 76)  # 254 of the 255
    for lengths, zero in (((3,), False), ((1,), True)):
        batch = region_sample_batch(lengths)
        out, hidden = objective.corrupt(batch, {}), region_states(batch)
        score = objective(hidden, out)
        assert score.sum.isfinite() and (score.sum.item() == 0) == zero and score.count.item() == lengths[0]


@pytest.mark.parametrize("kind", [MRFR, RegionNCE, lambda **options: Objects(parts={"feat": 1.0}, **options)])
def test_features_of_another_width_are_refused(kind):
    """Where a model computes the features that it sees, those of the data may have any."""
    objective = bound(kind)
    objective.name = "mine"
    batch = region_sample_batch(LENGTHS, features=FEATURES + 1)
    with pytest.raises(ValueError, match=f"mine: the regions have features of {FEATURES + 1} values, the head gives {FEATURES}; make"):
        objective(region_states(batch), objective.corrupt(batch, {}))


def test_clear_errors():
    for options in ({"loss": "l3"}, {"reduction": "mean"}):
        with pytest.raises(ValueError, match="unknown"):
            MRFR(**options)
    with pytest.raises(ValueError, match="model has none; set tied: false"):
        MRFR().bind(region_spec(projection=False), None)
    with pytest.raises(ValueError, match=r"model has one of \(8, 12\); set tied: false"):
        MRFR().bind(region_spec()._replace(visual_width=2 * WIDTH), None)
    with pytest.raises(ValueError, match="leave none"):
        RegionNCE(negatives=1)
    with pytest.raises(ValueError, match="shares"):
        RegionNCE(across=0.9, within=0.3)
