"""ITM: exact halves, what the negatives are, the swapped batch, polarity."""

import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from helpers.objectives import Drawer, Stack, batch_of, example, fused, picture, spec, tokens, vocabulary

from mmpretrain.objectives.itm import ITM, KINDS, Swap
from mmpretrain.types import Visual

N = 400


def prepared(objective: ITM, examples, n: int = N) -> list[Swap]:
    preparer = objective.preparer()
    return [preparer.prepare(e, Drawer(e.position, n)) for e in examples]


def bound(**arguments) -> ITM:
    torch.manual_seed(0)
    objective = ITM(**arguments)
    objective.bind(spec(), vocabulary())
    return objective


def corrupted(objective: ITM, examples, n: int = N):
    swaps = prepared(objective, examples, n)
    batch = batch_of(examples)
    batch = batch._replace(targets={"itm": objective.preparer().collate(swaps, Stack())})
    return swaps, batch, objective.corrupt(batch, {})


@pytest.mark.parametrize("negatives", [None, {"text": 1.0}, {"image": 1.0, "text": 1.0, "edit": 2.0}])
def test_exactly_half_are_positive_and_negatives_differ(negatives):
    objective, examples = ITM(negatives), [example(i) for i in range(N)]
    swaps = prepared(objective, examples)
    for i in range(0, N, 2):
        assert [s.kind == 0 for s in swaps[i : i + 2]].count(True) == 1
    first = sum(s.kind == 0 for s in swaps[::2])
    assert abs(first - N / 4) <= 4 * (N / 2 * 0.25) ** 0.5  # which of the two is a fair coin
    for e, swap in zip(examples, swaps, strict=True):
        assert (swap.image is None and swap.text is None) == (swap.kind == 0)
        assert swap.image is None or not torch.equal(swap.image, e.image)
        assert swap.text is None or swap.text.ids != e.text.ids


def test_kinds_follow_their_weights_and_image_negatives_are_uniform():
    weights = {"image": 1.0, "text": 2.0, "edit": 5.0}
    meta = {"caption_index": 1, "edits": [[{"text": "wrong caption", "kind": "x"}], [{"text": f"edit {j}", "kind": "y"} for j in range(4)]]}
    preparer, n = ITM(weights).preparer(), 8000
    kinds, edits, images = Counter(), Counter(), Counter()
    for position in range(n):
        # every position holds the same example, so that only the draws differ
        swap = preparer.prepare(example(0, **meta), Drawer(position, 50, seed=7))
        kinds[KINDS[swap.kind]] += 1
        if swap.kind == KINDS.index("edit"):
            edits[swap.text.ids] += 1
        if swap.kind == KINDS.index("image"):
            images[swap.image.numpy().tobytes()] += 1
    assert kinds["matched"] == n // 2
    expected = {k: w / 8 * n / 2 for k, w in weights.items()}
    assert sum((kinds[k] - e) ** 2 / e for k, e in expected.items()) < 16  # chi-square, 2 degrees of freedom
    assert len(edits) == 4 and sum((c - kinds["edit"] / 4) ** 2 / (kinds["edit"] / 4) for c in edits.values()) < 20
    counts = np.array(list(images.values()))
    mean = kinds["image"] / 49
    assert ((counts - mean) ** 2 / mean).sum() + (49 - len(counts)) * mean < 48 + 4 * (2 * 48) ** 0.5


def test_edits_belong_to_the_caption_drawn_and_fall_back_to_texts():
    preparer = ITM({"edit": 1.0}).preparer()
    edits = [[{"text": "of caption 0", "kind": "colour"}], []]
    for index, kind in ((0, "edit"), (1, "text"), (None, "text")):
        meta = {"edits": edits, "caption_index": index}
        swaps = [preparer.prepare(example(i, **meta), Drawer(i, N)) for i in range(20)]
        assert {KINDS[s.kind] for s in swaps} == {"matched", kind}
        if kind == "edit":
            assert {s.text for s in swaps if s.kind} == {Drawer(0, N).tokenize("of caption 0")}


def test_labels_of_the_data_are_respected():
    examples = [example(i, matched=i % 3 > 0) for i in range(60)]
    for negatives in ({}, {"image": 1.0}):
        swaps, _, out = corrupted(ITM(negatives), examples)
        assert all(KINDS[s.kind] == "label" and s.image is None and s.text is None for s in swaps[::3])
        assert not out.matched_B[::3].any()
        if not negatives:
            assert torch.equal(out.matched_B, batch_of(examples).matched_B)


