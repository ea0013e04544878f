"""UNITER against its formula on padded tensors with transformers' BERT encoder; masked regions."""

import pytest
import torch
from helpers import single_stream as parts
from torch import Tensor

from mmpretrain.models.uniter import UNITER
from mmpretrain.nn.embed import TextEmbedder
from mmpretrain.types import Batch


def reference(model: UNITER, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """LN(LN(feature) + LN(box of seven) + segment 1); a removed feature is zero plus the mask embedding."""
    features, box, sides = parts.corners(batch.regions)
    if batch.regions.removed_N is not None:
        flags = torch.nn.utils.rnn.pad_sequence(batch.regions.removed_N.split(batch.regions.lengths), batch_first=True)
        features = features + flags[..., None] * model.regions.mask_embedding
    seven = torch.cat([box, sides, sides[..., :1] * sides[..., 1:]], -1)
    embedder = model.regions
    branches = parts.norm(parts.linear(features, embedder.projection), embedder.feature_norm)
    branches = branches + parts.norm(parts.linear(seven, embedder.box_projection), embedder.box_norm)
    regions = parts.norm(branches + model.text.segments.weight[1], embedder.norm)
    return parts.padded_run(model, parts.norm(parts.words(model, batch.text), model.text.norm), regions, batch)


@pytest.mark.parametrize(("attention", "atol"), [("eager", 1e-5), ("sdpa", 1e-4)])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_padded_reference(attention: str, atol: float, masked: bool) -> None:
    model, batch = parts.shaken("uniter", attention), parts.batch()
    if masked:
        removed = torch.arange(sum(parts.COUNTS)) % 3 == 1
        features = batch.regions.features_NF.masked_fill(removed[:, None], 0)
        batch = batch._replace(regions=batch.regions._replace(features_NF=features, chosen_N=removed, removed_N=removed))
    parts.check(model, batch, reference(model, batch), atol)


def test_removed_regions_use_the_mask_embedding_and_kept_ones_do_not() -> None:
    model, batch = parts.shaken("uniter"), parts.batch()
    count = sum(parts.COUNTS)
    chosen = torch.ones(count, dtype=torch.bool)
    kept = batch._replace(regions=batch.regions._replace(chosen_N=chosen, removed_N=~chosen))
    assert torch.equal(model(kept).pooled_BD, model(batch).pooled_BD)
    removed = torch.zeros(count, dtype=torch.bool).index_fill(0, torch.tensor([0]), True)
    given = batch.regions._replace(features_NF=batch.regions.features_NF.masked_fill(removed[:, None], 0), removed_N=removed)
    model(batch._replace(regions=given)).pooled_BD[0].sum().backward()
    assert model.regions.mask_embedding.grad.abs().max() > 0
    before = model(batch._replace(regions=given)).pooled_BD
    with torch.no_grad():
        model.regions.mask_embedding.add_(1)
    after = model(batch._replace(regions=given)).pooled_BD
    assert (after[0] - before[0]).abs().max() > 1e-3
    assert torch.equal(after[1:], before[1:])


def test_regions_read_segment_one_of_the_words() -> None:
    """The row is shared: a text of two segments and the regions both train it."""
    model, batch = parts.shaken("uniter"), parts.batch()
    model(batch._replace(text=None)).pooled_BD.sum().backward()
    grad = model.text.segments.weight.grad
    assert grad[1].abs().max() > 0 and grad[0].abs().max() == 0
    with pytest.raises(ValueError, match="row 1 of the text's segment table, which has 0: set segments=2 or more"):
        UNITER(TextEmbedder(9, parts.WIDTH, 8), model.regions, model.transformer)
