"""Masks of regions: rates, what stands in the place of a feature, neighbours, independence of the layout, one masking for each view."""

import pickle

import numpy as np
import pytest
import torch
from helpers.objectives import keys
from helpers.region_batches import region_sample_batch, region_spec, rows_of
from jsonargparse import ArgumentParser

from mmpretrain.nn.ragged import Layout
from mmpretrain.objectives.base import Objective
from mmpretrain.objectives.mrc import MRC
from mmpretrain.objectives.mrfr import MRFR
from mmpretrain.objectives.objects import Objects
from mmpretrain.objectives.region_masking import TARGET, RegionMasker, elsewhere
from mmpretrain.types import Batch, RegionBatch


def numbered(lengths: tuple[int, ...], boxes: torch.Tensor | None = None) -> Batch:
    """Regions whose feature is their number, from 1: nothing but a mask is 0."""
    n = sum(lengths)
    features = torch.arange(1, n + 1, dtype=torch.float32)[:, None].expand(n, 2).clone()
    regions = RegionBatch(features, torch.zeros(n, 4) if boxes is None else boxes, lengths, ((100, 100),) * len(lengths))
    return Batch(tuple(f"k{i}" for i in range(len(lengths))), keys(len(lengths)), regions=regions)


def ragged_lengths(n: int, longest: int = 9) -> tuple[int, ...]:
    return tuple(1 + (5 * i) % longest for i in range(n))


def within_four_sigma(hits: float, n: float, p: float) -> bool:
    return abs(hits - n * p) <= 4 * (n * p * (1 - p)) ** 0.5


@pytest.mark.parametrize("zero, random", [(0.9, 0.0), (0.8, 0.1), (1.0, 0.0)])
def test_rates_at_a_hundred_thousand_regions(zero, random):
    batch, n = numbered((100,) * 1000), 100_000
    out = RegionMasker(zero=zero, random=random).mask(batch, "main").regions
    before, now, chosen = batch.regions.features_NF[:, 0], out.features_NF[:, 0], int(out.chosen_N.sum())
    assert within_four_sigma(chosen, n, 0.15)
    zeroed, kept = now == 0, now == before
    swapped = ~zeroed & ~kept
    assert torch.equal(zeroed, out.removed_N) and kept[~out.chosen_N].all() and (out.features_NF[zeroed] == 0).all()
    assert within_four_sigma(int(zeroed.sum()), chosen, zero) and within_four_sigma(int(swapped.sum()), chosen, random)
    assert within_four_sigma(int((kept & out.chosen_N).sum()), chosen, 1 - zero - random)
    assert torch.equal(out.boxes_N4, batch.regions.boxes_N4)
    own, other = (before[swapped].long() - 1) // 100, (now[swapped].long() - 1) // 100
    assert (own != other).all()  # of another sample


def test_the_other_region_is_uniform_over_all_of_other_samples():
    layout = Layout((2, 5, 1, 4))
    for within in (False, True):
        draws = torch.randint(0, 1 << 62, (layout.total, 20_000), generator=torch.Generator().manual_seed(0))
        found, some = elsewhere(draws, layout, torch.arange(layout.total), within)
        sample = layout.sample_N(torch.device("cpu"))
        for row in range(layout.total):
            open_to = {r for r in range(layout.total) if r != row and (sample[r] == sample[row]) == within}
            assert some[row] == bool(open_to)
            counts = np.bincount(found[row].numpy(), minlength=layout.total)
            assert set(counts.nonzero()[0]) == (open_to or {row})
            if len(open_to) > 1:
                expected, seen = 20_000 / len(open_to), counts[sorted(open_to)]
                freedom = len(open_to) - 1
                assert ((seen - expected) ** 2 / expected).sum() < freedom + 5 * (2 * freedom) ** 0.5


def test_one_sample_takes_its_own_regions_and_a_lone_region_stays():
    swap = RegionMasker(prob=1.0, zero=0.0, random=1.0)
    out = swap.mask(numbered((6,)), "main").regions
    assert (out.features_NF[:, 0] != torch.arange(1, 7)).all() and out.chosen_N.all() and not out.removed_N.any()
    assert swap.mask(numbered((1,)), "main").regions.features_NF.eq(1).all()


