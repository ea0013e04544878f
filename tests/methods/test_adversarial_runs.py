"""Adversarial training inside whole runs: cuts of a batch, stages, resumption, the guard, precision, the command line, ViLT."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import LENGTHS, SIZES, vilt
from helpers.tiny import batch as pictures
from lightning.pytorch.plugins.precision import MixedPrecision
from train.fakes import FakeData, FakeMatch, Poison, States
from train.runs import Trace, build, drift, largest, quiet, run, trainer

from mmpretrain.methods.adversarial import Adversarial
from mmpretrain.objectives.itm import ITM
from mmpretrain.objectives.mlm import MLM
from mmpretrain.objectives.swaps import Swaps
from mmpretrain.train.adversarial import adversarial
from mmpretrain.train.callbacks import Metrics
from mmpretrain.train.checkpoint import Checkpoints
from mmpretrain.train.guard import NonFiniteStep
from mmpretrain.train.pretraining import Pretraining
from mmpretrain.types import Batch, Score, Vocabulary

STRONG: dict[str, Any] = {"lr": 0.3, "init": 0.1}
STAGES = [{"until": 4, "set": {"adversarial.enabled": False}}, {"set": {"adversarial.enabled": True}}]


@pytest.mark.parametrize("settings", [STRONG, {"lr": 0.3, "clean": "explicit", "norm": "linf"}], ids=["implicit", "explicit"])
def test_accumulation_equals_one_batch_over_ten_steps(settings: dict[str, Any]) -> None:
    one = run(build(adversarial=settings), gradient_clip_val=0.5)
    parts = run(build(adversarial=settings), gradient_clip_val=0.5, accumulate_grad_batches=2)
    assert largest(one.losses, parts.losses) < 1e-5 and largest(one.norms, parts.norms) < 1e-5
    assert drift(one, parts) < 2e-5


def test_stages_are_rows_of_the_table_of_phases() -> None:
    clean, staged = run(build(), steps=6), run(build(adversarial=STRONG, phases=STAGES), steps=6)
    assert staged.losses[:4] == clean.losses[:4] and staged.norms[:4] == clean.norms[:4]
    assert staged.losses[4] != clean.losses[4]
    with pytest.raises(ValueError, match=r"adversarial\.enabled.*of one of: model, mlm, match$"):
        run(build(phases=STAGES), steps=1)
    with pytest.raises(ValueError, match="steps=0"):
        run(build(adversarial=STRONG, phases=[{"set": {"adversarial.steps": 0}}]), steps=1)


def test_what_is_measured() -> None:
    module = build(adversarial=STRONG)
    run(module, steps=3)
    found = module.meter.read(torch.device("cpu"))
    assert {
        f"train/{name}" for name in ("mlm/loss", "mlm/adversarial_loss", "mlm/kl", "match/adversarial_loss", "match/kl")
    } <= found.keys()
    assert found["train/mlm/adversarial_loss"] > found["train/mlm/loss"] and found["train/mlm/kl"] > 0
    assert 0.3 < found["train/adversarial/delta_text"] < 0.6 + 0.1
    total = sum(w * (found[f"train/{n}/adversarial_loss"] + 1.5 * found[f"train/{n}/kl"]) for n, w in (("mlm", 1.0), ("match", 0.5)))
    assert found["train/loss"] == pytest.approx(total, rel=0.05)  # means over steps with other counts of masked words


def go(folder: Path, steps: int) -> dict[str, torch.Tensor]:
    """Clean, then adversarial, with dropout, saved at every second step, from ``last`` where there is one."""
    quiet()
    callbacks = [Metrics(), Checkpoints(every_n_steps=2, keep_last=2)]
    fitter = trainer(steps, callbacks, default_root_dir=folder, enable_checkpointing=True, log_every_n_steps=1)
    module = build(dropout=0.1, adversarial=STRONG, phases=STAGES)
    fitter.fit(module, datamodule=FakeData(steps_per_epoch=5), ckpt_path="last")
    return {name: value.clone() for name, value in module.root.state_dict().items()}


def test_a_resumed_run_is_bit_identical(tmp_path: Path) -> None:
    whole = go(tmp_path / "whole", 9)
    for steps in (3, 4, 7):
        go(tmp_path / "parts", steps)
    parts = go(tmp_path / "parts", 9)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


class HatesDeltas(FakeMatch):
    """NaN as soon as something is perturbed: clean forward and first pass are fine."""

    def forward(self, hidden: States, batch: Batch) -> Score:
        score, delta_ND = super().forward(hidden, batch), batch.text.delta_ND
        return score if delta_ND is None or not delta_ND.any() else score._replace(sum=score.sum * float("nan"))


@pytest.mark.parametrize("objective", [HatesDeltas(view="match"), Poison("s5", view="match")], ids=["perturbed", "clean"])
def test_the_guard_sees_every_pass(objective: FakeMatch, tmp_path: Path) -> None:
    module = build(adversarial={"lr": 0.3})
    module.root = Pretraining(module.root.model, {"match": objective})
    with pytest.raises(NonFiniteStep, match="step 0"):
        run(module, steps=2, default_root_dir=tmp_path)


def test_mixed_precision_and_loss_scaling_stay_near() -> None:
    def fitted(**flags: Any) -> Trace:
        return run(build(adversarial={"lr": 0.3}), steps=4, gradient_clip_val=0.5, **flags)

    plain, bf16 = fitted(), fitted(precision="bf16-mixed")
    fp16 = fitted(plugins=[MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10))])
    assert 0 < largest(plain.losses, fp16.losses) < 1e-2 and 0 < largest(plain.losses, bf16.losses) < 5e-2
    assert largest(plain.norms, fp16.norms) < 2e-2


def test_an_overflow_is_left_to_the_scaler() -> None:
    """The deltas of a pass that overflows stay where they are, so that losses stay finite and the guard has nothing to say."""
    scaler, scales, module = torch.amp.GradScaler("cpu", init_scale=2.0**19), [], build(adversarial={"lr": 0.3})
    module.on_train_batch_end = lambda *_: scales.append(scaler.get_scale())
    start = {name: p.detach().clone() for name, p in module.root.named_parameters()}
    trace = run(module, steps=9, plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)])
    assert scales[0] == 2.0**18 and scales[-1] == scales[-2], "halved at an overflow, then steady"
    assert all(torch.isfinite(p).all() for p in trace.parameters.values()) and all(map(math.isfinite, trace.losses))
    assert any(not torch.equal(p, start[name]) for name, p in trace.parameters.items() if name in start)


def test_recomputation_changes_nothing() -> None:
    plain = run(build(adversarial=STRONG), steps=4)
    assert run(build(adversarial=STRONG, activation_checkpointing=True), steps=4).losses == plain.losses


def test_vilt_learns_eight_pairs_under_perturbed_words() -> None:
    torch.manual_seed(0)
    model = vilt(dropout=0.1).train()
    mlm, itm = MLM(prob=0.3, view="mlm"), ITM({})
    module = Pretraining(model, {"mlm": mlm, "itm": itm})
    module.bind(Vocabulary(60, 0, 1, 2, 59, (0, 1, 2, 59)))
    batch = pictures(SIZES * 2, LENGTHS * 2)
    batch = batch._replace(targets={"itm": Swaps(torch.arange(8) // 4)})  # the second four do not match
    optimizer, method = torch.optim.AdamW(module.parameters(), lr=3e-3), Adversarial("text", lr=0.1)
    losses, results = [], []
    for _ in range(40):
        optimizer.zero_grad(set_to_none=True)
        results.append(adversarial(module, [batch], ["mlm", "itm"], lambda loss, last: loss.backward(), method=method))
        optimizer.step()
        losses.append(float(results[-1].loss))
    assert losses[-1] < 0.2 * losses[0]
    assert float(results[-1].losses["itm"][0]) / 8 < 0.1


def test_the_command_line_knows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmpretrain.cli.train import prepare

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMPRETRAIN_RUN_DIR", str(tmp_path / "run"))
    (tmp_path / "villa.yaml").write_text("defaults: [vilt.yaml]\nmodel: {adversarial: {modality: text, steps: 2, lr: 1e-2}}\n")
    options = ["--model.adversarial.kl_weight", "1.0", "--trainer.accelerator", "cpu", "--loggers", "[]"]
    module = prepare("fit", ["--config", "villa.yaml", "--config", "debug.yaml", *options]).model
    assert vars(module.adversarial) == vars(Adversarial(steps=2, lr=1e-2, kl_weight=1.0))
