"""Rows exchanged: regions as packed batches, ITM over regions alone and beside pictures, texts with segments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import regions as helper
from helpers.objectives import Drawer, Stack, batch_of, example, fused, spec, vocabulary

from mmpretrain.data.collate import Collator
from mmpretrain.objectives.itm import ITM, KINDS, MatchHead
from mmpretrain.objectives.swaps import replace_regions, replace_texts, select_rows
from mmpretrain.types import RegionBatch, Text, Visual

N = 40
COLLATE = Collator(0, (0.5,) * 3, (0.5,) * 3)


def of(i: int):
    return helper.of_sample(i)


def shown(i: int, image: bool):
    found = example(i)._replace(regions=of(i))
    return found if image else found._replace(image=None)


class Regions(Drawer):
    """Draws regions too."""

    def __init__(self, position: int, image: bool) -> None:
        super().__init__(position, N)
        self.image = image

    def other_visual(self, k: int):
        j = self.other(k, "image")
        return f"k{j}", Visual(example(j).image if self.image else None, of(j))


class StackRegions(Stack):
    regions = staticmethod(COLLATE.regions)


def batched(examples):
    text_and_image = batch_of([e._replace(image=example(0).image) if e.image is None else e for e in examples])
    image = text_and_image.image if examples[0].image is not None else None
    return text_and_image._replace(image=image, regions=COLLATE.regions([e.regions for e in examples]))


def equal(a: RegionBatch, b: RegionBatch) -> bool:
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("rows", [(2,), (0, 3), (4, 1, 0), (0, 1, 2, 3, 4)])
def test_replaced_regions_are_those_of_a_batch_made_so(rows):
    base, new = [of(i) for i in range(5)], [of(10 + i) for i in range(len(rows))]
    wanted = list(base)
    for row, one in zip(rows, new):
        wanted[row] = one
    found = replace_regions(COLLATE.regions(base), rows, COLLATE.regions(new))
    assert equal(found, COLLATE.regions(wanted))


def test_selected_rows_are_those_of_a_batch_made_so():
    base = [of(i) for i in range(5)]
    whole = COLLATE.regions(base)
    masked = whole._replace(chosen_N=torch.arange(len(whole.boxes_N4)) % 3 == 0, removed_N=torch.arange(len(whole.boxes_N4)) % 2 == 0)
    for rows in ((3, 0, 3), (1,), (4, 3, 2, 1, 0)):
        found = select_rows(masked, rows)
        assert equal(found._replace(chosen_N=None, removed_N=None), COLLATE.regions([base[r] for r in rows]))
        starts = np.cumsum([0, *whole.lengths])
        places = [n for r in rows for n in range(starts[r], starts[r + 1])]
        assert found.chosen_N.tolist() == masked.chosen_N[places].tolist() and found.removed_N.tolist() == masked.removed_N[places].tolist()


def test_regions_that_cannot_be_replaced():
    base, new = COLLATE.regions([of(0), of(1)]), COLLATE.regions([of(2)])
    with pytest.raises(ValueError, match="put ITM before the masking objective"):
        replace_regions(base._replace(chosen_N=torch.zeros(len(base.boxes_N4), dtype=torch.bool)), (0,), new)
    with pytest.raises(ValueError, match="regions of 6 values cannot replace those of 5"):
        replace_regions(base, (0,), COLLATE.regions([helper.made(2, 6)]))
    assert replace_regions(base, (0,), new._replace(scores_N=None)).scores_N is None


def test_texts_with_and_without_segments():
    def text(rows: list[list[int]], segments: list[list[int]] | None = None) -> Text:
        width = max(map(len, rows))
        pad = lambda of: torch.tensor([[*row, *[0] * (width - len(row))] for row in of])
        return Text(pad(rows), tuple(map(len, rows)), None, None if segments is None else pad(segments))

    plain, pair = text([[1, 2], [1, 2, 3]]), text([[7, 8, 9, 10]], [[0, 0, 1, 1]])
    assert replace_texts(plain, (0,), pair, 0).segments_BT.tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]
    both = text([[1, 2], [1, 2, 3]], [[0, 1], [0, 1, 1]])
    assert replace_texts(both, (0,), text([[5]]), 0).segments_BT.tolist() == [[0, 0, 0], [0, 1, 1]]
    assert replace_texts(plain, (1,), text([[5]]), 0).segments_BT is None


@pytest.mark.parametrize("image", [False, True], ids=["regions", "both"])
@pytest.mark.parametrize("twice", [False, True], ids=["half", "twice"])
def test_itm_replaces_whatever_a_sample_shows(image, twice):
    examples = [shown(i, image) for i in range(N)]
    objective = ITM({"image": 2.0, "text": 1.0}, both=twice)
    objective.bind(spec(), vocabulary())
    preparer = objective.preparer()
    swaps = [preparer.prepare(e, Regions(e.position, image)) for e in examples]
    batch = batched(examples)
    before = [x.clone() for x in batch.regions if isinstance(x, torch.Tensor)]
    batch = batch._replace(targets={"itm": preparer.collate(swaps, StackRegions())})
    out = objective.corrupt(batch, {})
    replaced = [i for i, swap in enumerate(swaps) if swap.kind]
    assert len(replaced) == (N if twice else N // 2) and any(s.text is not None for s in swaps)
    for swap, e in zip(swaps, examples, strict=True):
        assert (swap.regions is not None) == (KINDS[swap.kind] == "image") and (swap.image is not None) == (
            image and swap.regions is not None
        )
        assert swap.regions is None or not np.array_equal(swap.regions.features, e.regions.features)
    changed = [
        e._replace(text=s.text or e.text, regions=s.regions or e.regions, image=e.image if s.image is None else s.image)
        for e, s in zip(examples, swaps, strict=True)
    ]
    wanted = batched([*examples, *changed]) if twice else batched(changed)
    assert equal(out.regions, wanted.regions) and out.text.lengths == wanted.text.lengths
    assert torch.equal(out.text.ids_BT, wanted.text.ids_BT)
    assert (out.image is None) == (not image) and (not image or torch.equal(out.image.pixels_BCHW, wanted.image.pixels_BCHW))
    assert out.matched_B.tolist() == ([True] * N + [False] * N if twice else [s.kind == 0 for s in swaps])
    assert all(torch.equal(a, b) for a, b in zip(before, (x for x in batch.regions if isinstance(x, torch.Tensor)), strict=True))
    score = objective(fused(out.text.lengths, out.regions.lengths), out)
    assert score.count.item() == len(wanted.text.lengths) and torch.isfinite(score.sum)


def test_the_head_has_the_width_and_the_dropout_of_the_pooled_state():
    objective = ITM()
    objective.bind(spec(width=8)._replace(pooled_width=12, pooled_dropout=0.5), vocabulary())
    assert objective.head.weight.shape == (2, 12)
    x = torch.ones(4, 12)
    assert not torch.equal(objective.head(x), objective.head(x)) and torch.equal(objective.head.eval()(x), objective.head(x))
    plain = MatchHead(12)
    state = torch.get_rng_state()
    plain(x)
    assert torch.equal(state, torch.get_rng_state())  # nothing is drawn without dropout


def test_samples_that_differ_in_name_alone_are_no_negatives():
    class Same(Regions):
        def other_visual(self, k: int):
            return "other", Visual(None, of(self.position))

    with pytest.raises(ValueError, match="draws gave no image that differs"):
        for position in (2, 3):
            ITM().preparer().prepare(shown(position, False), Same(position, False))
    with pytest.raises(ValueError, match="has no image or regions to replace"):
        for position in (2, 3):
            ITM().preparer().prepare(shown(position, False)._replace(regions=None), Regions(position, False))