def test_labelled_statements_keep_their_picture_and_text():
    """A true statement may hold of another picture as well, so that no other one is drawn."""
    examples = [example(i, matched=i % 3 > 0, statement_index=0) for i in range(60)]
    swaps, batch, out = corrupted(ITM({"image": 1.0, "text": 1.0}), examples)
    assert all(s.image is None and s.text is None for s in swaps)
    assert torch.equal(out.matched_B, batch_of(examples).matched_B)
    assert torch.equal(out.image.pixels_BCHW, batch.image.pixels_BCHW)


@pytest.mark.parametrize("negatives", [{"image": 1.0}, {"text": 1.0}, {"image": 1.0, "text": 1.0, "edit": 1.0}])
def test_swapped_batch_equals_one_made_of_the_swapped_samples(negatives):
    meta = {"caption_index": 0, "edits": [[{"text": "an edit", "kind": "x"}]]}
    examples = [example(i, **meta) for i in range(17)]
    objective = bound(negatives=negatives)
    swaps, batch, out = corrupted(objective, examples)
    wanted = batch_of([e._replace(image=e.image if s.image is None else s.image, text=s.text or e.text) for e, s in zip(examples, swaps)])
    assert torch.equal(out.text.ids_BT, wanted.text.ids_BT) and torch.equal(out.text.words_BT, wanted.text.words_BT)
    assert out.text.lengths == wanted.text.lengths and out.image.sizes == wanted.image.sizes
    assert torch.equal(out.image.pixels_BCHW, wanted.image.pixels_BCHW) and out.image.mean == batch.image.mean
    assert out.matched_B.tolist() == [s.kind == 0 for s in swaps]
    again = batch_of(examples)  # the input batch is left alone: other views read it
    assert torch.equal(batch.text.ids_BT, again.text.ids_BT) and torch.equal(batch.image.pixels_BCHW, again.image.pixels_BCHW)


def test_swaps_store_only_the_replaced_rows():
    swaps, batch, _ = corrupted(ITM(), [example(i) for i in range(20)])
    target = batch.targets["itm"]
    assert len(target.image_rows) == 10 == target.images.pixels_BCHW.shape[0] and target.texts is None
    assert target.kinds_B.tolist() == [s.kind for s in swaps]


def test_preparer_is_small_and_pickles():
    objective = bound(negatives={"image": 3.0, "edit": 1.0})
    data = pickle.dumps(objective.preparer())
    assert len(data) < 300 and pickle.loads(data) == objective.preparer()  # noqa: S301  (our own bytes)


def test_loss_and_stats_against_numpy_and_one_means_match():
    objective = bound(negatives={"image": 1.0, "text": 1.0})
    examples = [example(i, matched=i % 5 > 0) for i in range(20)]
    swaps, _, out = corrupted(objective, examples)
    hidden = fused(out.text.lengths, (3,) * 20)
    score = objective(hidden, out)
    weight, bias = (p.detach().numpy().astype(np.float64) for p in (objective.head.weight, objective.head.bias))
    logits = hidden.pooled_BD.numpy() @ weight.T + bias
    labels = np.array([s.kind == 0 for s in swaps]).astype(int)
    loss = (np.log(np.exp(logits).sum(1)) - logits[np.arange(20), labels]).sum()
    assert score.sum.item() == pytest.approx(loss, rel=1e-6) and score.count.item() == 20
    np.testing.assert_allclose(objective.score(hidden).detach().numpy(), logits[:, 1] - logits[:, 0], atol=1e-6)
    right, kinds = logits.argmax(1) == labels, np.array([s.kind for s in swaps])
    assert score.stats["accuracy"][0].item() == right.sum()
    for name in ("matched", "label", "image", "text"):
        of = kinds == KINDS.index(name)
        assert tuple(v.item() for v in score.stats[f"accuracy_{name}"]) == ((right & of).sum(), of.sum())
    with torch.no_grad():  # a head that always says 1 is right for matched pairs only
        objective.head.weight.zero_()
        objective.head.bias.copy_(torch.tensor([-9.0, 9.0]))
    stats = objective(hidden, out).stats
    assert stats["accuracy_matched"][0] == stats["accuracy_matched"][1] > 0 and stats["accuracy_image"][0] == 0
    assert (objective.score(hidden) > 0).all()


def test_head_starts_as_in_vilt_also_after_meta():
    with torch.device("meta"):
        objective = ITM()
        objective.bind(spec(width=2000), None)
    objective.to_empty(device="cpu")
    for module in objective.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert objective.head.weight.std().item() == pytest.approx(0.02, rel=0.1) and not objective.head.bias.any()


