"""Numbers that are not finite, and spikes: what each policy does, what is written down, and that nothing waits for the device."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor
from train.fakes import WIDTH, FakeData, FakeMatch, FakeMLM, FakeModel, Poison, States
from train.runs import quiet, trainer

from mmpretrain.train import guard
from mmpretrain.train.callbacks import Metrics
from mmpretrain.train.checkpoint import Checkpoints
from mmpretrain.train.guard import NonFiniteStep, Spikes
from mmpretrain.train.module import Pretrain
from mmpretrain.train.optim import Optimizer
from mmpretrain.train.pretraining import Pretraining
from mmpretrain.train.schedule import Constant, WarmupLinear
from mmpretrain.types import Batch, Score


class Loud(FakeMatch):
    """A loss a hundred times too large for one sample."""

    def __init__(self, bad: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bad = bad

    def forward(self, hidden: States, batch: Batch) -> Score:
        score = super().forward(hidden, batch)
        return score._replace(sum=score.sum * 100) if self.bad in batch.keys else score


def module(objective: FakeMatch, **settings: Any) -> Pretrain:
    optimizer = Optimizer(lr=1e-3, fused=settings.pop("fused", None))
    torch.manual_seed(0)
    return Pretrain(FakeModel(), {"mlm": FakeMLM(), "match": objective}, optimizer, Constant(), ema_decay=0.9, **settings)


def fit(folder: Path, made: Pretrain, steps: int, ckpt_path: str | None = None, every: int = 2, **flags: Any) -> Any:
    quiet()
    callbacks = [Metrics(), Checkpoints(every_n_steps=every, keep_last=10)]
    fitter = trainer(steps, callbacks, default_root_dir=folder, enable_checkpointing=True, log_every_n_steps=1, **flags)
    fitter.fit(made, datamodule=FakeData(steps_per_epoch=1000), ckpt_path=ckpt_path)
    return fitter


def happened(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def weights(made: Pretrain) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in made.root.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.fault(49)
@pytest.mark.parametrize("policy", ["stop", "skip", "rollback"])
def test_a_bad_step_and_its_keys(tmp_path: Path, policy: str) -> None:
    """Sample s43 is in step 5; checkpoints are those of steps 2 and 4."""
    made = module(Poison("s43", view="match"), on_nonfinite=policy)
    if policy == "stop":
        with pytest.raises(NonFiniteStep, match=r"step 5: loss nan.*samples: s40, s41, s42, s43"):
            fit(tmp_path, made, 8)
    else:
        assert fit(tmp_path, made, 8).global_step == 8
        assert all(torch.isfinite(p).all() for p in made.parameters())
        lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert [line.get("events/nonfinite", 0) for line in lines if "train/lr" in line] == [0] * 5 + [1] * 3
    first = happened(tmp_path)[0]
    assert first["event"] == "nonfinite" and first["at"] == 5 and first["loss"] == "nan" and first["policy"] == policy
    assert first["keys"] == [f"s{n}" for n in range(40, 48)]
    assert [one["event"] for one in happened(tmp_path)[1:]] == (["rollback"] if policy == "rollback" else [])


class Normed(FakeModel):
    """With running statistics, into which one sample puts numbers that are not finite."""

    def __init__(self) -> None:
        super().__init__()
        self.running = torch.nn.BatchNorm1d(WIDTH)

    def forward(self, batch: Batch, kind: str = "fused") -> States:
        states = super().forward(batch, kind)
        bad = math.inf if "s43" in batch.keys else 1.0
        return states._replace(pooled_BD=self.running(states.pooled_BD * bad))


@pytest.mark.parametrize("waits", [True, False])
def test_a_skipped_step_leaves_no_trace_in_running_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: bool) -> None:
    if not waits:
        monkeypatch.setattr(guard, "_waits", lambda *_: False)
        monkeypatch.setattr(guard, "_on_its_way", lambda verdict: verdict._replace(ready=Unread()))
    made, saved = module(FakeMatch(view="match"), on_nonfinite="skip", fused=True), {}
    made.root = Pretraining(Normed(), made.root.objectives)
    made.on_train_batch_start = lambda *_: saved.setdefault(made.trainer.global_step, weights(made))
    fit(tmp_path, made, 8)
    assert equal(saved[6], saved[5]) and not equal(saved[5], saved[4]) and not equal(saved[7], saved[6])
    assert all(torch.isfinite(value).all() for value in weights(made).values()) and made.root.model.running.num_batches_tracked == 14


class Moving(Poison):
    """Moves a buffer of the model after each step, as the vectors of a codebook are moved."""

    def after_step(self, model: torch.nn.Module) -> None:
        model.vectors += 1


@pytest.mark.parametrize(("policy", "like"), [("skip", 5), ("rollback", 4)])
def test_what_objectives_move_after_a_bad_step_is_put_back_too(tmp_path: Path, policy: str, like: int) -> None:
    made, saved = module(Moving("s43", view="match"), on_nonfinite=policy), {}
    made.root.model.register_buffer("vectors", torch.zeros(2))
    made.on_train_batch_start = lambda *_: saved.setdefault(made.trainer.global_step, weights(made))
    fit(tmp_path, made, 8)
    assert equal(saved[6], saved[like]) and saved[like]["model.vectors"][0] == like and weights(made)["model.vectors"][0] == like + 2


@pytest.mark.fault(50)
def test_rollback_restores_the_last_good_checkpoint_and_the_data_go_on(tmp_path: Path) -> None:
    saved, seen = {}, []

    class Watch(Poison):
        def forward(self, hidden: States, batch: Batch) -> Score:
            seen.append(batch.keys[0])
            return super().forward(hidden, batch)

    made = module(Watch("s43", view="match"), on_nonfinite="rollback")
    made.on_train_batch_start = lambda *_: saved.setdefault(made.trainer.global_step, weights(made))
    fitter = fit(tmp_path, made, 7)
    assert happened(tmp_path)[1]["checkpoint"] == "step-00000004.ckpt"
    assert equal(saved[6], saved[4]) and not equal(saved[5], saved[4])  # before step 6 the weights are those of the checkpoint
    seen = [key for key in seen if int(key[1:]) < 10_000]  # without those of the validation
    assert seen == [f"s{8 * step}" for step in range(7)] and fitter.datamodule.done == 7  # no batch comes again, none is left out
    end = weights(made)
    again = module(Poison("s43", view="match"), on_nonfinite="rollback")
    fit(tmp_path, again, 7, ckpt_path=str(tmp_path / "checkpoints" / "step-00000006.ckpt"))
    assert equal(weights(again), end)


def test_rollback_without_a_checkpoint_and_without_end_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteStep, match="nothing to roll back to"):
        fit(tmp_path, module(Poison("s3", view="match"), on_nonfinite="rollback"), 4)

    class Worse(Poison):
        def forward(self, hidden: States, batch: Batch) -> Score:
            score = super().forward(hidden, batch)
            return score._replace(sum=score.sum * float("nan")) if int(batch.keys[0][1:]) >= 40 else score

    with pytest.raises(NonFiniteStep, match=r"after 9 steps: step-00000005.ckpt was restored 3 times"):
        fit(tmp_path / "again", module(Worse("", view="match"), on_nonfinite="rollback"), 12, every=5)


@pytest.mark.fault(50)
@pytest.mark.parametrize("policy", ["log", "skip", "rollback"])
def test_a_spike_is_logged_skipped_or_rolled_back(tmp_path: Path, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "WINDOW", 16)
    bad = f"s{10 * 8 + 3}"  # in step 10, when half of the window is filled
    made = module(Loud(bad, view="match"), on_spike=policy)
    saved = {}
    made.on_train_batch_start = lambda *_: saved.setdefault(made.trainer.global_step, weights(made))
    fit(tmp_path, made, 12, every=9)
    spikes = [one for one in happened(tmp_path) if one["event"] == "spike"]
    assert [one["at"] for one in spikes] == [10] and bad in spikes[0]["keys"]
    assert equal(saved[11], saved[10]) == (policy == "skip")
    assert equal(saved[11], saved[9]) == (policy == "rollback")


class Scaler(torch.amp.GradScaler):
    """Loss scaling as on a GPU, with an infinite gradient in one step."""

    def __init__(self, overflow_at: int) -> None:
        super().__init__("cpu", init_scale=8.0)
        self.overflow_at, self.unscaled = overflow_at, 0

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        if self.unscaled == self.overflow_at:
            optimizer.param_groups[0]["params"][0].grad.flatten()[0] = math.inf
        self.unscaled += 1
        super().unscale_(optimizer)


def test_the_guard_sees_gradients_without_the_scale(tmp_path: Path) -> None:
    norms: dict[bool, list[float]] = {True: [], False: []}
    for fused, seen in norms.items():
        made = module(FakeMatch(view="match"), fused=fused)
        made.on_train_batch_end = lambda *_, made=made, seen=seen: seen.append(float(made.grad_norm))
        fit(tmp_path / str(fused), made, 3, plugins=[MixedPrecision("16-mixed", "cpu", scaler=Scaler(overflow_at=-1))])
    assert norms[True] == pytest.approx(norms[False], rel=1e-3)


@pytest.mark.parametrize("policy", ["log", "skip", "rollback"])
def test_an_overflow_under_loss_scaling_is_the_scalers_alone(tmp_path: Path, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "WINDOW", 16)
    scaler, saved = Scaler(overflow_at=10), {}
    made = module(FakeMatch(view="match"), on_spike=policy, on_nonfinite="stop")
    made.on_train_batch_start = lambda *_: saved.setdefault(made.trainer.global_step, weights(made))
    precision = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    fit(tmp_path, made, 12, every=9, plugins=[precision])
    assert not (tmp_path / "events.jsonl").exists() and made.guard.in_a_row == 0
    assert scaler.get_scale() == 4.0 and torch.isfinite(made.guard.spikes.values_2W).all()
    assert equal(saved[11], saved[10]) and not equal(saved[10], saved[9])  # the scaler left the step out


def test_six_sigma_over_128_steps() -> None:
    spikes, dice = Spikes(), torch.Generator().manual_seed(0)
    for step in range(300):
        x_2 = 2 + torch.randn(2, generator=dice)
        assert not spikes.judge(x_2), step
    mean_2, deviation_2 = spikes.values_2W.mean(1), spikes.values_2W.std(1)
    again = Spikes()
    again.load_state_dict(spikes.state_dict())
    assert not spikes.judge(mean_2 + 5.9 * deviation_2)
    assert again.judge(mean_2 + torch.tensor([0.0, 6.1]) * deviation_2)
    assert not again.judge(torch.tensor([math.nan, math.inf])[:1].repeat(2)) and torch.isfinite(again.values_2W).all()
    assert not Spikes().judge(torch.tensor([1e9, 1e9]))  # nothing to compare with yet


class Unread:
    """An event of a device whose numbers are always there."""

    def synchronize(self) -> None:
        return None


def test_a_rollback_forgets_the_steps_that_it_undoes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Twice(Poison):
        def forward(self, hidden: States, batch: Batch) -> Score:
            score = super().forward(hidden, batch)
            return score._replace(sum=score.sum * math.nan) if "s51" in batch.keys else score

    monkeypatch.setattr(guard, "_waits", lambda *_: False)
    monkeypatch.setattr(guard, "_on_its_way", lambda verdict: verdict._replace(ready=Unread()))
    made = module(Twice("s43", view="match"), on_nonfinite="rollback", fused=True)
    fit(tmp_path, made, 14, every=4)
    assert [(one["event"], one.get("at")) for one in happened(tmp_path)] == [("nonfinite", 5), ("rollback", None)]  # 6 was undone with 5


def test_after_a_rollback_at_a_save_the_rate_is_that_of_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_waits", lambda *_: False)
    monkeypatch.setattr(guard, "_on_its_way", lambda verdict: verdict._replace(ready=Unread()))
    made, rates = module(Poison("s43", view="match"), on_nonfinite="rollback", fused=True), {}
    made.schedule = WarmupLinear(warmup=20, total=40)
    made.on_train_batch_start = lambda *_: rates.setdefault(made.trainer.global_step, made.optimizers().param_groups[0]["lr"])
    fit(tmp_path, made, 8, every=3)  # of step 5 the save of step 6 hears
    assert happened(tmp_path)[1]["checkpoint"] == "step-00000003.ckpt"
    assert rates == {step: pytest.approx(1e-3 * step / 20) for step in range(8)}


def test_nothing_waits_for_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens on CUDA with a fused optimiser, played on the CPU: the kernel leaves the step out, the host hears of it later."""

    class Ready:
        def synchronize(self) -> None:
            read.append(made.trainer.global_step)

    read: list[int] = []
    monkeypatch.setattr(guard, "_waits", lambda *_: False)
    monkeypatch.setattr(guard, "_on_its_way", lambda verdict: verdict._replace(ready=Ready()))
    made = module(Poison("s43", view="match"), on_nonfinite="skip", fused=True)
    saved = {}
    made.on_train_batch_start = lambda *_: saved.setdefault(made.trainer.global_step, weights(made))
    fit(tmp_path, made, 16, every=15)
    assert equal(saved[6], saved[5]) and not equal(saved[7], saved[6])
    (event,) = happened(tmp_path)
    assert event["at"] == 5 and event["step"] == 5 + guard.DELAY and "s43" in event["keys"]
    assert read[:7] == list(range(8, 15)) and len(read) == 16  # the rest before the saves
    stopped = module(Poison("s43", view="match"), fused=True)
    with pytest.raises(NonFiniteStep, match="step 5: loss nan"):
        fit(tmp_path / "stop", stopped, 16, every=15)
    assert stopped.trainer.global_step == 5 + guard.DELAY and all(torch.isfinite(p).all() for p in stopped.parameters())
