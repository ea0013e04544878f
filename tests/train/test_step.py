"""One optimiser step: cutting a global batch into micro-batches changes nothing."""

from __future__ import annotations

from contextlib import nullcontext

import lightning.pytorch as pl
import pytest
import torch
from helpers import two_kinds
from helpers.objectives import batch_of, example
from torch.utils._pytree import tree_map
from train.fakes import VOCABULARY, FakeContrast, FakeMatch, FakeMLM, FakeModel, States, sample_batch
from train.runs import build, drift, largest, run

from mmpretrain.objectives import contrastive
from mmpretrain.train.pretraining import Pretraining
from mmpretrain.train.step import PLANS
from mmpretrain.types import Batch, Score


def root(dropout: float = 0.0, contrast_weight: float = 2.0) -> Pretraining:
    torch.manual_seed(0)
    found = Pretraining(
        FakeModel(dropout),
        {"contrast": FakeContrast(view="match", weight=contrast_weight), "mlm": FakeMLM(), "match": FakeMatch(view="match", weight=0.5)},
    )
    found.bind(VOCABULARY)
    return found.double()


def gradients(module: Pretraining, micros: list[Batch], plan: str, reduction: str = "global") -> tuple[dict[str, torch.Tensor], float]:
    module.zero_grad(set_to_none=True)
    result = PLANS[plan](module, micros, list(module.objectives), lambda loss, last: loss.backward(), reduction)
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}, result.loss.item()


