"""Next words and codes: counts, weights, start tokens, paddings, dropped captions, what the heads start from, means over any layout."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import dense_dalle
from helpers.dense_dalle import CODES, GRID, LENGTHS, POSITIONS, VOCAB, batch

from mmpretrain.objectives.next_token import IGNORED, NextCode, NextText
from mmpretrain.train.pretraining import Pretraining
from mmpretrain.train.step import plain
from mmpretrain.types import Batch, CodeBatch, Spec, Text, Vocabulary

START = 3
VOCABULARY = Vocabulary(VOCAB, 1, 4, START, 2, (0, 1, 2, START, 4))
N = GRID[0] * GRID[1]


def root(shaken: bool = True, **options) -> Pretraining:
    made = Pretraining(dense_dalle.model(), {"text": NextText(**options), "code": NextCode()})
    made.bind(VOCABULARY)
    if shaken:
        torch.manual_seed(5)
        for objective in made.objectives.values():
            torch.nn.init.normal_(objective.head.out.weight)
    return made.eval()


def by_hand(made: Pretraining, given: Batch, i: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of each word and of each code of sample i, from the plain twin."""
    ids = given.text.ids_BT[i, : given.text.lengths[i]]
    codes = given.codes.dense().flatten(1)[i]
    states = dense_dalle.states(made.model, ids.tolist(), codes[:-1].tolist())
    log = lambda name, part: F.log_softmax(made.objectives[name].head.out(made.objectives[name].head.norm(part)), -1)
    text = log("text", states[: len(ids)])[torch.arange(len(ids)), ids]
    return text, log("code", states[POSITIONS:])[torch.arange(N), codes]


def test_losses_are_sums_over_their_own_tokens() -> None:
    made, given = root(), batch()
    scores = made(given)
    pairs = [by_hand(made, given, i) for i in range(3)]
    text, code = (-torch.cat(parts).sum() for parts in zip(*pairs, strict=True))
    torch.testing.assert_close(scores["text"].sum, text, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(scores["code"].sum, code, rtol=1e-5, atol=1e-4)
    assert (scores["text"].count, scores["code"].count) == (sum(LENGTHS), 3 * N)
    assert made.objectives["text"].weight == 1 / 8 and made.objectives["code"].weight == 7 / 8
    for name, objective in made.objectives.items():
        assert objective.count(given) == scores[name].count
        right, count = scores[name].stats["accuracy"]
        assert 0 <= right <= count == scores[name].count
        found = made.objectives[name].pooled()["perplexity"]
        assert found[0].item() == pytest.approx(math.exp(scores[name].sum.item() / scores[name].count.item()), rel=1e-5) and found[1] == 1
        assert objective.pooled() == {}


def test_golden_points_of_the_first_loss() -> None:
    """Heads start at zero: whatever the model, the loss is 1/8 ln V + 7/8 ln K."""
    made, given = root(shaken=False), batch()
    losses: list[torch.Tensor] = []
    result = plain(made, [given], ["text", "code"], lambda loss, last: losses.append(loss.detach()))
    assert losses[0].item() == pytest.approx(math.log(VOCAB) / 8 + 7 * math.log(CODES) / 8, abs=1e-5)
    means = {name: (total / count).item() for name, (total, count) in result.losses.items()}
    assert means == pytest.approx({"text": math.log(VOCAB), "code": math.log(CODES)}, abs=1e-5)


def test_the_loss_does_not_depend_on_how_a_batch_is_cut() -> None:
    made, given = root(), batch()
    dense = given.codes.dense()

    def one(i: int) -> Batch:
        text = Text(given.text.ids_BT[i : i + 1], (LENGTHS[i],))
        return Batch((given.keys[i],), given.draw_keys_B[i : i + 1], text, codes=CodeBatch(dense[i].flatten(), (GRID,)))

    gradients = []
    for parts in ([given], [one(0), one(1), one(2)]):
        made.zero_grad()
        plain(made, parts, ["text", "code"], lambda loss, last: loss.backward())
        gradients.append({name: p.grad.clone() for name, p in made.named_parameters()})
    for name, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][name], atol=1e-5, rtol=1e-4)


def test_a_start_token_is_no_target_and_an_end_token_is_one() -> None:
    made, given = root(), batch((6, 4, 3))
    given.text.ids_BT[0, 0] = given.text.ids_BT[1, 0] = START
    given.text.ids_BT[2, 1] = START  # in the middle it is a token like others
    given.text.ids_BT[0, 5] = VOCABULARY.sep
    objective = made.objectives["text"]
    labels_BS = objective._labels(given)
    assert labels_BS[:, 0].tolist() == [IGNORED, IGNORED, int(given.text.ids_BT[2, 0])]
    assert labels_BS[0, 5] == VOCABULARY.sep and labels_BS[2, 1] == START
    assert objective.count(given) == made(given)["text"].count == 6 + 4 + 3 - 2