@pytest.mark.parametrize("at_least_one", [False, True])
def test_same_masks_whole_in_parts_and_permuted(at_least_one):
    masker = RegionMasker(spread_iou=0.4, at_least_one=at_least_one)
    batch = region_sample_batch(ragged_lengths(32), labels=False)
    whole = masker.mask(batch, "main")
    state = torch.get_rng_state()
    permuted = tuple(torch.randperm(32, generator=torch.Generator().manual_seed(3)).tolist())
    for samples in ((0, 1, 2, 3, 4), tuple(range(6, 32, 7)), permuted):
        part, wanted = masker.mask(rows_of(batch, samples), "main").regions, rows_of(whole, samples).regions
        for name in ("features_NF", "chosen_N", "removed_N"):
            assert torch.equal(getattr(part, name), getattr(wanted, name))
    assert torch.equal(state, torch.get_rng_state())  # the global generator is not touched
    assert not torch.equal(masker.mask(batch, "other").regions.chosen_N, whole.regions.chosen_N)


def test_at_least_one_and_none():
    lengths = (3,) * 300
    free, forced = (RegionMasker(at_least_one=flag).mask(numbered(lengths), "main").regions.chosen_N for flag in (False, True))
    free_B, forced_B = (x.view(300, 3).sum(1) for x in (free, forced))
    assert (free_B == 0).any() and torch.equal(forced_B, free_B.clamp(min=1)) and torch.equal(free & forced, free)


PLANTED = [[0, 0, 10, 10], [0, 0, 10, 4], [0, 0, 10, 5], [0, 0, 10, 3], [50, 50, 60, 60], [50, 50, 60, 54.0]]
"""Of 10 x 10 pixels: overlaps with the first are 1, exactly 0.4, 0.5, 0.3 and 0; the last two again exactly 0.4."""


def overlap(a: list[float], b: list[float], more: float) -> float:
    sides = [max(0.0, min(a[2 + i], b[2 + i]) - max(a[i], b[i]) + more) for i in (0, 1)]
    area = lambda x: (x[2] - x[0] + more) * (x[3] - x[1] + more)
    inner = sides[0] * sides[1]
    return inner / (area(a) + area(b) - inner)


