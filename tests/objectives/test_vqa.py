"""Question answering: targets and their draws, who takes part, the head of transformers, polarity of the stats."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.objectives import Stack, fused, keys, spec, vocabulary
from helpers.pairs import Told, example

from mmpretrain.nn.hidden import Fused
from mmpretrain.objectives.vqa import VQA, Answered, AnswerHead
from mmpretrain.types import Batch

ANSWERS = tuple(f"answer {i}" for i in range(12))
WORDS = vocabulary()._replace(answers=ANSWERS)


def bound(**options) -> VQA:
    torch.manual_seed(0)
    objective = VQA(**options)
    objective.bind(spec(), WORDS)
    return objective


def batch_for(found: list[dict[int, float]], matched: list[bool] | None = None) -> Batch:
    preparer = VQA().preparer()
    values = [preparer.prepare(example(i, Told(("a b",)), answer_scores=one), None) for i, one in enumerate(found)]
    matched_B = None if matched is None else torch.tensor(matched)
    n = len(found)
    text = Stack().text([example(i, Told(("a b",))).text for i in range(n)])
    return Batch(tuple(map(str, range(n))), keys(n), text, matched_B=matched_B, targets={"vqa": preparer.collate(values, Stack())})


def pooled(n: int, width: int = 8) -> Fused:
    return fused((5,) * n, (3,) * n)._replace(pooled_BD=torch.randn(n, width, generator=torch.Generator().manual_seed(3)))


def test_who_takes_part():
    found = [{3: 1.0}, {}, {1: 0.3, 2: 0.9}, {4: 1.0}, {}]
    objective = bound()
    out = objective.corrupt(batch_for(found, [True, True, True, False, True]), {})
    target = out.targets["vqa"]
    assert target.rows_R.tolist() == [0, 2] and objective.count(out) == 2 and target.targets_RK.sum(1).tolist() == [1, 1]
    every = objective.corrupt(batch_for(found), {}).targets["vqa"]
    assert every.rows_R.tolist() == [0, 2, 3] and every.ids_RK.tolist()[0] == [3, 0] and every.scores_RK.tolist()[0] == [1, 0]
    false = VQA().preparer().prepare(example(0, Told(("a",)), matched=False, answer_scores={1: 1.0}), None)
    assert false == () and VQA().preparer().prepare(example(0, Told(("a",))), None) == ()


def test_answers_are_drawn_by_their_scores():
    n, scores = 20_000, {5: 0.3, 0: 1.0, 7: 0.6, 2: 0.1}
    target = bound().corrupt(batch_for([scores] * n), {}).targets["vqa"]
    assert torch.equal(target.targets_RK.sum(1), torch.ones(n)) and set(target.targets_RK.unique().tolist()) == {0.0, 1.0}
    counts, expected = target.targets_RK.sum(0).numpy(), np.array(list(scores.values())) / 2 * n
    assert ((counts - expected) ** 2 / expected).sum() < 3 + 4 * 6**0.5
    soft = bound(targets="soft").corrupt(batch_for([scores, {1: 0.3}]), {}).targets["vqa"]
    torch.testing.assert_close(soft.targets_RK, torch.tensor([[0.15, 0.5, 0.3, 0.05], [1, 0, 0, 0]]))


def test_draws_do_not_depend_on_the_rest_of_the_batch():
    found = [{i % 12: 0.3, (i + 5) % 12: 0.6, (i + 7) % 12: 0.9} for i in range(40)]
    whole = bound().corrupt(batch_for(found), {}).targets["vqa"]
    mixed = bound().corrupt(batch_for([one if i % 3 else {} for i, one in enumerate(found)]), {}).targets["vqa"]
    assert torch.equal(whole.targets_RK[mixed.rows_R], mixed.targets_RK)
    wider = bound().corrupt(batch_for([{**dict.fromkeys(range(8), 0.5)} if i == 0 else one for i, one in enumerate(found)]), {})
    assert torch.equal(wider.targets["vqa"].targets_RK[1:, :3], whole.targets_RK[1:])


@pytest.mark.parametrize("targets", ["draw", "soft"])
def test_loss_and_accuracy_against_numpy(targets):
    objective, found = bound(targets=targets), [{i: 0.3, (i + 1) % 12: 0.9} if i % 3 else {} for i in range(12)]
    batch = batch_for(found)
    out, hidden = objective.corrupt(batch, {}), pooled(12)
    score, target = objective(hidden, out), out.targets["vqa"]
    rows = [i for i in range(12) if i % 3]
    logits = objective.head(hidden.pooled_BD[rows]).detach().double().numpy()
    assert torch.equal(objective.logits(hidden, out), objective.head(hidden.pooled_BD[rows])) and logits.shape == (8, 12)
    likely = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    loss = sum(-likely[r, int(i)] * t for r in range(8) for i, t in zip(target.ids_RK[r], target.targets_RK[r].tolist()))
    assert score.sum.item() == pytest.approx(loss, rel=1e-6) and score.count == 8
    right = sum(found[i].get(int(logits[r].argmax()), 0.0) for r, i in enumerate(rows))
    assert score.stats["accuracy"][0].item() == pytest.approx(right) and score.stats["asked"] == (8, 12)
    with torch.no_grad():  # a head that always gives answer 4 is as right as its scores say
        objective.head.decoder.weight.zero_()
        objective.head.decoder.bias.copy_(torch.eye(12)[4] * 9)
    accuracy = objective(hidden, out).stats["accuracy"][0].item()
    assert accuracy == pytest.approx(sum(found[i].get(4, 0.0) for i in rows)) and accuracy > 0
    assert [names[0][0] for names in objective.best(hidden, 2)] == ["answer 4"] * 12


def test_nothing_asked_gives_zero_and_zero_gradients():
    objective, hidden = bound(), pooled(3)
    hidden.pooled_BD.requires_grad_()
    for batch in (batch_for([{}, {}, {}]), batch_for([{1: 1.0}] * 3, [False] * 3)):
        score = objective(hidden, objective.corrupt(batch, {}))
        assert score.sum.item() == 0 and score.count.item() == 0
        score.sum.backward()
        assert not hidden.pooled_BD.grad.any() and all(p.grad is not None and not p.grad.any() for p in objective.parameters())


def test_the_head_is_that_of_transformers():
    lxmert = pytest.importorskip("transformers.models.lxmert.modeling_lxmert")
    config = pytest.importorskip("transformers").LxmertConfig(hidden_size=48, hidden_act="gelu")
    theirs = lxmert.LxmertVisualAnswerHead(config, 30).eval()
    ours = AnswerHead(48, 30)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.randn(p.shape) * (0.2 if p.dim() > 1 else 0.3))
        theirs.logit_fc[2].weight.add_(1)
    pairs = {"dense": "logit_fc.0", "norm": "logit_fc.2", "decoder": "logit_fc.3"}
    state = theirs.state_dict()
    ours.load_state_dict({f"{a}.{leaf}": state[f"{b}.{leaf}"] for a, b in pairs.items() for leaf in ("weight", "bias")})
    x = torch.randn(7, 48)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=0)
    assert sum(p.numel() for p in AnswerHead(768, 9500).parameters()) == 768 * 1536 + 1536 + 2 * 1536 + 1536 * 9500 + 9500


def test_head_sizes():
    objective = VQA(answers=20)
    objective.bind(spec()._replace(pooled_width=6), None)
    assert objective.head.dense.weight.shape == (12, 6) and objective.head.decoder.weight.shape == (20, 12)
    assert bound().head.decoder.weight.shape[0] == 12
    with torch.device("meta"):
        born = VQA(answers=30)
        born.bind(spec(width=400), None)
    born.to_empty(device="cpu")
    for module in reversed(list(born.modules())):
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert born.head.decoder.weight.std().item() == pytest.approx(0.02, rel=0.1) and (born.head.norm.weight == 1).all()


def test_clear_errors():
    for wrong in ({"targets": "hard"}, {"answers": 1}):
        with pytest.raises(ValueError, match="VQA"):
            VQA(**wrong)
    with pytest.raises(ValueError, match=r"set data\.answers"):
        VQA().bind(spec(), vocabulary())
    with pytest.raises(ValueError, match="answers=5 is less than the 12"):
        VQA(answers=5).bind(spec(), WORDS)
    with pytest.raises(ValueError, match="set answers"):
        VQA().bind(spec(), None)
    objective, batch = bound(), batch_for([{1: 1.0}])
    with pytest.raises(ValueError, match="not corrupted"):
        objective.count(batch)
    with pytest.raises(ValueError, match="its preparer must run"):
        objective.corrupt(batch._replace(targets={}), {})
    out = objective.corrupt(batch, {})
    assert isinstance(out.targets["vqa"], Answered)
    with pytest.raises(ValueError, match="behind image-text matching"):
        objective(pooled(1), out._replace(matched_B=torch.tensor([False])))


def test_a_run_without_answers_has_no_term():
    objective = VQA(answers=5)
    with pytest.warns(UserWarning, match=r"vqa: the run has no answers; set data\.answers.*until then it has no term"):
        objective.bind(spec(), vocabulary())
    out = objective.corrupt(batch_for([{}, {}, {}]), {})
    score = objective(pooled(3), out)
    score.sum.backward()
    assert score.sum == 0 and score.count == 0 and not any(p.grad.any() for p in objective.parameters())