def test_paddings_count_where_asked() -> None:
    made, given = root(pads=True), batch()
    objective = made.objectives["text"]
    assert objective.head.out.out_features == VOCAB + POSITIONS
    labels_BS = objective._labels(given)
    assert labels_BS[0].tolist() == given.text.ids_BT[0].tolist()
    assert labels_BS[1].tolist() == [IGNORED] * POSITIONS  # no caption, nothing to predict
    assert labels_BS[2].tolist() == [*given.text.ids_BT[2, :3].tolist(), *(VOCAB + p for p in range(3, POSITIONS))]
    assert objective.count(given) == made(given)["text"].count == 2 * POSITIONS
    told = given._replace(codes=None)
    assert objective.count(told) == sum(LENGTHS)  # no picture follows
    assert objective(made.model(told), told).count == sum(LENGTHS)


def test_captions_are_dropped_by_their_keys_in_training_alone() -> None:
    made, many = root(dropout=0.5), 200
    text = Text(torch.randint(5, VOCAB, (many, 4)), (4,) * many)
    codes = CodeBatch(torch.zeros(many * N, dtype=torch.int64), (GRID,) * many)
    given = Batch(tuple(map(str, range(many))), torch.arange(many) * 7919, text, codes=codes)
    assert made.corrupt(given)["main"] is given
    made.train()
    dropped = made.corrupt(given)["main"]
    gone = [n == 0 for n in dropped.text.lengths]
    assert 70 < sum(gone) < 130 and set(dropped.text.lengths) == {0, 4}
    turned = given._replace(keys=given.keys[::-1], draw_keys_B=given.draw_keys_B.flip(0))
    assert [n == 0 for n in made.corrupt(turned)["main"].text.lengths] == gone[::-1]
    assert made.objectives["text"].count(dropped) == 4 * (many - sum(gone))
    few = batch((4, 4, 4))._replace(draw_keys_B=given.draw_keys_B[[gone.index(True), gone.index(False), gone.index(False)]])
    (views,) = made.corrupt(few).values()
    assert views.text.lengths == (0, 4, 4)
    made.eval()
    hidden, empty = made.model(views), made.model(few._replace(text=few.text._replace(lengths=(0, 0, 0))))
    torch.testing.assert_close(hidden.image.x_ND[:N], empty.image.x_ND[:N], atol=1e-5, rtol=1e-5)
    assert made.objectives["text"](hidden, views).count == 8 and made.objectives["code"](hidden, views).count == 3 * N


def test_pairs_that_are_not_true_do_not_count() -> None:
    made, given = root(), batch()._replace(matched_B=torch.tensor([True, True, False]))
    scores = made(given)
    assert (scores["text"].count, scores["code"].count) == (6, 2 * N)
    text, code = (-torch.cat(parts).sum() for parts in zip(*(by_hand(made, given, i) for i in range(2)), strict=True))
    torch.testing.assert_close(scores["text"].sum, text, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(scores["code"].sum, code, rtol=1e-5, atol=1e-4)


def test_no_captions_at_all_are_no_terms() -> None:
    made, given = root(), batch()
    empty = given._replace(text=Text(given.text.ids_BT, (0, 0, 0)))
    score = made(empty)["text"]
    assert score.count == 0 and score.sum == 0 and score.sum.requires_grad
    assert made.objectives["text"].pooled()["perplexity"][1] == 0


def test_a_loss_that_is_not_finite_leaves_no_perplexity() -> None:
    """It may be another rank's, which this rank's loss does not tell."""
    made = root()
    with torch.no_grad():
        made.objectives["text"].head.out.weight.fill_(torch.nan)
    made(batch())
    found = made.objectives["text"].pooled()["perplexity"]
    assert (found[0], found[1]) == (0, 0) and made.objectives["code"].pooled()["perplexity"][1] == 1


def test_logits_of_a_state_are_those_of_the_loss() -> None:
    made, given = root(), batch()
    with torch.no_grad():
        rows = made.objectives["code"].logits(made.model(given), given)
        _, state_BD = made.model.prefill(given.text)
        torch.testing.assert_close(made.objectives["code"].logits_of(state_BD), rows[::N], atol=1e-4, rtol=1e-4)
        half = made.objectives["code"].logits_of(state_BD.bfloat16())
        assert half.dtype == torch.float32 and half.shape == (3, CODES)
    found = made(given, ["code"], "logits")["code"]
    assert found.logits_RC.shape == (3 * N, CODES)


def test_what_cannot_be_is_said() -> None:
    made, given = root(), batch()
    spec = made.model.spec
    for objective, wrong, known, message in (
        (NextText(), spec, VOCABULARY._replace(size=VOCAB + 1), "31 tokens, the model only 30"),
        (NextCode(), spec, VOCABULARY._replace(codes=16), "16 codes, the model 20"),
        (NextCode(), Spec(8, ("causal",), 9), VOCABULARY, "no codes"),
    ):
        with pytest.raises(ValueError, match=message):
            objective.bind(wrong, known)
    NextCode().bind(spec, VOCABULARY._replace(codes=20))
    with pytest.raises(ValueError, match="bind"):
        NextCode().logits_of(torch.zeros(1, 16))
    with pytest.raises(ValueError, match="sources"):
        made.objectives["text"].count(given._replace(text=None))
    with pytest.raises(ValueError, match=r"data\.show=codes"):
        made.objectives["code"].count(given._replace(codes=None))
    with pytest.raises(ValueError, match="one state for every token"):
        made.objectives["code"](made.model(given._replace(codes=None)), given)
    with pytest.raises(ValueError, match="dropout=1"):
        NextText(dropout=1.0)
