"""MLM: rates, what may be masked, independence of the layout, loss against NumPy."""

import math

import numpy as np
import pytest
import torch
from helpers.objectives import CLS, MASK, SEP, Stack, batch_of, example, keys, picture, ragged, spec, tokens, vocabulary

from mmpretrain.nn.hidden import Fused
from mmpretrain.nn.ragged import Layout
from mmpretrain.objectives.itm import ITM
from mmpretrain.objectives.mlm import MLM
from mmpretrain.objectives.swaps import Swaps
from mmpretrain.objectives.text_masking import Spans
from mmpretrain.types import Batch, Text


def bound(size: int = 40, extra: tuple[int, ...] = (), **arguments) -> MLM:
    torch.manual_seed(0)
    objective = MLM(**arguments)
    objective.bind(spec(vocab=size), vocabulary(size, extra))
    return objective


def texts(n: int, length: int, size: int = 40, vary: bool = False) -> Batch:
    text = Stack().text([tokens(length - (i % 7 if vary else 0), seed=i, size=size) for i in range(n)])
    return Batch(tuple(f"k{i}" for i in range(n)), keys(n), text)


def hidden_for(batch: Batch, requires_grad: bool = False) -> Fused:
    states = ragged(batch.text.lengths)
    states.x_ND.requires_grad_(requires_grad)
    return Fused(states, None, None)


def within_four_sigma(hits: int, n: int, p: float) -> bool:
    return abs(hits - n * p) <= 4 * (n * p * (1 - p)) ** 0.5


def test_rates_at_a_hundred_thousand_tokens():
    batch, size = texts(500, 202, size=3000), 3000
    out = bound(size).corrupt(batch, {})
    target = out.targets["mlm"]
    chosen, n = target.rows_R.numel(), 100_000
    assert target.maskable.item() == n
    assert within_four_sigma(chosen, n, 0.15)
    now = out.text.ids_BT.reshape(-1)[target.rows_R]
    assert within_four_sigma(int((now == MASK).sum()), chosen, 0.8)
    share_random = 0.1 * (1 - 1 / (size - 5))  # a random token may be the old one
    assert within_four_sigma(int(((now != MASK) & (now != target.labels_R)).sum()), chosen, share_random)
    assert within_four_sigma(int((now == target.labels_R).sum()), chosen, 0.2 - share_random)


def test_special_tokens_are_never_masked_and_never_drawn():
    extra = (9, 23, 39)
    out = bound(extra=extra, prob=1.0, mask=0.0, random=1.0).corrupt(texts(1000, 34, vary=True), {})
    before = texts(1000, 34, vary=True).text.ids_BT
    special = torch.isin(before, torch.tensor((0, 1, 2, 3, 4, *extra)))
    assert torch.equal(out.text.ids_BT[special], before[special])
    drawn = np.bincount(out.text.ids_BT[~special].numpy(), minlength=40)
    assert all(drawn[i] == 0 for i in (0, 1, 2, 3, 4, *extra))
    ordinary = np.delete(drawn, [0, 1, 2, 3, 4, *extra])
    expected = ordinary.sum() / len(ordinary)
    assert ((ordinary - expected) ** 2 / expected).sum() < 31 + 4 * (2 * 31) ** 0.5  # chi-square, 31 degrees of freedom
    assert (out.text.ids_BT[:, 0] == CLS).all() and all(out.text.ids_BT[i, n - 1] == SEP for i, n in enumerate(out.text.lengths))


@pytest.mark.parametrize("whole_word", [False, True])
def test_same_corruption_whole_in_parts_and_permuted(whole_word):
    objective, n = bound(whole_word=whole_word, at_least_one=True), 32
    batch = texts(n, 20, vary=True)
    whole = objective.corrupt(batch, {}).text.ids_BT
    rng_before = torch.get_rng_state()
    for rows in (torch.arange(0, 5), torch.arange(6, 32, 7), torch.randperm(n, generator=torch.Generator().manual_seed(3))):
        lengths = tuple(batch.text.lengths[i] for i in rows)
        part = batch.text._replace(
            ids_BT=batch.text.ids_BT[rows, : max(lengths)], lengths=lengths, words_BT=batch.text.words_BT[rows, : max(lengths)]
        )
        out = objective.corrupt(batch._replace(keys=tuple(batch.keys[i] for i in rows), draw_keys_B=batch.draw_keys_B[rows], text=part), {})
        assert torch.equal(out.text.ids_BT, whole[rows, : max(lengths)])
    assert torch.equal(rng_before, torch.get_rng_state())  # the global generator is not touched


