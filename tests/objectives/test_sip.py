"""VisualBERT's sentence-image prediction: half of the second captions belong to the picture, and the label says which."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from helpers.objectives import fused, spec, vocabulary
from helpers.pairs import PairDrawer, PairStack, Told, batch_of, example

from mmpretrain.objectives.mlm import MLM
from mmpretrain.objectives.sip import KINDS, SIP
from mmpretrain.objectives.text_contrast import LEFT_OUT

TOLD = [Told(tuple(f"caption {j} of {i}" for j in range(5))) for i in range(30)]


def prepared(n: int, told=TOLD, **options):
    own = [i % len(told) for i in range(n)]
    return [SIP().preparer().prepare(example(k, told[k], **options), PairDrawer(i, told, own=k)) for i, k in enumerate(own)]


def bound() -> SIP:
    torch.manual_seed(0)
    objective = SIP()
    objective.bind(spec(vocab=400), vocabulary(400))
    return objective


def test_half_of_the_second_captions_are_true():
    n = 6000
    swaps = prepared(n, caption=2)
    true = sum(swap.kind for swap in swaps)
    assert abs(true - n / 2) < 4 * (n / 4) ** 0.5
    seconds = Counter()
    for i, swap in enumerate(swaps):
        own = TOLD[i % 30]
        assert swap.text.text == own.captions[2] and swap.text.second != own.captions[2]
        assert (swap.text.second in own.captions) == (KINDS[swap.kind] == "matched")
        if swap.kind:
            seconds[own.captions.index(swap.text.second)] += 1
    counts = np.array([seconds[j] for j in (0, 1, 3, 4)])
    assert ((counts - true / 4) ** 2 / (true / 4)).sum() < 20


class Small(PairDrawer):
    """With a tokenizer that knows no capitals."""

    def tokenize(self, text, second=None):
        return super().tokenize(text.lower(), second and second.lower())._replace(text=text, second=second)

    def other_text(self, k):
        key, found = super().other_text(k)
        return key, self.tokenize(found.text)


def test_captions_that_read_alike_are_the_same():
    told = [Told(("a dog", "A Dog", "two cats")), Told(("a DOG", "Two cats")), Told(("a red bus", "A Dog"))]
    swaps = [SIP().preparer().prepare(example(0, told[0]), Small(i, told, own=0)) for i in range(200)]
    assert {(KINDS[swap.kind], swap.text.second) for swap in swaps} == {("matched", "two cats"), ("other", "a red bus")}
    assert SIP().preparer().prepare(example(0, Told(("a dog", "A Dog"))), Small(0, told)).kind == LEFT_OUT


def test_batch_and_polarity():
    """1 means that the second caption belongs to the picture."""
    objective, examples = bound(), [example(i, TOLD[i]) for i in range(30)]
    swaps = [objective.preparer().prepare(e, PairDrawer(i, TOLD)) for i, e in enumerate(examples)]
    batch = batch_of(examples)._replace(targets={"sip": objective.preparer().collate(swaps, PairStack())})
    out = objective.corrupt(batch, {})
    assert torch.equal(out.text.ids_BT, PairStack().text([s.text for s in swaps]).ids_BT) and out.text.segments_BT.any(1).all()
    assert out.matched_B.long().tolist() == [s.kind for s in swaps]
    hidden = fused(out.text.lengths, (3,) * 30)
    with torch.no_grad():
        objective.head.weight.zero_()
        objective.head.bias.copy_(torch.tensor([-9.0, 9.0]))
    stats = objective(hidden, out).stats
    assert stats["accuracy_matched"][0] == stats["accuracy_matched"][1] > 0 and stats["accuracy_other"][0] == 0
    mlm = MLM(prob=1.0, mask=1.0, random=0.0, only_if_matched=False)
    mlm.bind(spec(vocab=400), vocabulary(400))
    masked = mlm.corrupt(out, {}).text
    both = [(masked.segments_BT[masked.ids_BT == vocabulary().mask] == segment).any() for segment in (0, 1)]
    assert all(both) and mlm.corrupt(out, {}).targets["mlm"].maskable == sum(out.text.lengths) - 3 * 30


def test_pictures_with_one_caption_take_no_part():
    told = [Told(t.captions[:1] if i % 2 else t.captions) for i, t in enumerate(TOLD)]
    swaps = prepared(30, told)
    assert all((swap.kind == -1 and swap.text is None) == (i % 2 == 1) for i, swap in enumerate(swaps))
    twice = [Told(("the same", "the same")) for _ in range(4)]
    assert {swap.kind for swap in prepared(8, twice)} == {-1}
    assert {swap.kind for swap in prepared(8, matched=False)} == {-1}


def test_clear_errors():
    with pytest.raises(ValueError, match="a pair already"):
        prepared(3, [Told(t.captions, "dog") for t in TOLD])
    with pytest.raises(ValueError, match="has no text"):
        SIP().preparer().prepare(example(0, TOLD[0])._replace(text=None), PairDrawer(0, TOLD))
    few = [Told(("a", "b")), Told(("a", "b"))]
    with pytest.raises(ValueError, match="no caption that"):
        prepared(40, few)
    assert SIP().preparer().wants == ("captions", "pair")