def cut(k: int, n: int = 8) -> list[Batch]:
    return [sample_batch(list(range(i, i + n // k))) for i in range(0, n, n // k)]


@pytest.mark.parametrize("k", [2, 4, 8])
def test_cached_gradients_equal_one_big_batch(k: int) -> None:
    module = root()
    whole, loss = gradients(module, cut(1), "plain")
    parts, loss_k = gradients(module, cut(k), "cached")
    assert loss == pytest.approx(loss_k, abs=1e-6)
    assert whole.keys() == parts.keys()
    assert max((whole[name] - parts[name]).abs().max() for name in whole) < 1e-6


def test_cached_replays_dropout() -> None:
    """With dropout, features of the first and of the second forward agree, so the surrogate's value is that of the first."""
    module = root(dropout=0.5)
    torch.manual_seed(5)
    once, _ = gradients(module, cut(1), "plain")
    torch.manual_seed(5)
    again, _ = gradients(module, cut(1), "cached")
    assert max((once[name] - again[name]).abs().max() for name in once) < 1e-6


@pytest.mark.parametrize("others", [["mlm"], ["mlm", "match"], []])
def test_cached_replays_dropout_wherever_the_objective_stands(others: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Views before that of the contrastive objective draw dropout, too, in the second forward alone."""
    seen: list[torch.Tensor] = []

    def watched(self: FakeContrast, hidden: States, batch: Batch | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(features(self, hidden, batch)[0].detach())
        return features(self, hidden, batch)

    features = FakeContrast.features
    monkeypatch.setattr(FakeContrast, "features", watched)
    before = {"mlm": FakeMLM(), "match": FakeMatch(view="early")}
    module = Pretraining(FakeModel(0.5), {**{name: before[name] for name in others}, "contrast": FakeContrast(view="match")})
    module.bind(VOCABULARY)
    gradients(module, cut(2), "cached")
    assert torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3]) and not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("plan", ["plain", "cached"])
def test_losses_of_micro_batches_are_where_the_batches_are(plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that is not the host, one without numbers here; also where the contrastive objective is the only one."""
    monkeypatch.setattr(contrastive, "full_precision", lambda device: nullcontext())  # that device has no autocast
    module = Pretraining(two_kinds.TwoKinds(), {"contrast": contrastive.Contrastive()})
    module.bind(two_kinds.VOCABULARY)
    there = lambda x: x.to("meta") if isinstance(x, torch.Tensor) else x
    micros = [tree_map(there, batch_of([example(start + i) for i in range(4)])) for start in (0, 4)]
    result = PLANS[plan](module.to("meta"), micros, ["contrast"], lambda loss, last: loss.backward())
    assert result.loss.is_meta and result.finite_K.is_meta and result.finite_K.shape == (2,)


def test_cached_without_a_contrastive_objective_is_an_error() -> None:
    module = Pretraining(FakeModel(), {"match": FakeMatch()})
    module.bind(VOCABULARY)
    with pytest.raises(ValueError, match="contrastive"):
        gradients(module, cut(2), "cached")


@pytest.mark.parametrize("reduction", ["global", "local"])
def test_cached_without_a_true_pair_is_zero(reduction: str) -> None:
    class Nobody(FakeContrast):
        """All pairs are known to be false."""

        def count(self, batch: Batch) -> torch.Tensor:
            return torch.tensor(0.0)

        def loss_from_features(self, *features: torch.Tensor, **scale: torch.Tensor) -> Score:
            score = super().loss_from_features(*features, **scale)
            return score._replace(sum=score.sum * 0, count=score.count * 0)

    module = Pretraining(FakeModel(), {"contrast": Nobody(view="match")})
    module.bind(VOCABULARY)
    found, loss = gradients(module, cut(2), "cached", reduction)
    assert loss == 0 and found and all(not gradient.any() for gradient in found.values())


def test_local_reduction_is_the_mean_of_means() -> None:
    module = root(contrast_weight=0.0)
    parts, _ = gradients(module, cut(2), "plain", "local")
    halves = [gradients(module, [micro], "plain", "local")[0] for micro in cut(2)]
    assert max((parts[n] - (halves[0][n] + halves[1][n]) / 2).abs().max() for n in parts) < 1e-12
    whole, _ = gradients(module, cut(2), "plain", "global")
    assert max((parts[n] - whole[n]).abs().max() for n in parts) > 1e-4, "masked counts differ between the halves, so the means must"


@pytest.mark.parametrize("k", [2, 4])
def test_accumulation_equals_one_batch_over_ten_steps(k: int) -> None:
    one, cut_up = run(build(), gradient_clip_val=0.5), run(build(), gradient_clip_val=0.5, accumulate_grad_batches=k)
    assert largest(one.losses, cut_up.losses) < 1e-5 and largest(one.norms, cut_up.norms) < 1e-5
    assert drift(one, cut_up) < 2e-5


def test_cached_training_equals_one_batch_over_ten_steps() -> None:
    one = run(build(contrast=True), gradient_clip_val=0.5)
    parts = run(build(contrast=True, backward="cached"), gradient_clip_val=0.5, accumulate_grad_batches=4)
    assert largest(one.losses, parts.losses) < 1e-5 and drift(one, parts) < 2e-5


def test_options_that_change_nothing_change_nothing() -> None:
    plain = run(build(), gradient_clip_val=0.5)
    recomputed = run(build(activation_checkpointing=True), gradient_clip_val=0.5)
    assert plain.losses == recomputed.losses


def test_ema_follows_its_formula_and_swaps_back() -> None:
    module = build(ema_decay=0.5)
    history = []

    class Snapshots(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_) -> None:
            history.append(pl_module.root.model.pooler.weight.detach().clone())

    start = module.root.model.pooler.weight.detach().clone()
    run(module, steps=3, callbacks=[Snapshots()])
    expected = start
    for weight in history:
        expected = 0.5 * expected + 0.5 * weight
    raw = module.root.model.pooler.weight.detach().clone()
    with module.ema_weights():
        assert torch.allclose(module.root.model.pooler.weight, expected, atol=1e-7)
    assert torch.equal(module.root.model.pooler.weight, raw)


def test_sampled_tasks_are_a_function_of_seed_and_step() -> None:
    module = build(task_schedule="sample", task_weights={"main": 3.0, "match": 1.0})
    drawn = [tuple(module.tasks(step)) for step in range(400)]
    assert drawn == [tuple(module.tasks(step)) for step in range(400)]
    assert set(drawn) == {("mlm",), ("match",)}
    assert 0.65 < drawn.count(("mlm",)) / 400 < 0.85


@pytest.mark.parametrize(
    ("schedule", "weights", "message"),
    [
        ("sample", {"mian": 3.0}, "there is no view 'mian' to draw; views are main, match"),
        ("sample", {"main": -1.0, "match": 2.0}, "at least 0"),
        ("sample", {"main": float("nan")}, "at least 0"),
        ("sample", {"main": 0.0, "match": 0.0}, "one of them above"),
        ("all", {"main": 1.0}, "goes with model.task_schedule=sample, not all; set model.task_weights: null"),
    ],
)
def test_weights_of_what_is_not_drawn_are_refused(schedule: str, weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(task_schedule=schedule, task_weights=weights)


def test_phases_set_values_and_refuse_unknown_ones() -> None:
    module = build(phases=[{"until": 2, "set": {"match.weight": 0.0}}, {"set": {"match.weight": 0.25}}])
    run(module, steps=2)
    assert module.root.objectives["match"].weight == 0.0
    run(module, steps=3)
    assert module.root.objectives["match"].weight == 0.25
    with pytest.raises(ValueError, match=r"mlm\.wait"):
        run(build(phases=[{"set": {"mlm.wait": 1.0}}]), steps=1)
    with pytest.raises(ValueError, match="until"):
        build(phases=[{"set": {}}, {"until": 3, "set": {}}])


def test_mixed_precision_stays_near() -> None:
    plain, mixed = run(build(), steps=4), run(build(), steps=4, precision="bf16-mixed")
    assert 0 < largest(plain.losses, mixed.losses) < 2e-2
    assert all(p.dtype == torch.float32 for p in mixed.parameters.values())


@pytest.mark.slow
def test_compiled_blocks_give_the_same_run() -> None:
    plain, compiled = run(build(), steps=4), run(build(compile=True), steps=4)
    assert largest(plain.losses, compiled.losses) < 1e-5 and plain.parameters.keys() == compiled.parameters.keys()


def test_recomputed_blocks_are_compiled_too(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []  # of compiled blocks: with gradient or without
    monkeypatch.setattr(torch, "compile", lambda function: lambda *given: (calls.append(torch.is_grad_enabled()), function(*given))[1])
    plain = run(build(compile=True), steps=2).losses
    once, _ = calls.count(True), calls.clear()
    assert run(build(compile=True, activation_checkpointing=True), steps=2).losses == plain
    assert calls.count(True) == 2 * once > 0
