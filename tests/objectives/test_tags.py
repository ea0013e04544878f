"""Oscar's contrast: rates, what is exchanged, polarity, masked words in the same view."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from helpers.objectives import fused, spec, vocabulary
from helpers.pairs import PairDrawer, PairStack, Told, batch_of, example, words

from mmpretrain.objectives.mlm import MLM
from mmpretrain.objectives.tags import KINDS, RELEASED, TagContrast

THINGS = ("dog", "cat", "horse", "mountain", "bicycle", "tree")
SETS = [" ".join(THINGS[j] for j in {i % 6, (i // 6) % 6, (2 * i + 1) % 6}) for i in range(60)]
TOLD = [Told((f"caption {i} of it", f"another caption {i}"), tags) for i, tags in enumerate(SETS)]


def prepared(objective: TagContrast, n: int, told=TOLD, **options):
    return [objective.preparer().prepare(example(i % len(told), told[i % len(told)], **options), _drawer(i, told)) for i in range(n)]


def _drawer(i: int, told=TOLD) -> PairDrawer:
    return PairDrawer(i, told, own=i % len(told))


def bound(**options) -> TagContrast:
    torch.manual_seed(0)
    objective = TagContrast(**options)
    objective.name = "tags"
    objective.bind(spec(vocab=400), vocabulary(400))
    return objective


def batch_for(objective: TagContrast, told=TOLD, n: int = 40, **options):
    examples = [example(i, told[i], **options) for i in range(n)]
    swaps = [objective.preparer().prepare(e, _drawer(i, told)) for i, e in enumerate(examples)]
    target = objective.preparer().collate(swaps, PairStack())
    return examples, swaps, batch_of(examples)._replace(targets={"tags": target})


@pytest.mark.parametrize(("options", "probs"), [
    ({}, (0.5, 0.5)), ({"classes": 3}, (0.25, 0.5, 0.25)), ({"classes": 3, "probs": (0.2, 0.7, 0.1)}, (0.7, 0.2, 0.1)),
])  # fmt: skip
def test_rates_of_classes(options, probs):
    n = 8000
    kinds = Counter(swap.kind for swap in prepared(TagContrast(**options), n))
    expected = {kind: n * p for kind, p in enumerate(probs)}
    assert set(kinds) == set(expected) and sum((kinds[k] - e) ** 2 / e for k, e in expected.items()) < 16


@pytest.mark.parametrize("classes", [2, 3])
def test_what_is_exchanged(classes):
    for i, swap in enumerate(prepared(TagContrast(classes), 1000)):
        own, kind = TOLD[i % 60], KINDS[swap.kind]
        assert (swap.text is None) == (kind == "matched") and swap.image is None and swap.regions is None
        if kind == "tags":
            assert swap.text.text == own.captions[0] and sorted(swap.text.second.split()) != sorted(own.tags.split())
            assert swap.text.second in {told.tags for told in TOLD}
        elif kind == "caption":
            assert swap.text.second == own.tags and swap.text.text not in own.captions


def test_the_release_takes_captions_for_tags():
    texts = [swap.text for swap in prepared(TagContrast(negatives="any"), 4000) if swap.text is not None]
    captions = sum(text.second.startswith(("caption", "another")) for text in texts)
    assert abs(captions - len(texts) / 2) < 4 * (len(texts) / 4) ** 0.5 + 0.02 * len(texts)  # tags that are alike are drawn again


def test_wrong_tags_are_uniform_over_pictures_that_differ():
    told = [Told((f"c{i}",), f"tag{i}") for i in range(12)]
    seen = Counter()
    for position in range(12_000):
        swap = TagContrast().preparer().prepare(example(0, told[0]), PairDrawer(position, told, own=0))
        seen[swap.text.second if swap.text else ""] += 1
    wrong = np.array([seen[f"tag{i}"] for i in range(1, 12)])
    mean = (12_000 - seen[""]) / 11
    assert seen["tag0"] == 0 and ((wrong - mean) ** 2 / mean).sum() < 10 + 4 * 20**0.5


def test_batch_and_polarity():
    objective = bound(classes=3)
    examples, swaps, batch = batch_for(objective)
    out = objective.corrupt(batch, {})
    wanted = batch_of([e._replace(text=s.text or e.text) for e, s in zip(examples, swaps, strict=True)])
    assert torch.equal(out.text.ids_BT, wanted.text.ids_BT) and torch.equal(out.text.segments_BT, wanted.text.segments_BT)
    assert out.matched_B.tolist() == [KINDS[s.kind] == "matched" for s in swaps] and set(out.matched_B.tolist()) == {True, False}
    assert torch.equal(batch.text.ids_BT, batch_of(examples).text.ids_BT)
    with torch.no_grad():  # a head that always says 1 is right for intact texts only
        objective.head.weight.zero_()
        objective.head.bias.copy_(torch.tensor([-9.0, 9.0, -9.0]))
    hidden = fused(out.text.lengths, (3,) * 40)
    stats = objective(hidden, out).stats
    assert stats["accuracy_matched"][0] == stats["accuracy_matched"][1] > 0
    assert stats["accuracy_tags"][0] == stats["accuracy_caption"][0] == 0 < stats["accuracy_tags"][1]
    assert (objective.score(hidden) > 0).all()


@pytest.mark.parametrize("classes", [2, 3])
def test_loss_and_score_against_numpy(classes):
    objective = bound(classes=classes)
    _, swaps, batch = batch_for(objective)
    out = objective.corrupt(batch, {})
    hidden = fused(out.text.lengths, (3,) * 40)
    score = objective(hidden, out)
    weight, bias = (p.detach().numpy().astype(np.float64) for p in (objective.head.weight, objective.head.bias))
    assert weight.shape == (classes, 8)
    logits = hidden.pooled_BD.numpy() @ weight.T + bias
    labels = np.array([s.kind for s in swaps])
    loss = (np.log(np.exp(logits).sum(1)) - logits[np.arange(40), labels]).sum()
    assert score.sum.item() == pytest.approx(loss, rel=1e-6) and score.count == objective.count(out) == 40
    assert torch.equal(objective.logits(hidden, out), objective.head(hidden.pooled_BD))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(objective.score(hidden).detach().numpy(), np.log(p[:, 1] / (1 - p[:, 1])), atol=1e-5)


def test_heads_of_the_releases_are_permutations():
    """Oscar: 0 intact, 1 polluted. Oscar+: 0 intact, 1 wrong tags, 2 wrong caption."""
    for classes, names in ((2, ("matched", "tags")), (3, ("matched", "tags", "caption"))):
        assert tuple(KINDS[row] for row in RELEASED[classes]) == names and sorted(RELEASED[classes]) == list(range(classes))


def test_samples_without_tags_take_no_part():
    told = [Told(t.captions, t.tags if i % 3 else None) for i, t in enumerate(TOLD)]
    objective = bound()
    _, swaps, batch = batch_for(objective, told)
    out = objective.corrupt(batch, {})
    assert all(s.text is None and s.kind == -1 for s in swaps[::3]) and out.matched_B[::3].all()
    assert objective.count(out) == 40 - len(swaps[::3])
    hidden = fused(out.text.lengths, (3,) * 40)
    hidden = hidden._replace(pooled_BD=hidden.pooled_BD.clone().requires_grad_())
    objective(hidden, out).sum.backward()
    assert not hidden.pooled_BD.grad[::3].any() and hidden.pooled_BD.grad[1].any()
    none = [Told(t.captions) for t in TOLD]
    _, _, batch = batch_for(objective, none)
    out = objective.corrupt(batch, {})
    score = objective(fused(out.text.lengths, (3,) * 40), out)
    assert score.sum == 0 and score.count == 0
    score.sum.backward()


def test_texts_that_are_false_stay_as_they_are():
    assert {swap.kind for swap in prepared(TagContrast(), 50, matched=False)} == {-1}


@pytest.mark.parametrize("only_if_matched", [False, True])
def test_masked_words_see_the_exchanged_text(only_if_matched):
    objective, mlm = bound(), MLM(prob=1.0, mask=1.0, random=0.0, only_if_matched=only_if_matched)
    mlm.bind(spec(vocab=400), vocabulary(400))
    _, _, batch = batch_for(objective)
    exchanged = objective.corrupt(batch, {})
    out = mlm.corrupt(exchanged, {})
    assert all(bool((row == vocabulary(400).mask).any()) for row in out.text.ids_BT)  # masks must not tell which texts are intact
    samples = [i for i, n in enumerate(exchanged.text.lengths) for _ in range(n)]
    counted = {samples[row] for row in out.targets["mlm"].rows_R.tolist()}
    assert counted == {i for i, true in enumerate(exchanged.matched_B.tolist()) if true or not only_if_matched}
    packed = torch.cat([row[:n] for row, n in zip(exchanged.text.ids_BT, exchanged.text.lengths)])
    assert torch.equal(packed[out.targets["mlm"].rows_R], out.targets["mlm"].labels_R)
    with pytest.raises(ValueError, match="masked already"):
        objective.corrupt(mlm.corrupt(batch, {}), {})


def test_draws_do_not_depend_on_anything_else():
    first, again = prepared(TagContrast(3), 50), prepared(TagContrast(3), 50)
    assert [(a.kind, a.text) for a in first] == [(b.kind, b.text) for b in again]
    preparer = TagContrast(3).preparer()
    assert pickle.loads(pickle.dumps(preparer)) == preparer  # noqa: S301  (our own bytes)


def test_clear_errors():
    for wrong in ({"classes": 4}, {"negatives": "captions"}, {"probs": (0.5, 0.4)}, {"classes": 3, "probs": (0.5, 0.5)}):
        with pytest.raises(ValueError, match="TagContrast"):
            TagContrast(**wrong)
    same = [Told((f"c{i}",), "a b" if i % 2 else "b a") for i in range(10)]
    with pytest.raises(ValueError, match="no tags that differ"):
        prepared(TagContrast(), 20, same)
    with pytest.raises(ValueError, match="has no text"):
        TagContrast().preparer().prepare(example(0, TOLD[0])._replace(text=None), _drawer(0))
    with pytest.raises(ValueError, match="its preparer must run"):
        bound().corrupt(batch_of([example(0, TOLD[0])]), {})
    assert words("a", "b").segments == (0, 0, 0, 1, 1)
