"""Ramps of the table of phases: golden points, a function of the step alone, resumed, logged, refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from train.fakes import FakeData
from train.runs import build, trainer

from mmpretrain.cli.layering import layer
from mmpretrain.train.callbacks import Metrics
from mmpretrain.train.checkpoint import Checkpoints
from mmpretrain.train.phases import Phases, Ramp
from mmpretrain.train.plateau import Plateau
from mmpretrain.train.schedule import Stages, WarmupLinear


def owners(**more: Any) -> dict[str, Any]:
    return {"model": SimpleNamespace(temperature=9.0), "elbo": SimpleNamespace(kl_weight=9.0, name="elbo"), **more}


def test_the_schedules_of_dall_e_at_golden_points():
    """Those that ``configs/paper/dvae.yaml`` has (section A.2)."""
    phases = Phases(layer(["paper/dvae.yaml"]).config["model"]["phases"])
    points = {0: (1.0, 0.0), 2500: (None, 3.3), 5000: (None, 6.6), 75_000: (0.53125, 6.6), 150_000: (0.0625, 6.6), 3_000_000: (0.0625, 6.6)}
    for step, (temperature, beta) in points.items():
        found = owners()
        phases.apply(step, found)
        assert found["elbo"].kl_weight == pytest.approx(beta, abs=1e-12)
        if temperature is not None:
            assert found["model"].temperature == pytest.approx(temperature, abs=1e-12)
    assert Ramp(1.0, 0.0625, 150_000).at(37_500) == pytest.approx(0.0625 + 0.9375 * (1 + math.cos(math.pi / 4)) / 2, abs=1e-12)


QUARTERS = {"linear": 3.25, "exponential": 4 * 0.25**0.25, "cosine": 4 - 3 * (1 - math.cos(math.pi / 4)) / 2}


@pytest.mark.parametrize(("shape", "quarter"), QUARTERS.items())
def test_shapes(shape, quarter):
    ramp = Ramp(4.0, 1.0, 100, shape)
    assert [ramp.at(0), ramp.at(25), ramp.at(100), ramp.at(10**9)] == pytest.approx([4.0, quarter, 1.0, 1.0], abs=1e-12)
    values = [ramp.at(step) for step in range(101)]
    assert values == sorted(values, reverse=True)


def test_a_ramp_begins_with_its_row_and_values_may_stand_beside_it():
    rising = {"from": 1, "to": 2, "over": 5, "shape": "linear"}
    rows = [{"until": 10, "set": {"elbo.kl_weight": 0}}, {"until": 20, "set": {"elbo.kl_weight": rising}}]
    phases, found = Phases(rows), owners()
    for step, value in ((0, 0), (9, 0), (10, 1.0), (12, 1.4), (19, 2.0), (25, 2.0)):
        phases.apply(step, found)
        assert found["elbo"].kl_weight == pytest.approx(value)
        assert list(phases.ramped) == (["elbo.kl_weight"] if 10 <= step < 20 else [])
    backwards = owners()
    for step in (19, 12, 10):  # nothing is remembered
        phases.apply(step, backwards)
    assert backwards["elbo"].kl_weight == 1.0


@pytest.mark.parametrize(
    ("ramp", "message"),
    [
        ({"from": 1, "to": 2}, "it lacks 'over'"),
        ({"from": 1, "to": 2, "over": 5, "form": "x"}, "there is no 'form'"),
        ({"from": "1", "to": 2, "over": 5}, "from='1' and to=2 are not both numbers"),
        ({"from": 1, "to": float("nan"), "over": 5}, "are not both numbers"),
        ({"from": 1, "to": True, "over": 5}, "are not both numbers"),
        ({"from": 1, "to": 2, "over": 0}, "over=0 is not a whole number"),
        ({"from": 1, "to": 2, "over": 2.5}, r"over=2\.5 is not a whole number"),
        ({"from": 1, "to": 2, "over": 5, "shape": "sigmoid"}, "there is no shape 'sigmoid'"),
        ({"from": 0, "to": 2, "over": 5, "shape": "exponential"}, r"not from 0 to 2"),
    ],
)
def test_what_is_no_ramp_is_refused_when_the_run_is_built(ramp, message):
    with pytest.raises(ValueError, match=rf"^model\.phases: 'match\.weight': a ramp is .*{message}"):
        build(phases=[{"set": {"match.weight": ramp}}])


def test_a_resumed_run_has_the_values_of_rows_that_ended_before():
    ramp = {"from": 0.0, "to": 1.0, "over": 4, "shape": "linear"}
    rows = [{"until": 2, "set": {"model.temperature": 0.5}}, {"until": 4, "set": {"elbo.kl_weight": ramp}}, {"until": 6, "set": {}}]
    whole, found, phases = owners(), [], Phases(rows)
    for step in range(7):
        resumed, afresh = owners(), Phases(rows)
        for one, its in ((phases, whole), (afresh, resumed)):
            one.apply(step, its)
        assert resumed == whole and afresh.ramped == phases.ramped
        found.append((whole["model"].temperature, whole["elbo"].kl_weight))
    assert found == [(0.5, 9.0), (0.5, 9.0), (0.5, 0.0), (0.5, 0.25), (0.5, 0.25), (0.5, 0.25), (0.5, 0.25)]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("model.warmth", "like 0.0; model has "),
        ("elbo.name", "like 0.0; elbo has "),
        ("nobody.weight", "of one of: "),
        ("model", "like 0.0"),
    ],
)
def test_a_target_that_is_no_number_is_refused(path, says):
    with pytest.raises(ValueError, match=rf"model\.phases: '{path}' is not a number, switch or word {says}"):
        Phases([{"set": {path: {"from": 0, "to": 1, "over": 5}}}]).apply(0, owners())


def test_every_row_is_checked_before_the_run(tmp_path):
    rows = [{"until": 2, "set": {"match.weight": 1.0}}, {"set": {"match.wieght": 0.0}}]
    with pytest.raises(ValueError, match=r"model\.phases: 'match\.wieght' is not a number.* like 0\.0; match has .*weight \(0\.5\)"):
        trainer(4, default_root_dir=tmp_path).fit(build(phases=rows), datamodule=FakeData())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"untl": 3, "set": {}}], "row 0 has no key 'untl'; keys are until, set, restart"),
        ([{"until": 0}], "row 0: until=0 is not a whole number"),
        ([{"until": 2}, {"until": 2.5}], r"row 1: until=2\.5 is not a whole number"),
        ([{"restart": True}], "row 0: restart is true or false, and false in the first row"),
        ([{"until": 2}, {"restart": 1}], "row 1: restart is true or false"),
        ([{"set": 3}], "set is a mapping of names to values, not 3"),
    ],
)
def test_what_is_no_row_is_refused(rows, message):
    with pytest.raises(ValueError, match=rf"^model\.phases: {message}"):
        Phases(rows)


def test_each_stage_has_a_schedule_of_its_own():
    whole, stages = WarmupLinear(warmup=0.25), Stages(WarmupLinear(warmup=0.25), (20, 30))
    lengths = ((0, 20), (20, 10), (30, 10))
    expected = [whole.factor(step, length) for _, length in lengths for step in range(length)]
    assert [stages.factor(step, 40) for step in range(40)] == expected
    with pytest.raises(ValueError, match="restart: Plateau follows the loss"):
        Stages(Plateau(), (20,))


class Adam(pl.Callback):
    """Steps that the moments of the optimiser have seen, and the rate, after each optimiser step."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float]] = []

    def on_train_batch_end(self, fitter: pl.Trainer, *_: Any) -> None:
        (optimizer,) = fitter.optimizers
        steps = {int(state["step"]) for state in optimizer.state.values()}
        self.seen.append((*steps, optimizer.param_groups[0]["lr"]))