def test_whole_words_are_chosen_together():
    batch = texts(400, 30, vary=True)
    target = bound(whole_word=True).corrupt(batch, {}).targets["mlm"]
    layout = Layout(batch.text.lengths)
    chosen = torch.zeros(layout.total, dtype=torch.bool)
    chosen[target.rows_R] = True
    chosen_BT, total, hits = layout.pad(chosen), 0, 0
    for row, words in enumerate(batch.text.words_BT):
        for word in range(int(words.max()) + 1):
            picked = chosen_BT[row][: len(words)][words[: chosen_BT.shape[1]] == word]
            assert picked.all() or not picked.any()
            total, hits = total + 1, hits + int(picked.any())
    assert within_four_sigma(hits, total, 0.15)


def test_one_fate_for_all_pieces_of_a_word():
    batch = texts(500, 102, size=3000)
    words = torch.full((500, 102), -1)
    words[:, 1:101] = torch.arange(100) // 2  # 50 words of two pieces
    batch = batch._replace(text=batch.text._replace(words_BT=words))
    for action in ("piece", "word"):
        out = bound(3000, whole_word=True, action=action).corrupt(batch, {})
        target, now = out.targets["mlm"], out.text.ids_BT.reshape(-1)
        masked, same = (x.view(-1, 2) for x in (now[target.rows_R] == MASK, now[target.rows_R] == target.labels_R))
        alike, n = (masked[:, 0] == masked[:, 1]).sum(), len(masked)
        assert within_four_sigma(int(alike), n, 0.68) if action == "piece" else alike == n
        assert within_four_sigma(int(masked[:, 0].sum()), n, 0.8)
        pairs = now[target.rows_R].view(-1, 2)[~masked.any(1) & ~same.any(1)]
        assert (pairs[:, 0] != pairs[:, 1]).float().mean() > 0.9  # another token for each piece
        assert within_four_sigma(int(same.all(1).sum()), n, 0.1 if action == "word" else 0.01)
    with pytest.raises(ValueError, match="unit is not piece"):
        MLM(action="word")


