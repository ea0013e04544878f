"""Negatives by similarity: how often each sample is drawn, what never is, the batch that comes out, and the step of a recipe with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import regions as helper
from helpers.objectives import batch_of, example, keys, spec, tokens, vocabulary
from helpers.region_batches import RegionModel
from helpers.two_kinds import TwoKinds

from mmpretrain.data.collate import Collator
from mmpretrain.objectives import similar
from mmpretrain.objectives.contrastive import Contrastive
from mmpretrain.objectives.itm import ITM, KINDS
from mmpretrain.objectives.mlm import MLM
from mmpretrain.objectives.swaps import Swaps
from mmpretrain.train.pretraining import Pretraining
from mmpretrain.types import Batch

N = 12
COLLATE = Collator(0, (0.5,) * 3, (0.5,) * 3)
BOTH = {"similar_image": 1.0, "similar_text": 1.0}
IMAGE, TEXT = KINDS.index("similar_image"), KINDS.index("similar_text")


def shown(i: int, what: str):
    """Example ``i`` with a picture, regions or both."""
    regions = None if what == "image" else helper.of_sample(i)
    return example(i)._replace(regions=regions, image=None if what == "regions" else example(i).image)


def batched(examples) -> Batch:
    """With texts that stand alone."""
    stand_in = examples if examples[0].image is not None else [one._replace(image=example(0).image) for one in examples]
    made = batch_of(stand_in)
    regions = COLLATE.regions([one.regions for one in examples]) if examples[0].regions is not None else None
    return made._replace(regions=regions, image=made.image if stand_in is examples else None)


def root(what: str = "image", **arguments) -> Pretraining:
    """Contrastive learning and, by its states, matching; bound to a small model."""
    model = TwoKinds(features=None if what == "image" else 5)
    objectives = {"contrastive": Contrastive(), "itm": ITM(**{"negatives": BOTH, "after": "main", **arguments})}
    made = Pretraining(model, objectives)
    made.bind(vocabulary())
    return made


def prepared(made: Pretraining, examples) -> Batch:
    """The batch as the loader gives it."""
    preparer, batch = made.objectives["itm"].preparer(), batched(examples)
    values = [preparer.prepare(one, DRAW(one.position)) for one in examples]
    return batch._replace(targets={"itm": preparer.collate(values, COLLATE)})


class DRAW:
    """Coins and kinds alone: nothing of another sample is read in the worker."""

    def __init__(self, position: int) -> None:
        self.position = position

    def generator(self, stream: str, shared_by: int = 1) -> np.random.Generator:
        return np.random.default_rng([self.position // shared_by, sum(stream.encode())])


def logits(made: Pretraining, batch: Batch) -> torch.Tensor:
    """s x_i.t_j of the paired states, (B, B)."""
    with torch.no_grad():
        paired = made.model(batch, "paired")
        return (paired.logit_scale.exp() * paired.image_BE @ paired.text_BE.T).double()


def test_samples_are_drawn_by_the_softmax_of_their_similarity():
    torch.manual_seed(0)
    logits_C, fits_C, n = 2 * torch.randn(7), torch.tensor([True, False, True, True, False, True, True]), 20_000
    found_R = similar.drawn(logits_C.expand(n, 7), fits_C.expand(n, 7), keys(n), "x")
    wanted_C = n * logits_C.masked_fill(~fits_C, -torch.inf).softmax(0)
    counts_C = torch.bincount(found_R, minlength=7)
    assert not counts_C[~fits_C].any()
    assert ((counts_C - wanted_C) ** 2 / wanted_C)[fits_C].sum() < 23  # chi-square, 4 degrees of freedom, 1e-4
    assert similar.drawn(logits_C[None], torch.zeros(1, 7, dtype=torch.bool), keys(1), "x").tolist() == [-1]
    assert torch.equal(found_R[:9], similar.drawn(logits_C.expand(9, 7), fits_C.expand(9, 7), keys(9), "x"))
    assert not torch.equal(found_R[:50], similar.drawn(logits_C.expand(50, 7), fits_C.expand(50, 7), keys(50), "y"))


@pytest.mark.parametrize("what", ["image", "regions", "both"])
@pytest.mark.parametrize("both", [False, True, "each"])
def test_the_batch_is_that_of_samples_with_the_parts_of_others(what, both):
    examples, made = [shown(i, what) for i in range(N)], root(what, both=both)
    batch = prepared(made, examples)
    views = made.corrupt(batch)
    out, swaps = views["itm"], views["itm"].targets["itm"]
    assert views["main"] is batch
    kinds, owners = swaps.kinds_B.tolist(), [*range(N), *swaps.copies]
    assert out.size == len(kinds) == {False: N, True: 2 * N, "each": 3 * N}[both]
    assert kinds.count(0) == (N // 2 if not both else N) and out.matched_B.tolist() == [kind == 0 for kind in kinds]
    if both == "each":
        assert kinds == [0] * N + [IMAGE, TEXT] * N and swaps.copies == tuple(np.repeat(np.arange(N), 2))
    logits_BB, seen = logits(made, batch), []
    for kind, owner in zip(kinds, owners, strict=True):
        rows_BB = {IMAGE: logits_BB.T, TEXT: logits_BB}.get(kind)
        other = owner
        if rows_BB is not None:  # drawn anew by hand
            fits_RB = torch.arange(N)[None] != owner
            stream = f"itm/{KINDS[kind]}"
            other = int(similar.drawn(rows_BB[owner : owner + 1].float(), fits_RB, batch.draw_keys_B[owner : owner + 1], stream))
            assert other != owner
        seen.append(examples[owner])
        if kind == IMAGE:
            seen[-1] = seen[-1]._replace(image=examples[other].image, regions=examples[other].regions)
        elif kind == TEXT:
            seen[-1] = seen[-1]._replace(text=examples[other].text)
    wanted = batched(seen)
    assert torch.equal(out.text.ids_BT, wanted.text.ids_BT) and out.text.lengths == wanted.text.lengths
    assert (out.image is None) == (what == "regions") and (out.regions is None) == (what == "image")
    assert out.image is None or (torch.equal(out.image.pixels_BCHW, wanted.image.pixels_BCHW) and out.image.sizes == wanted.image.sizes)
    if out.regions is not None:
        tensors = zip(out.regions, wanted.regions, strict=True)
        assert all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in tensors)
    again = made.corrupt(batch)["itm"]
    assert torch.equal(again.text.ids_BT, out.text.ids_BT)


def test_a_step_of_contrast_and_matching():
    made = root(both="each")
    made.model.train()
    batch = prepared(made, [shown(i, "image") for i in range(N)])
    scores = made(batch)
    assert scores["itm"].count == 3 * N and scores["contrastive"].count == N
    stats = scores["itm"].stats
    assert {name: stats[f"accuracy_{name}"][1].item() for name in ("matched", *BOTH)} == dict.fromkeys(("matched", *BOTH), float(N))
    (scores["itm"].sum / scores["itm"].count).backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.any() for p in (made.model.words.weight, made.model.mix.weight))
    assert made.model.logit_scale.grad is None  # drawing gives no gradient


def test_the_more_alike_the_more_often():
    """With a large scale the most similar other sample is drawn, with a small one any."""
    examples = [shown(i, "image") for i in range(N)]
    for scale, least in ((8.0, 0.95), (-20.0, 0.0)):
        made = root(both="each")
        made.model.logit_scale.data.fill_(scale)
        batch = prepared(made, examples)
        cosines_BB = logits(made, batch) / np.exp(scale)
        cosines_BB.fill_diagonal_(-2)
        best = [examples[int(i)].text.ids for i in cosines_BB.argmax(1)]
        out = made.corrupt(batch)["itm"]
        rows = [row for row, kind in enumerate(out.targets["itm"].kinds_B.tolist()) if kind == TEXT]
        hits = np.mean([tuple(out.text.ids_BT[row, : out.text.lengths[row]].tolist()) == best[i] for i, row in enumerate(rows)])
        assert (hits >= least) if least else hits < 0.5


def test_samples_of_the_same_key_or_text_are_no_negatives_of_each_other():
    examples = [shown(i, "image") for i in range(6)]
    examples[1] = examples[1]._replace(key="k0")  # another caption of the same picture
    examples[3] = examples[3]._replace(text=examples[2].text)
    fits = [[False, False, True, True, True, True], [True, True, False, False, True, True]]
    for i in range(30):
        made = root(both="each")
        keyed = [one._replace(draw_key=one.draw_key + 7919 * i) for one in examples]
        out = made.corrupt(prepared(made, keyed))["itm"]
        for owner, fit in zip((0, 2), fits, strict=True):
            row = 6 + 2 * owner + 1
            ids = tuple(out.text.ids_BT[row, : out.text.lengths[row]].tolist())
            assert ids in {examples[j].text.ids for j in range(6) if fit[j]}
            height, width = out.image.sizes[row - 1]
            picture = out.image.pixels_BCHW[row - 1, :, :height, :width]
            assert any(torch.equal(picture, examples[j].image) for j in range(6) if fit[j])


@pytest.mark.parametrize("both", [False, "each"])
def test_a_sample_alone_stays_as_it_is(both):
    made = root(both=both)
    for examples in ([shown(0, "image")], [shown(1, "image")], [shown(i, "image")._replace(key="same") for i in range(2)]):
        batch = prepared(made, examples)
        out = made.corrupt(batch)["itm"]
        assert out.matched_B.all() and set(out.targets["itm"].kinds_B.tolist()) == {0}
        assert torch.equal(out.text.ids_BT[: batch.size], batch.text.ids_BT)
        assert torch.isfinite(made(batch)["itm"].sum)


def test_false_pairs_and_statements_are_left_alone():
    examples = [shown(i, "image")._replace(matched=i % 3 > 0) for i in range(9)]
    examples[1] = examples[1]._replace(meta={"statement_index": 0})
    made = root(both="each")
    out = made.corrupt(prepared(made, examples))["itm"]
    replaced = [i for i in range(9) if i % 3 and i != 1]
    assert out.targets["itm"].copies == tuple(np.repeat(replaced, 2)) and out.size == 9 + 2 * len(replaced)
    assert out.matched_B.tolist() == [i % 3 > 0 for i in range(9)] + [False] * 2 * len(replaced)


def test_clear_errors():
    with pytest.raises(ValueError, match="set `after` to a contrastive one's"):
        ITM(BOTH)
    with pytest.raises(ValueError, match="both='every' must be true, false or each"):
        ITM(both="every")
    alone = ITM(BOTH, after="main")
    with pytest.raises(ValueError, match="itm: similar negatives need a model with the kind 'paired' beside 'fused', this one has fused"):
        alone.bind(spec(kinds=("fused",)), vocabulary())
    mixed = {"mlm": MLM(), "contrastive": Contrastive(view="pairs"), "itm": ITM(BOTH, after="main")}
    with pytest.raises(ValueError, match="after='main' gives 'fused' states, similar negatives read 'paired' ones; set it to 'pairs'"):
        Pretraining(TwoKinds(), mixed).bind(vocabulary())
    with pytest.raises(ValueError, match=r"'fused' states.*name the view of a contrastive objective"):
        similar.check("itm", {"mlm": MLM()}, "main")
    made = root()
    batch = prepared(made, [shown(i, "image") for i in range(4)])
    paired = made.model(batch, "paired")
    swaps = Swaps(torch.zeros(4, dtype=torch.int64), similar_texts=(0,))
    with pytest.raises(ValueError, match="need paired states of pictures and texts"):
        similar.filled("itm", batch, swaps, paired._replace(text_BE=None))
    with pytest.raises(ValueError, match="has 3 samples, the batch 4"):
        similar.filled("itm", batch, swaps, paired._replace(image_BE=paired.image_BE[:3]))
    tagged = batch._replace(text=batch.text._replace(segments_BT=torch.zeros_like(batch.text.ids_BT)))
    with pytest.raises(ValueError, match="texts told with tags cannot be exchanged inside of a batch"):
        similar.filled("itm", tagged, swaps, paired)
    with pytest.raises(ValueError, match="need samples with a text and a picture"):
        similar.filled("itm", batch._replace(image=None), swaps, paired)
    with pytest.raises(ValueError, match="objective 'contrastive' reads 'paired' states"):
        Pretraining(RegionModel(), {"contrastive": Contrastive(), "itm": ITM(BOTH, after="main")}).bind(vocabulary())


def test_kinds_from_the_worker_and_from_the_device_stand_beside_each_other():
    """Edits come from the worker, similar pictures from the batch; each once beside its sample."""

    class Edits(DRAW):
        def tokenize(self, text: str, second: str | None = None):
            return tokens(9, seed=1000 + self.position)

    made = root(negatives={"edit": 1.0, "similar_image": 1.0}, both="each")
    meta = {"caption_index": 0, "edits": [[{"text": "an edit", "kind": "x"}]]}
    examples = [shown(i, "image")._replace(meta=meta) for i in range(6)]
    preparer = made.objectives["itm"].preparer()
    values = [preparer.prepare(one, Edits(one.position)) for one in examples]
    batch = batched(examples)._replace(targets={"itm": preparer.collate(values, COLLATE)})
    out = made.corrupt(batch)["itm"]
    assert out.targets["itm"].kinds_B.tolist() == [0] * 6 + [KINDS.index("edit"), IMAGE] * 6
    for i in range(6):
        row = 6 + 2 * i
        assert tuple(out.text.ids_BT[row, : out.text.lengths[row]].tolist()) == tokens(9, seed=1000 + i).ids
        assert tuple(out.text.ids_BT[row + 1, : out.text.lengths[row + 1]].tolist()) == examples[i].text.ids
