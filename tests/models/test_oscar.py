"""Oscar and Oscar+ against their formulas on padded tensors with transformers' BERT encoder; tags."""

import pytest
import torch
from helpers import single_stream as parts
from torch import Tensor

from mmpretrain.models.oscar import Oscar
from mmpretrain.nn.embed import TextEmbedder
from mmpretrain.types import Batch


def reference(model: Oscar, batch: Batch, plus: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Linear([feature; box of six]), normed in Oscar+; no position, no segment."""
    features, box, sides = parts.corners(batch.regions)
    regions = parts.linear(torch.cat([features, box, sides], -1), model.regions.projection)
    if plus:
        regions = parts.norm(regions, model.regions.norm)
    return parts.padded_run(model, parts.norm(parts.words(model, batch.text), model.text.norm), regions, batch)


@pytest.mark.parametrize(("attention", "atol"), [("eager", 1e-5), ("sdpa", 1e-4)])
@pytest.mark.parametrize("name", ["oscar", "oscar_plus"])
def test_equals_the_padded_reference(name: str, attention: str, atol: float) -> None:
    model, batch = parts.shaken(name, attention), parts.batch()
    parts.check(model, batch, reference(model, batch, plus=name == "oscar_plus"), atol)


def test_tags_are_words_of_the_second_segment() -> None:
    """Which tokens are tags is told by the segment alone, and the order of the regions has no effect."""
    model, batch = parts.shaken("oscar"), parts.batch()
    plain = model(batch).pooled_BD
    no_tags = batch._replace(text=batch.text._replace(segments_BT=None))
    assert ((model(no_tags).pooled_BD - plain).abs().amax(1) > 1e-3).all()
    order = torch.tensor([3, 0, 4, 2, 1, *range(5, sum(parts.COUNTS))])
    regions = batch.regions._replace(features_NF=batch.regions.features_NF[order], boxes_N4=batch.regions.boxes_N4[order])
    torch.testing.assert_close(model(batch._replace(regions=regions)).pooled_BD, plain, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="which has 1: set segments=2"):
        Oscar(TextEmbedder(9, parts.WIDTH, 8, segments=1), model.regions, model.transformer)
