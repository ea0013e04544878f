"""Trouble on one rank: all ranks answer alike. And checkpoints of one layout continue under another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from train.events import poisoned
from train.runs import Trace, build, drift, run
from train.spawn import ranks

from mmpretrain.train.guard import NonFiniteStep


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("events")
    for rank, done in enumerate(ranks(Path(__file__).with_name("events.py"), str(folder))):
        assert done.returncode == 0, f"rank {rank}:\n{done.stdout[-4000:]}"
    return folder, [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.fault(49)
@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_nan_on_one_rank_stops_or_skips_on_both(events: tuple[Path, list[dict[str, Any]]], strategy: str) -> None:
    first, second = (result["guard_on_one_rank"] for result in events[1])
    message = first[f"{strategy}/stop"]
    assert message == second[f"{strategy}/stop"]
    assert message.startswith("step 1: loss nan") and "samples: s12, s13, s14, s15." in message
    assert first[f"{strategy}/skip"]["finite"] and first[f"{strategy}/sum"] == second[f"{strategy}/sum"]


@pytest.mark.fault(48)
@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_signal_to_one_rank_stops_both_after_the_same_step(events: tuple[Path, list[dict[str, Any]]], strategy: str) -> None:
    for result in events[1]:
        found = result["preemption"][strategy]
        assert found == {"code": 138, "saved": ["step-00000004.ckpt", "step-00000005.ckpt"], "end": 9}


@pytest.mark.slow
def test_ranks_that_were_given_different_seeds_stop(events: tuple[Path, list[dict[str, Any]]]) -> None:
    assert [result["disagreement"]["says"] for result in events[1]] == ["ranks disagree on model.seed: 0 on rank 0, 1 on rank 1"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["ddp-fsdp2", "fsdp2-ddp", "fsdp2-fsdp2", "ddp-one", "fsdp2-one"])
def test_checkpoint_of_one_layout_continues_under_another(events: tuple[Path, list[dict[str, Any]]], cell: str) -> None:
    folder = events[0] / "checkpoint_matrix"
    saved, _, by = cell.partition("-")
    reference = build(ema_decay=0.9)
    whole = run(reference, steps=10)
    if by == "one":
        module = build(ema_decay=0.9)
        resumed = run(module, steps=10, ckpt_path=str(folder / f"by-{saved}" / "step-00000005.ckpt"))
        parameters, ema = resumed.parameters, module.ema.state()
    else:
        state = torch.load(folder / f"{cell}.pt", weights_only=True)
        parameters, ema = state["parameters"], state["ema"]
    assert drift(whole, Trace([], [], parameters, {}, True)) < 2e-5
    average = reference.ema.state()
    assert max((average[n] - ema[n]).abs().max() for n in average if "qkv.bias" not in n) < 2e-5


def test_guard_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # events.jsonl goes to the Trainer's folder
    with pytest.raises(NonFiniteStep, match=r"step 1: loss nan.*samples: s12, s13, s14, s15\.") as caught:
        run(poisoned(), steps=4, accumulate_grad_batches=2)
    assert "on_nonfinite=skip" in str(caught.value)
    module = poisoned(on_nonfinite="skip")
    run(module, steps=4)
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_too_many_skips_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # events.jsonl goes to the Trainer's folder
    module = poisoned(on_nonfinite="skip", max_skips=1)
    with pytest.raises(NonFiniteStep, match="1 steps in a row"):
        run(module, steps=4)