def test_clear_errors():
    with pytest.raises(ValueError, match="unknown kind of negatives texts"):
        ITM({"texts": 1.0})
    with pytest.raises(ValueError, match="not all zero"):
        ITM({"text": 0.0})
    with pytest.raises(ValueError, match="its preparer must run"):
        bound().corrupt(batch_of([example(0)]), {})
    with pytest.raises(ValueError, match="has no image"):
        prepared(ITM(), [example(i)._replace(image=None) for i in range(2)])

    class Same(Drawer):
        def other_visual(self, k):
            return "other key", Visual(picture(3))

        def other_text(self, k):
            return "other key", tokens(4 + 3 % 5, seed=3)

    for kind in ("image", "text"):
        with pytest.raises(ValueError, match="draws gave no"):
            for position in (2, 3):
                ITM({kind: 1.0}).preparer().prepare(example(3), Same(position, N))


@pytest.mark.parametrize("negatives", [{"image": 1.0}, {"text": 1.0}, {"image": 1.0, "text": 1.0, "edit": 1.0}])
def test_both_puts_every_negative_beside_its_sample(negatives):
    meta = {"caption_index": 0, "edits": [[{"text": "an edit", "kind": "x"}]]}
    examples = [example(i, matched=i % 5 > 0, **meta) for i in range(20)]
    objective = bound(negatives=negatives, both=True)
    swaps, batch, out = corrupted(objective, examples)
    replaced = [i for i in range(20) if i % 5]
    assert out.keys == (*batch.keys, *(batch.keys[i] for i in replaced))
    assert out.matched_B.tolist() == [i % 5 > 0 for i in range(20)] + [False] * len(replaced)
    assert torch.equal(out.draw_keys_B[20:], batch.draw_keys_B[replaced])
    assert torch.equal(out.image.pixels_BCHW[:20], batch.image.pixels_BCHW) and out.text.lengths[:20] == batch.text.lengths
    for place, i in enumerate(replaced, 20):
        swap, ids = swaps[i], tuple(out.text.ids_BT[place, : out.text.lengths[place]].tolist())
        assert ids == (swap.text or examples[i].text).ids
        height, width = out.image.sizes[place]
        pixels = out.image.pixels_BCHW[place, :, :height, :width]
        assert torch.equal(pixels, examples[i].image if swap.image is None else swap.image)
    assert objective.count(out).item() == out.size
    torch.manual_seed(1)
    score = objective(fused(out.text.lengths, (3,) * out.size), out)
    assert score.stats["accuracy"][1] == out.size and score.stats["accuracy_matched"][1] == len(replaced)
    assert sum(int(score.stats[f"accuracy_{kind}"][1]) for kind in negatives) == len(replaced)


def test_a_fifth_of_the_negatives_is_hard():
    """InterBERT: half of the pairs are negatives, a fifth of these hard; a text without similar ones gets any other."""
    preparer, n = ITM({"text": 0.8, "hard": 0.2}).preparer(), 10_000
    assert preparer.wants == ("neighbours",) and not ITM({"text": 1.0}).preparer().wants
    kinds, followers = Counter(), Counter()
    for position in range(n):
        swap = preparer.prepare(example(position), Drawer(position, n, seed=3))
        kinds[KINDS[swap.kind]] += 1
        if KINDS[swap.kind] == "hard":
            followers[[tokens(4 + j % 5, seed=j).ids for j in range(position + 1, position + 4)].index(swap.text.ids)] += 1
    assert kinds["matched"] == n // 2
    assert abs(kinds["hard"] - 0.1 * n) < 4 * (n / 2 * 0.2 * 0.8) ** 0.5 and kinds["hard"] + kinds["text"] == n // 2
    mean = kinds["hard"] / 3
    assert sum((count - mean) ** 2 / mean for count in followers.values()) < 14  # chi-square, 2 degrees of freedom
    last = {KINDS[ITM({"hard": 1.0}).preparer().prepare(example(9), Drawer(9, 10, seed)).kind] for seed in range(20)}
    assert last == {"matched", "text"}
    swaps, _, out = corrupted(bound(negatives={"hard": 1.0}), [example(i) for i in range(20)])
    stats = bound(negatives={"hard": 1.0})(fused(out.text.lengths, (3,) * 20), out).stats
    assert stats["accuracy_hard"][1] == sum(KINDS[s.kind] == "hard" for s in swaps) > 0 and "accuracy_text" in stats
