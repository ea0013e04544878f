"""A whole picture before or behind the regions: models, objectives and vectors of pictures know no difference."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from helpers import single_stream, two_streams
from helpers.region_batches import VOCABULARY
from helpers.regions import made
from helpers.tiny import shake
from torch import nn

from mmpretrain.data.collate import Collator
from mmpretrain.data.regions import decode_regions, encode_regions
from mmpretrain.evaluate.engine import _vectors
from mmpretrain.nn.hidden import Fused
from mmpretrain.nn.regions import RegionEmbedder
from mmpretrain.objectives.mrfr import MRFR
from mmpretrain.objectives.wpa import WPA
from mmpretrain.types import Batch, RegionBatch


def model_and_batch(name: str) -> tuple[nn.Module, Batch]:
    return (two_streams if name == "lxmert" else single_stream).shaken(name), (two_streams if name == "lxmert" else single_stream).batch()


def test_the_given_feature_comes_from_the_samples() -> None:
    """From the arrays of a sample through the collator into the state of its whole picture; data without it are refused."""
    samples, collator = (
        [decode_regions(encode_regions(made(3 + seed, seed=seed))) for seed in range(3)],
        Collator(0, (0.5,) * 3, (0.5,) * 3),
    )
    module = shake(RegionEmbedder(16, 5, global_feature="last", global_from="given"))
    states = module(collator.regions(samples))[0]
    alone = shake(RegionEmbedder(16, 5))
    alone.load_state_dict(module.state_dict())
    for i, end in enumerate(states.layout.starts[1:]):
        feature = torch.from_numpy(samples[i].global_feature.astype("float32"))[None]
        whole = alone(RegionBatch(feature, torch.tensor([[0.0, 0, 64, 48]]), (1,), ((48, 64),)))[0]
        torch.testing.assert_close(states.x_ND[int(end) - 1], whole.x_ND[0], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="no feature of the whole picture"):
        module(collator.regions([one._replace(global_feature=None) for one in samples]))


def both(model: nn.Module, shown: Batch) -> tuple[Fused, Fused]:
    """States with the whole picture first, and last."""
    found = []
    for place in ("first", "last"):
        model.regions.global_feature = place
        found.append(model(shown))
    return found[0], found[1]


@pytest.mark.parametrize("name", [*single_stream.MAKERS, "lxmert"])
def test_first_and_last_are_one_up_to_order(name: str) -> None:
    model, shown = model_and_batch(name)
    first, last = both(model, shown)
    assert (first.image_prefix, first.image_suffix, last.image_prefix, last.image_suffix) == (1, 0, 0, 1)
    torch.testing.assert_close(first.text.x_ND, last.text.x_ND, atol=1e-5, rtol=0)
    torch.testing.assert_close(first.pooled_BD, last.pooled_BD, atol=1e-5, rtol=0)
    torch.testing.assert_close(_vectors(first, False), _vectors(last, False), atol=1e-5, rtol=0)
    starts = first.image.layout.starts
    moved = torch.cat([first.image.x_ND[i:j].roll(-1, 0) for i, j in pairwise(starts)])
    assert last.image.layout.lengths == first.image.layout.lengths
    torch.testing.assert_close(last.image.x_ND, moved, atol=1e-5, rtol=0)
    torch.testing.assert_close(model(shown, "pooled").pooled_BD, last.pooled_BD, atol=1e-5, rtol=0)


def test_objectives_read_the_same_regions() -> None:
    model, shown = model_and_batch("uniter")
    shown = shown._replace(matched_B=torch.tensor([True, False, True, True]))
    torch.manual_seed(0)
    mrfr, wpa = MRFR(tied=False), WPA()
    for objective in (mrfr, wpa):
        objective.bind(model.spec, VOCABULARY)
    out = mrfr.corrupt(shown, {})
    first, last = both(model, out)
    for objective in (mrfr, wpa):
        torch.testing.assert_close(objective(first, out).sum, objective(last, out).sum, atol=1e-4, rtol=1e-5)
    assert mrfr.count(out) > 0 and [p.shape for p in wpa.plan(first)] == [p.shape for p in wpa.plan(last)]
    with pytest.raises(ValueError, match="one state for every region"):
        mrfr(last._replace(image_suffix=0), out)