def test_at_least_one_and_none():
    batch = texts(300, 5)
    free, forced = (bound(at_least_one=flag).corrupt(batch, {}).targets["mlm"].rows_R // 5 for flag in (False, True))
    assert len(set(free.tolist())) < 300 and set(free.tolist()) < set(forced.tolist()) and set(forced.tolist()) == set(range(300))


def test_texts_that_are_not_true_are_masked_and_do_not_count():
    batch = batch_of([example(i, matched=i % 2 == 0) for i in range(20)])
    strict, free = bound(), bound(only_if_matched=False)
    out, all_of_it = strict.corrupt(batch, {}), free.corrupt(batch, {})
    assert torch.equal(out.text.ids_BT, all_of_it.text.ids_BT) and (out.text.ids_BT[1::2] == MASK).any()
    sample_N = Layout(batch.text.lengths).sample_N(torch.device("cpu"))
    counted, chosen = out.targets["mlm"].rows_R, all_of_it.targets["mlm"].rows_R
    assert torch.equal(counted, chosen[sample_N[chosen] % 2 == 0]) and 0 < len(counted) < len(chosen)
    assert strict.count(out) == len(counted) and free.count(all_of_it) == len(chosen)
    hidden = hidden_for(batch, requires_grad=True)
    score = strict(hidden, out)
    assert score.stats["masked_share"][1] == sum(n - 2 for n in batch.text.lengths[::2])
    score.sum.backward()
    seen = hidden.text.x_ND.grad.any(1).nonzero().squeeze(1)
    assert torch.equal(seen, counted)
    none = strict.corrupt(batch._replace(matched_B=torch.zeros(20, dtype=torch.bool)), {})
    assert torch.equal(none.text.ids_BT, out.text.ids_BT) and strict.count(none) == 0


def test_the_masks_of_a_view_with_itm_do_not_tell_which_pairs_are_true():
    """In one view with ITM (Unicoder-VL, ImageBERT) as many words of false pairs are masked as of true ones."""
    n, itm, mlm = 3000, ITM(view="main"), bound(size=400)
    batch = texts(n, 22, size=400)._replace(image=Stack().pixels([picture(0)] * n), matched_B=torch.ones(n, dtype=torch.bool))
    rows = tuple(range(0, n, 2))
    itm.name = "itm"
    swaps = Swaps(torch.tensor([2, 0] * (n // 2)), rows, Stack().pixels([picture(i) for i in rows]))
    out = mlm.corrupt(itm.corrupt(batch._replace(targets={"itm": swaps}), {}), {})
    masked_B = (out.text.ids_BT == MASK).sum(1)
    for false in (0, 1):
        assert within_four_sigma(int(masked_B[false::2].sum()), n // 2 * 20, 0.15 * 0.8)
    assert (out.targets["mlm"].rows_R // 22 % 2 == 1).all() and within_four_sigma(int(mlm.count(out)), n // 2 * 20, 0.15)
    with pytest.raises(ValueError, match="itm: the text is masked already; name it before"):
        itm.corrupt(mlm.corrupt(batch, {})._replace(targets={"itm": swaps, **mlm.corrupt(batch, {}).targets}), {})


def test_loss_against_numpy():
    objective, batch = bound(), texts(6, 20, vary=True)
    out = objective.corrupt(batch, {})
    hidden = hidden_for(batch)
    score = objective(hidden, out)
    head = {name: p.detach().numpy().astype(np.float64) for name, p in objective.head.named_parameters()}
    rows = hidden.text.x_ND.numpy().astype(np.float64)[out.targets["mlm"].rows_R.numpy()]
    x = rows @ head["dense.weight"].T + head["dense.bias"]
    x = 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-12) * head["norm.weight"] + head["norm.bias"]
    logits = x @ objective.head.weight.detach().numpy().T.astype(np.float64) + head["bias"]
    labels = out.targets["mlm"].labels_R.numpy()
    loss = (np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]).sum()
    assert score.sum.item() == pytest.approx(loss, rel=1e-5)
    assert score.count.item() == len(labels) == objective.count(out).item()
    right, of = score.stats["accuracy"]
    assert (right.item(), of.item()) == ((logits.argmax(1) == labels).sum(), len(labels))
    assert score.stats["masked_share"][1].item() == sum(batch.text.lengths) - 2 * batch.size


def test_nothing_masked_gives_zero_and_zero_gradients():
    objective, batch = bound(prob=1e-9), texts(3, 6)
    out = objective.corrupt(batch, {})
    hidden = hidden_for(batch, requires_grad=True)
    score = objective(hidden, out)
    assert score.sum.item() == 0 and score.count.item() == 0
    score.sum.backward()
    assert not hidden.text.x_ND.grad.any() and all(p.grad is not None and not p.grad.any() for p in objective.parameters())


def test_tie_is_the_same_parameter_and_a_free_decoder_is_not():
    specification = spec()
    tied, free = MLM(tied=True), MLM(tied=False)
    tied.bind(specification, None)
    free.bind(specification, None)
    assert tied.head.weight is specification.token_table.weight
    assert free.head.weight is not specification.token_table.weight and free.head.weight.shape == (40, 8)
    head = tied.head
    tied.bind(specification, vocabulary())
    assert tied.head is head and tied.vocabulary == vocabulary()


def test_predictions_for_panels():
    objective, batch = bound(prob=0.5), texts(4, 12, vary=True)
    out = objective.corrupt(batch, {})
    guesses = objective.predict(hidden_for(batch), out, k=3)
    assert len(guesses) == 4 and sum(map(len, guesses)) == objective.count(out).item()
    for sample, row in enumerate(guesses):
        for guess in row:
            assert guess.label == batch.text.ids_BT[sample, guess.slot] and len(guess.ids) == 3
            assert list(guess.probabilities) == sorted(guess.probabilities, reverse=True) and sum(guess.probabilities) <= 1


def test_clear_errors():
    with pytest.raises(ValueError, match="prob"):
        MLM(prob=0)
    with pytest.raises(ValueError, match="shares"):
        MLM(mask=0.9, random=0.2)
    with pytest.raises(ValueError, match="no mask token"):
        MLM().bind(spec(), vocabulary()._replace(mask=None))
    with pytest.raises(ValueError, match="40 tokens, the model only 30"):
        MLM().bind(spec(vocab=30), vocabulary())
    with pytest.raises(ValueError, match="kind 'fused'"):
        MLM().bind(spec(kinds=("paired",)), vocabulary())
    with pytest.raises(ValueError, match="no text"):
        bound().corrupt(Batch(("a",), keys(1)), {})
    with pytest.raises(ValueError, match="not corrupted"):
        bound().count(texts(2, 5))
    with pytest.raises(ValueError, match="words_BT"):
        batch = texts(2, 5)
        bound(whole_word=True).corrupt(batch._replace(text=batch.text._replace(words_BT=None)), {})


def test_content_masks_no_function_word():
    """Of [CLS] a red star . [SEP], only "red" and "star" can be chosen, and the share that is masked is theirs."""
    a, red, star, stop = 20, 21, 22, 23
    words = vocabulary()._replace(function=(a, stop))
    ids = torch.tensor([[CLS, a, red, star, stop, SEP]] * 64)
    batch = Batch(("x",) * 64, keys(64), Text(ids, (6,) * 64))
    seeing, blind = MLM(prob=0.5, content=True), MLM(prob=0.5)
    for objective in (seeing, blind):
        objective.bind(spec(vocab=40), words)
    made = seeing.corrupt(batch, {})
    target = made.targets["mlm"]
    assert set(target.labels_R.tolist()) == {red, star} and target.maskable == 128
    assert torch.equal(made.text.ids_BT[:, [0, 1, 4, 5]], ids[:, [0, 1, 4, 5]])
    plain = blind.corrupt(batch, {}).targets["mlm"]
    assert set(plain.labels_R.tolist()) == {a, red, star, stop} and plain.maskable == 256


@pytest.mark.parametrize(("unit", "prob", "share"), [("span", 0.1, 0.188), ("geometric", 0.15, 0.15)])
def test_spans_of_words(unit, prob, share):
    """Shares of whole texts: that of InterBERT's spans is a little smaller at their beginning."""
    batch = texts(600, 202, size=3000)
    out = bound(3000, prob=prob, unit=unit).corrupt(batch, {})
    target, score = out.targets["mlm"], bound(3000).corrupt(batch, {}).targets["mlm"]
    assert target.maskable == score.maskable == 120_000
    assert target.rows_R.numel() / 120_000 == pytest.approx(share, abs=0.008)
    layout = Layout(batch.text.lengths)
    chosen_BT = layout.pad(torch.zeros(layout.total, dtype=torch.bool).index_fill(0, target.rows_R, True))
    for words, chosen in zip(batch.text.words_BT[:50], chosen_BT[:50]):
        assert set(words[chosen].tolist()).isdisjoint(words[~chosen].tolist())
    one = bound(3000, prob=prob, unit=unit, spans=Spans(further=(0,), longest=1)).corrupt(batch, {}).targets["mlm"]
    expected = 0.1 if unit == "span" else 0.15  # words alone
    assert one.rows_R.numel() / 120_000 == pytest.approx(expected, abs=0.008)


def test_one_text_of_a_pair_is_masked():
    batch = texts(50, 20)
    segments_BT = (torch.arange(20) > 8).long().repeat(50, 1)
    pair = batch._replace(text=batch.text._replace(segments_BT=segments_BT))
    for segment, slots in ((0, set(range(1, 9))), (1, set(range(9, 19))), (None, set(range(1, 19)))):
        target = bound(prob=0.5, segment=segment).corrupt(pair, {}).targets["mlm"]
        assert set((target.rows_R % 20).tolist()) == slots and target.maskable == 50 * len(slots)
    assert bound(prob=0.5, segment=1).corrupt(batch, {}).targets["mlm"].rows_R.numel() == 0  # one text alone


def test_a_head_of_another_objective():
    specification, objectives = spec(), torch.nn.ModuleDict({"mlm": MLM(), "again": MLM(head_of="mlm", view="again")})
    for name, one in objectives.items():
        one.name = name
        one.bind(specification, vocabulary())
    for one in objectives.values():
        one.connect(objectives)
    batch = texts(4, 12)
    outs = {name: one.corrupt(batch, {}) for name, one in objectives.items()}
    hidden = hidden_for(batch)
    own = objectives["mlm"].head(hidden.text.x_ND[outs["again"].targets["again"].rows_R])
    assert torch.equal(objectives["again"].logits(hidden, outs["again"]), own)
    assert not list(objectives["again"].parameters()) and all(name.startswith("mlm.") for name in objectives.state_dict())
    for head_of in ("none", "again", "self"):
        lost = MLM(head_of=head_of)
        with pytest.raises(ValueError, match="must name an objective"):
            lost.connect({**objectives, "self": lost})


def test_units_are_checked():
    assert MLM(whole_word=True).unit == "word" and MLM(unit="word").whole_word
    for wrong in ({"unit": "letter"}, {"segment": 2}, {"whole_word": True, "unit": "span"}):
        with pytest.raises(ValueError, match="MLM"):
            MLM(**wrong)