def test_a_stage_begins_with_a_new_optimiser_and_the_weights_of_the_last(tmp_path):
    """Also where the run is stopped just before it, or in it."""
    ends, seen = {}, {}
    for folder, parts in (("whole", (9,)), ("parts", (4, 7, 9))):
        for end in parts:
            adam = Adam()
            callbacks = [adam, Checkpoints(every_n_steps=1)]
            fitter = trainer(end, callbacks, default_root_dir=tmp_path / folder, enable_checkpointing=True)
            module = build(dropout=0.1, phases=[{"until": 4}, {"restart": True}])
            module.schedule.total = 9
            fitter.fit(module, datamodule=FakeData(steps_per_epoch=5), ckpt_path="last")
            seen.setdefault(folder, []).extend(adam.seen)
        ends[folder] = module.root.state_dict()
    assert [steps for steps, _ in seen["whole"]] == [1, 2, 3, 4, 1, 2, 3, 4, 5]
    assert seen["whole"] == seen["parts"] and all(torch.equal(ends["whole"][name], value) for name, value in ends["parts"].items())


def values(folder: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["train/value/match.weight"] for row in rows if "train/loss" in row}


def test_a_run_logs_ramps_and_a_resumed_one_goes_on(tmp_path):
    """The line of step n is written after optimiser step n - 1, counted from 0."""
    found, ramp = {}, Ramp(1.0, 0.2, 6, "cosine")
    for folder, parts in (("whole", (8,)), ("parts", (3, 8))):
        for end in parts:
            callbacks = [Metrics(), Checkpoints(every_n_steps=1)]
            fitter = trainer(end, callbacks, default_root_dir=tmp_path / folder, enable_checkpointing=True, log_every_n_steps=1)
            module = build(phases=[{"set": {"match.weight": {"from": 1.0, "to": 0.2, "over": 6}}}])
            fitter.fit(module, datamodule=FakeData(steps_per_epoch=5), ckpt_path="last")
        found[folder] = values(tmp_path / folder)
        assert module.root.objectives["match"].weight == pytest.approx(0.2)
    assert found["whole"] == found["parts"] == {step: pytest.approx(ramp.at(step - 1)) for step in range(1, 9)}