@pytest.mark.parametrize("strict, pixels", [(True, False), (False, False), (True, True), (False, True)])
def test_neighbours_of_a_chosen_region_are_zeroed(strict, pixels):
    """The exact set, by loops; an overlap of exactly 0.4 tells > from >=, and the pixel convention (55/121) makes it more than 0.4."""
    samples, count = 400, len(PLANTED)
    lengths = (count, count - 2) * (samples // 2)
    boxes = torch.tensor([row for n in lengths for row in PLANTED[:n]])
    batch = numbered(lengths, boxes)
    options = {"prob": 0.3, "zero": 0.5, "random": 0.2}
    plain = RegionMasker(**options).mask(batch, "main").regions
    out = RegionMasker(**options, spread_iou=0.4, spread_strict=strict, spread_pixels=pixels).mask(batch, "main").regions
    exact, start = 0, 0
    for n in lengths:
        rows = slice(start, start + n)
        for i in range(n):
            found = [overlap(PLANTED[i], PLANTED[j], float(pixels)) for j in range(n) if j != i and plain.chosen_N[rows][j]]
            near = any(x > 0.4 if strict else x >= 0.4 for x in found)
            exact += 0.4 in found
            assert out.chosen_N[rows][i] == (plain.chosen_N[rows][i] or near)
            assert out.removed_N[rows][i] == (plain.removed_N[rows][i] or near)
            if not near:
                assert torch.equal(out.features_NF[rows][i], plain.features_NF[rows][i])
        start += n
    assert (exact > 50) == (not pixels)
    assert (out.features_NF[out.removed_N] == 0).all()


def test_one_masking_for_each_view_whoever_comes_first():
    batch = region_sample_batch(ragged_lengths(20))
    one, two, alone = MRC(classes=7), MRFR(tied=False), MRFR(tied=False, view="own")
    one.name, two.name, alone.name = "classes", "features", "lonely"
    first = two.corrupt(one.corrupt(batch, {}), {})
    second = one.corrupt(two.corrupt(batch, {}), {})
    assert first.regions.features_NF.equal(second.regions.features_NF) and first.regions.chosen_N.equal(second.regions.chosen_N)
    assert torch.equal(two.corrupt(batch, {}).regions.chosen_N, first.regions.chosen_N)  # it does not matter what else the view has
    assert torch.equal(first.targets["classes"].rows_R, first.targets["features"].rows_R)
    assert first.targets[TARGET].features_NF is batch.regions.features_NF
    assert not torch.equal(alone.corrupt(batch, {}).regions.chosen_N, first.regions.chosen_N)
    other = MRFR(masker=RegionMasker(zero=1.0))
    with pytest.raises(ValueError, match="same masker, or views of their own"):
        other.corrupt(first, {})


def test_false_pairs_are_masked_alike_and_do_not_count():
    """A view with ITM would tell by the masks which pairs are true."""
    batch = region_sample_batch(ragged_lengths(40))._replace(matched_B=torch.arange(40) % 3 > 0)
    masker = RegionMasker(prob=0.5)
    strict, free = MRC(classes=7, masker=masker, only_if_matched=True), MRC(classes=7, masker=masker)
    strict.name, free.name = "strict", "free"
    out = free.corrupt(strict.corrupt(batch, {}), {})
    per_sample = Layout(batch.regions.lengths).sample_N(torch.device("cpu"))
    counted = per_sample[out.targets["strict"].rows_R]
    assert batch.matched_B[counted].all() and out.regions.chosen_N[~batch.matched_B[per_sample]].any()
    wanted = (out.regions.chosen_N & batch.matched_B[per_sample]).nonzero().squeeze(1)
    assert torch.equal(out.targets["strict"].rows_R, wanted)
    assert torch.equal(out.targets["free"].rows_R, out.regions.chosen_N.nonzero().squeeze(1))
    assert strict.count(out).item() == len(wanted) < free.count(out).item()


def test_what_comes_after_the_masks_must_not_touch_regions_or_pairs():
    objective = MRFR(tied=False, only_if_matched=True)
    out = objective.corrupt(region_sample_batch((4, 4))._replace(matched_B=torch.tensor([True, True])), {})
    objective.count(out)
    swapped = out._replace(regions=region_sample_batch((4, 4), seed=9).regions)
    for changed in (swapped, out._replace(matched_B=torch.tensor([True, False]))):
        with pytest.raises(ValueError, match="put ITM before it"):
            objective.count(changed)
    delta = out._replace(regions=out.regions._replace(delta_NF=torch.zeros(8, 12)))  # of adversarial training
    assert objective.count(delta).equal(objective.count(out))


def test_clear_errors():
    with pytest.raises(ValueError, match="prob"):
        RegionMasker(prob=0)
    with pytest.raises(ValueError, match="shares"):
        RegionMasker(zero=0.95, random=0.1)
    with pytest.raises(ValueError, match="spread_iou"):
        RegionMasker(spread_iou=0.0)
    batch = region_sample_batch((2, 3))
    with pytest.raises(ValueError, match="no regions"):
        RegionMasker().mask(batch._replace(regions=None), "main")
    with pytest.raises(ValueError, match="name the sources"):
        MRC().corrupt(batch._replace(regions=None), {})
    with pytest.raises(ValueError, match="masked already"):
        RegionMasker().mask(RegionMasker().mask(batch, "main"), "main")
    with pytest.raises(ValueError, match="not corrupted"):
        MRC().count(batch)
    with pytest.raises(ValueError, match="reads regions"):
        MRC().bind(region_spec(features=None), None)
    with pytest.raises(ValueError, match="kind 'fused'"):
        MRC().bind(region_spec()._replace(kinds=("paired",)), None)


def test_options_in_a_recipe_and_pickles():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Objective, "one")
    read = lambda kind, **arguments: parser.instantiate(
        parser.parse_object({"one": {"class_path": f"{kind.__module__}.{kind.__name__}", "init_args": arguments}})
    ).one
    masker = {"prob": 0.1, "spread_iou": 0.4, "spread_strict": False}
    assert read(MRC, target="soft", masker=masker).masker == RegionMasker(0.1, spread_iou=0.4, spread_strict=False)
    assert read(Objects, masker={"prob": 0.2}).masker == RegionMasker(0.2, zero=0.8, random=0.1)  # the other options are LXMERT's
    assert read(Objects, parts={"obj": 1.0, "feat": 2.0}).parts == {"obj": 1.0, "feat": 2.0}
    assert pickle.loads(pickle.dumps(RegionMasker(0.2))) == RegionMasker(0.2)  # noqa: S301  (our own bytes)
    with pytest.raises(AttributeError):
        RegionMasker().prob = 1.0  # type: ignore[misc]
