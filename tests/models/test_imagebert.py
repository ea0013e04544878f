"""ImageBERT against its formula on padded tensors with transformers' BERT encoder; its regions are a set."""

import pytest
import torch
from helpers import single_stream as parts
from torch import Tensor

from mmpretrain.models.imagebert import ImageBERT
from mmpretrain.types import Batch


def reference(model: ImageBERT, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """LN(Linear(feature) + segment 1 + Linear(box of five) + position 13, the last)."""
    features, box, sides = parts.corners(batch.regions)
    five = torch.cat([box, sides[..., :1] * sides[..., 1:]], -1)
    total = parts.linear(features, model.regions.projection) + parts.linear(five, model.regions.box_projection)
    regions = parts.norm(total + model.text.segments.weight[1] + model.text.positions.weight[13], model.regions.norm)
    return parts.padded_run(model, parts.norm(parts.words(model, batch.text), model.text.norm), regions, batch)


@pytest.mark.parametrize(("attention", "atol"), [("eager", 1e-5), ("sdpa", 1e-4)])
def test_equals_the_padded_reference(attention: str, atol: float) -> None:
    model, batch = parts.shaken("imagebert", attention), parts.batch()
    parts.check(model, batch, reference(model, batch), atol)


def test_the_order_of_the_regions_has_no_effect_on_the_text() -> None:
    """And a region's state goes with it; the order of the words matters."""
    model, batch = parts.shaken("imagebert"), parts.batch()
    plain = model(batch)
    order = torch.cat([start + torch.randperm(n) for start, n in zip((0, 5, 6, 13), parts.COUNTS, strict=True)])
    assert not torch.equal(order, torch.arange(16))
    regions = batch.regions._replace(features_NF=batch.regions.features_NF[order], boxes_N4=batch.regions.boxes_N4[order])
    mixed = model(batch._replace(regions=regions))
    torch.testing.assert_close(mixed.pooled_BD, plain.pooled_BD, atol=1e-5, rtol=0)
    torch.testing.assert_close(mixed.text.x_ND, plain.text.x_ND, atol=1e-5, rtol=0)
    torch.testing.assert_close(mixed.image.x_ND, plain.image.x_ND[order], atol=1e-5, rtol=0)
    ids = batch.text.ids_BT.clone()
    ids[0, [1, 2]] = ids[0, [2, 1]]
    other = model(batch._replace(text=batch.text._replace(ids_BT=ids))).pooled_BD
    assert (other[0] - plain.pooled_BD[0]).abs().max() > 1e-3 and torch.equal(other[1:], plain.pooled_BD[1:])


def test_all_regions_share_the_position_that_is_named() -> None:
    model, batch = parts.shaken("imagebert"), parts.batch()
    model.region_position = 5
    model(batch._replace(text=None)).pooled_BD.sum().backward()
    grad = model.text.positions.weight.grad.abs().amax(1)
    assert grad[5] > 0 and grad.count_nonzero() == 1
    with pytest.raises(ValueError, match="region_position=14 is no row of the 14 positions"):
        ImageBERT(model.text, model.regions, model.transformer, region_position=14)
    with pytest.raises(ValueError, match="row 3 of the text's segment table"):
        ImageBERT(model.text, model.regions, model.transformer, region_segment=3)
